"""Limit the number of concurrent requests, and estimate when a rejected one should retry."""

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
"""Longest retry-after in seconds."""


class Admission:
    """Admits requests to the queue. Used only in the event loop's thread.

    Args:
        limit: most concurrent requests, including those that wait for the model.
        clock: monotonic time in seconds.
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
        """Number of requests in progress."""
        return len(self._running)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold a place in the queue while the block runs.

        Raises:
            Refusal: the queue is full (429), or the server is shutting down (503).
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
                f"the queue is full with {self.active} requests; try again in {seconds} s",
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
        """Estimate the whole seconds until another request finds a place.

        The median time between the latest ends, multiplied by the requests rejected since the last end plus one. With
        fewer than two ends, the age of the oldest request replaces the median.
        """
        now = self._clock()
        gaps = [later - earlier for earlier, later in pairwise(self._ends)]
        if gaps:
            gap = median(gaps)
            # The current gap may already be longer than the median.
            gap = max(gap, now - self._ends[-1])
        else:
            gap = now - min(self._running.values(), default=now)
        return min(_LONGEST, max(1, ceil(gap * (self._turned_away + 1))))

    async def drain(self) -> None:
        """Reject new requests and wait until all in progress have ended."""
        self.closing = True
        await self._empty.wait()
