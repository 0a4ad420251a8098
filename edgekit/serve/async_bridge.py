"""An answer on its way from the thread in which the router works into asyncio."""

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
"""Events that may lie ready before the router has to wait: most answers fit, so that a slow reader keeps the model from
nobody."""

PATIENCE = 60.0
"""Seconds that the router waits for a reader who takes nothing; then the answer is given up."""

_HEAD_START = 0.005
"""Seconds at most that the model stands still for the first words: its next step takes every core, and they would wait
for it on the way out."""

_LOOK = 0.1
"""Seconds between two looks at whether an answer is still wanted."""


class Crossing:
    """One answer. Made and read in the event loop; the router runs in ``executor``.

    Args:
        answerer: who answers.
        request: what is asked.
        receipt: told of the outcome in the router's thread, even where the reader has gone; must not block.
        patience: seconds to wait for a reader who takes nothing.
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
        """Begin to answer."""
        executor.submit(self._work)

    async def next(self) -> Event | None:
        """The next event, or None after the last.

        Raises:
            EdgekitError: what the router raised.
        """
        if not self._arrived:
            if self._begun:
                # Whoever asks for more has sent what was there.
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
        """Stop the router, if it still works, and wait until it has."""
        self.stop.set()
        await self._done.wait()

    def _work(self) -> None:
        try:
            # A reader that has gone before its turn costs nothing.
            if not self.stop.is_set():
                events = self._answerer.answer(self._request, stop=self.stop)
                with closing(cast("Generator[Event]", events)):
                    opening: tuple[Event, ...] = ()
                    for event in events:
                        if isinstance(event, Opening):
                            # It says who speaks and goes with the first words: one waking less before them.
                            opening = (event,)
                            continue
                        if isinstance(event, Routed):
                            self._receipt(self._request, event)
                        self._hand_over((*opening, event))
                        opening = ()
            self._call(None)
        except BaseException as error:  # it belongs to the reader, whatever it is
            self._call(error)
        finally:
            self._tell(self._done.set)

    def _hand_over(self, events: tuple[Event, ...]) -> None:
        """Put events where the loop finds them; drop them where nobody wants them any more."""
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
            # The loop has closed: the process is ending, and nobody waits.
            self.stop.set()
