"""Pass an answer from the router's thread to asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import closing
from time import monotonic
from typing import TYPE_CHECKING, cast

from edgekit.types.routing import Opening, Routed

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from concurrent.futures import Executor

    from edgekit.serve.seam import Answerer
    from edgekit.types.routing import Event, Request

AHEAD = 1024
"""Most buffered events before the router must wait: most answers fit, so a slow reader does not block the model."""

PATIENCE = 60.0
"""Seconds that the router waits for a reader that takes nothing; then the answer is stopped."""

_HEAD_START = 0.005
"""Most seconds that the model pauses until the first text is sent: its next step uses every core and would delay it."""

_LOOK = 0.1
"""Seconds between two checks whether an answer is still wanted."""


class Crossing:
    """One answer. Created and read in the event loop; the router runs in ``executor``.

    Args:
        answerer: the router.
        request: the request.
        receipt: called with the outcome in the router's thread, even if the reader has gone; must not block.
        ahead: most buffered events.
        patience: seconds to wait for a reader that takes nothing.
    """

    def __init__(
        self,
        answerer: Answerer,
        request: Request,
        receipt: Callable[[Request, Routed], None],
        *,
        ahead: int = AHEAD,
        patience: float = PATIENCE,
    ) -> None:
        self.stop = threading.Event()
        self._answerer = answerer
        self._request = request
        self._receipt = receipt
        self._patience = patience
        self._room = threading.Semaphore(ahead)
        self._begun = False
        self._sent = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Queue[tuple[Event, ...] | BaseException | None] = asyncio.Queue()
        self._arrived: deque[Event] = deque()
        self._done = asyncio.Event()

    def start(self, executor: Executor) -> None:
        """Start answering."""
        executor.submit(self._work)

    async def next(self) -> Event | None:
        """Return the next event, or None after the last.

        Raises:
            EdgekitError: the router raised it.
        """
        if not self._arrived:
            if self._begun:
                # The reader asks for more, so it has sent the first events.
                self._sent.set()
            self._begun = True
            events = await self._ready.get()
            self._room.release()
            if events is None or isinstance(events, BaseException):
                if events:
                    raise events
                return None
            self._arrived.extend(events)
        return self._arrived.popleft()

    async def finish(self) -> None:
        """Stop the router if it is still working, and wait for it."""
        self.stop.set()
        await self._done.wait()

    def _work(self) -> None:
        try:
            # Do not start if the reader has already gone.
            if not self.stop.is_set():
                events = self._answerer.answer(self._request, stop=self.stop)
                with closing(cast("Generator[Event]", events)):
                    opening: tuple[Event, ...] = ()
                    for event in events:
                        if isinstance(event, Opening):
                            # Sent together with the first text, which saves a wake-up before it.
                            opening = (event,)
                            continue
                        if isinstance(event, Routed):
                            self._receipt(self._request, event)
                        self._hand_over((*opening, event))
                        opening = ()
            self._call(None)
        except BaseException as error:  # any error is passed to the reader
            self._call(error)
        finally:
            self._tell(self._done.set)

    def _hand_over(self, events: tuple[Event, ...]) -> None:
        """Pass events to the loop; drop them if the answer is no longer wanted."""
        given_up = monotonic() + self._patience
        while not self._room.acquire(timeout=_LOOK):
            if monotonic() > given_up:
                self.stop.set()
            if self.stop.is_set():
                return
        self._call(events)
        if not self._sent.is_set():
            self._sent.wait(_HEAD_START)

    def _call(self, events: tuple[Event, ...] | BaseException | None) -> None:
        self._tell(lambda: self._ready.put_nowait(events))

    def _tell(self, what: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(what)
        except RuntimeError:
            # The loop is closed: the process is ending.
            self.stop.set()
