"""Detect an answer that ends in a loop: the same tokens, or words, over and over.

A loop is a period of up to ``LONGEST`` items that occurs ``REPEATS`` times in a row and fills at least ``SPAN`` items.
Lists, tables and code repeat their form, but not every token of it; a rule of dashes is a few tokens long. A large
matrix of zeros cannot be distinguished from a loop.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

LONGEST = 128
REPEATS = 4
SPAN = 96


@dataclass(frozen=True)
class Loop:
    """``period`` items that repeat over the last ``length`` items."""

    period: int
    length: int

    @property
    def words(self) -> str:
        """For example ``the last 96 tokens repeat the same 12``."""
        return f"the last {self.length:,} tokens repeat the same {self.period:,}"


class LoopWatch:
    """Detects a loop while an answer is generated; each push costs one comparison per period.

    Attributes:
        loop: the shortest loop at the current end, None if there is none.
    """

    def __init__(self, *, longest: int = LONGEST, repeats: int = REPEATS, span: int = SPAN) -> None:
        """Args: the longest period to detect, how often it must occur, and how many items it must fill."""
        self.loop: Loop | None = None
        self._repeats = repeats
        self._span = span
        self._last: deque[Hashable] = deque(maxlen=longest)
        # For each period: how many of the last items equal the one a period before.
        self._runs = [0] * longest

    def push(self, item: Hashable) -> bool:
        """Add a token. Returns whether the end is now a loop."""
        runs, self.loop = self._runs, None
        for i, before in enumerate(self._last):
            if before != item:
                runs[i] = 0
                continue
            runs[i] += 1
            period, length = i + 1, runs[i] + i + 1
            if self.loop is None and length >= self._span and length >= self._repeats * period:
                self.loop = Loop(period, length)
        self._last.appendleft(item)
        return self.loop is not None
