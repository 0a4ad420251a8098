"""Private text that comes back: in an earlier answer that a conversation carries along, or pasted by the user."""

from __future__ import annotations

import re
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

RUN = 8
"""Words in a row that make a quotation."""
_SAYING = 3
"""Words from which on a text that is shorter than a run counts wherever it appears; below, as a whole message."""


class PrivateText:
    """Finds what was private in other texts, word for word: runs of eight words, or whole shorter texts.

    It does not find what was put into other words. Thread-safe. Kept in memory as hashes, eight bytes or so a word.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._runs: dict[int, int] = {}
        self._short: dict[tuple[str, ...], int] = {}
        self._reasons: list[str] = []

    def add(self, text: str, reason: str) -> None:
        """Note a text: a private document, or an answer that was given from one.

        Args:
            text: what must not leave.
            reason: what ``found_in`` says where it is found, as in ``the document a.md is private``.
        """
        words = _words(text)
        with self._lock:
            self._reasons.append(reason)
            number = len(self._reasons) - 1
            if len(words) >= RUN:
                for i in range(len(words) - RUN + 1):
                    self._runs.setdefault(hash(words[i : i + RUN]), number)
            elif words:
                self._short.setdefault(words, number)

    def found_in(self, texts: Iterable[str]) -> str:
        """Why these texts, the messages of a request, must stay on the device; "" if nothing was found."""
        with self._lock:
            for text in texts:
                words = _words(text)
                for i in range(len(words)):
                    number = self._runs.get(hash(words[i : i + RUN])) if i + RUN <= len(words) else None
                    if number is not None:
                        return self._reasons[number]
                for said, number in self._short.items():
                    if words == said or (len(said) >= _SAYING and _holds(words, said)):
                        return self._reasons[number]
        return ""


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.casefold()))


def _holds(words: tuple[str, ...], said: tuple[str, ...]) -> bool:
    return any(words[i : i + len(said)] == said for i in range(len(words) - len(said) + 1))
