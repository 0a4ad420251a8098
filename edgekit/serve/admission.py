"""How many requests may be under way at once, and when one that was turned away should come again."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import contextmanager
from http import HTTPStatus
from itertools import pairwise
from math import ceil
from statistics import median
from time import monotonic
from typing import TYPE_CHECKING

from edgekit.serve.api_errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_REMEMBERED = 33
_LONGEST = 600
"""Seconds: beyond that nobody knows."""


class Admission:
    """The queue's door. Used in the event loop's thread only.

    Args:
        limit: requests under way at once, those that wait for the model among them.
        clock: seconds, never going back.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = monotonic) -> None:
        self.limit = limit
        self.closing = False
        self._clock = clock
        self._running: dict[int, float] = {}
        self._entered = 0
        self._ends: deque[float] = deque(maxlen=_REMEMBERED)
        self._turned_away = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def active(self) -> int:
        """Requests under way."""
        return len(self._running)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Take a place for as long as the block runs.

        Raises:
            Refusal: no place is free (429), or the server is closing (503).
        """
        if self.closing:
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE, "the server is shutting down", code="shutting_down", retry_after=5
            )
        if self.active >= self.limit:
            seconds = self.retry_after()
            self._turned_away += 1
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"the queue is full: {self.active} requests are under way; a place should be free in {seconds} s",
                code="queue_full",
                retry_after=seconds,
            )
        self._entered += 1
        number = self._entered
        self._running[number] = self._clock()
        self._empty.clear()
        try:
            yield
        finally:
            del self._running[number]
            self._ends.append(self._clock())
            self._turned_away = 0
            if not self._running:
                self._empty.set()

    def retry_after(self) -> int:
        """Whole seconds until a place should be free for one more, counting those turned away since the last end.

        The median time between the last ends, once for each of them; before there are two ends, as long as the oldest
        request has been under way.
        """
        now = self._clock()
        gaps = [later - earlier for earlier, later in pairwise(self._ends)]
        if gaps:
            gap = median(gaps)
            # Nothing has ended for longer than usual: that is news too.
            gap = max(gap, now - self._ends[-1])
        else:
            gap = now - min(self._running.values(), default=now)
        return min(_LONGEST, max(1, ceil(gap * (self._turned_away + 1))))

    async def drain(self) -> None:
        """Let nobody in any more and wait until everything under way has ended."""
        self.closing = True
        await self._empty.wait()
