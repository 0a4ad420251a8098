"""Connections: how long each may take over each of its steps, and whose goes where there are too many.

uvicorn waits for ever for a request that never ends and for a reader who never reads. Here every stage of a connection
but the answer itself has its seconds. Whoever has not shown that he may ask is a stranger, and a stranger is never in
the way of anybody else: where there is no room, the oldest of the address that holds most goes.
"""

from __future__ import annotations

import ipaddress
import json
import logging
from contextlib import suppress
from enum import Enum
from http import HTTPStatus
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgekit.serve.api_errors import Refusal, bad_request

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from uvicorn.config import Config
    from uvicorn.server import ServerState

PROVED = "edgekit.proved"
"""Set in the state of a request's scope once it has passed the guard."""

MOST = 1024
"""Connections in all, where the system gives as many files."""

OTHER_FILES = 128
"""Files that the process needs besides connections: the model's, the history's, endpoints'."""

SHARE = 2
"""One address may hold one part in so many of all connections without having shown that it may ask."""

DISCARDED = 64 << 20
"""Bytes that are read and dropped after an early answer: a client that is still sending would never see its error."""

DISCARDED_OF_STRANGERS = 1 << 20


class Stage(Enum):
    """Where a connection stands."""

    HEAD = "a request's head is awaited"
    BODY = "its body is"
    ANSWER = "it is being answered"
    UNREAD = "the client does not take what is sent"
    REST = "it has been answered before its end had come"
    IDLE = "nothing is asked"
    CLOSING = "it has been closed, and not everything is sent"


LIMITS = {
    Stage.HEAD: 10.0,
    Stage.BODY: 70.0,  # the body's reader has a lower one and says so to the client
    Stage.UNREAD: 20.0,
    Stage.REST: 5.0,
    Stage.IDLE: 20.0,  # uvicorn's own is lower, and sometimes forgotten
    Stage.CLOSING: 10.0,
}
"""Seconds that a connection may stand there. An answer may take as long as it takes."""


class Connections:
    """All that are open. Used in the event loop's thread only.

    Args:
        most: of them.
        clock: seconds, never going back.
    """

    def __init__(self, most: int, clock: Callable[[], float] = monotonic) -> None:
        self.most = most
        self.clock = clock
        self.log = logging.getLogger("edgekit.serve.connections")
        # uvicorn's words on every bad request would let a stranger fill the disk; a bug is an error and is heard.
        self.log.setLevel(logging.ERROR)
        self._unproved: dict[str, dict[Connection, None]] = {}
        self._proved: dict[Connection, None] = {}

    def __len__(self) -> int:
        return len(self._proved) + sum(map(len, self._unproved.values()))

    def enter(self, newcomer: Connection) -> bool:
        """Find a place; False where everybody is being answered."""
        mine = self._unproved.get(newcomer.peer, {})
        if len(mine) * SHARE >= self.most:
            self._drop_stranger(mine)
        if len(self) >= self.most and not self._make_room():
            return False
        self._unproved.setdefault(newcomer.peer, {})[newcomer] = None
        return True

    def leave(self, connection: Connection) -> None:
        """Give its place back, if it has one."""
        self._proved.pop(connection, None)
        mine = self._unproved.get(connection.peer, {})
        mine.pop(connection, None)
        if not mine:
            self._unproved.pop(connection.peer, None)

    def sweep(self) -> None:
        """Drop those who have taken too long."""
        now = self.clock()
        everyone = [*self._proved, *(c for mine in self._unproved.values() for c in mine)]
        for connection in everyone:
            if connection.overdue(now):
                self._drop(connection)

    def _make_room(self) -> bool:
        """Drop one: a stranger of the address that has most of them, else the oldest who is not being answered."""
        while self._unproved:
            if self._drop_stranger(max(self._unproved.values(), key=len)):
                return True
        idle = next((c for c in self._proved if c.stage in (Stage.IDLE, Stage.HEAD, Stage.BODY, Stage.REST)), None)
        if idle:
            self._drop(idle)
        return idle is not None

    def _drop_stranger(self, mine: dict[Connection, None]) -> bool:
        """Drop the oldest stranger of an address; who has proved himself meanwhile is put with the others."""
        for connection in list(mine):
            if not connection.proved:
                self._drop(connection)
                return True
            self.leave(connection)
            self._proved[connection] = None
        return False

    def _drop(self, connection: Connection) -> None:
        self.leave(connection)
        connection.transport.abort()


class Connection(H11Protocol):
    """uvicorn's connection with a stage, and errors in the shape of the API's.

    Attributes:
        peer: who is at the other end, as places are counted.
        stage: where it stands.
    """

    def __init__(
        self,
        connections: Connections,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.logger = connections.log
        self.peer = ""
        self.stage = Stage.HEAD
        self._connections = connections
        self._since = connections.clock()
        self._discarded = 0
        self._refused = False

    @property
    def proved(self) -> bool:
        """Whether its last request, or one before, passed the guard."""
        return self.scope is not None and PROVED in self.scope["state"]

    def overdue(self, now: float) -> bool:
        """Whether it has stood too long where it stands."""
        self._look()
        return now - self._since > LIMITS.get(self.stage, inf)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place, or say that there is none."""
        super().connection_made(transport)
        self.peer = _network(self.client[0]) if self.client else ""
        if not self._connections.enter(self):
            full = Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections", code="too_many", retry_after=5)
            self._refuse(full)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        self._connections.leave(self)
        super().connection_lost(exc)
        # asyncio's transport holds a method of itself: a circle that waits for a collection, with a socket and more.
        getattr(self.transport, "__dict__", {}).pop("_read_ready_cb", None)

    def data_received(self, data: bytes) -> None:
        """As uvicorn's; what follows an early answer is counted, and dropped where nothing more is understood."""
        if self.stage is Stage.REST:
            self._discarded += len(data)
            if self._discarded > (DISCARDED if self.proved else DISCARDED_OF_STRANGERS):
                self.transport.abort()
                return
        if not self._refused:
            super().data_received(data)
            self._look()

    def on_response_complete(self) -> None:
        """As uvicorn's."""
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        """What was sent is not read."""
        super().pause_writing()
        self._look()

    def resume_writing(self) -> None:
        """It is read again."""
        super().resume_writing()
        self._look()

    def send_400_response(self, msg: str) -> None:
        """What came is not HTTP. Where an answer is under way, its reader is gone."""
        if self.cycle and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._refuse(bad_request(msg.rstrip(".").lower(), code="invalid_http"))

    def _refuse(self, refusal: Refusal) -> None:
        """Say why, as the last thing. Not closed at once: a client that is still sending would never see it."""
        body = json.dumps(refusal.body).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        headers += refusal.headers.items()
        reason = refusal.status.phrase.encode()
        # Where an answer has begun there is no room for another one.
        with suppress(h11.LocalProtocolError):
            head = self.conn.send(h11.Response(status_code=refusal.status, headers=headers, reason=reason))
            self.transport.write((head or b"") + body)
            self.transport.write_eof()
        self._refused = True
        self._look()

    def _look(self) -> None:
        """Note the stage, and when it was come to."""
        stage = self._find_stage()
        if stage is not self.stage:
            self.stage = stage
            self._since = self._connections.clock()
            self._discarded = 0

    def _find_stage(self) -> Stage:
        if self.transport.is_closing():
            return Stage.CLOSING
        if self.flow.write_paused:
            return Stage.UNREAD
        if self._refused:
            return Stage.REST
        incomplete = self.conn.their_state is h11.SEND_BODY
        if self.cycle and not self.cycle.response_complete:
            return Stage.BODY if incomplete else Stage.ANSWER
        if incomplete:
            return Stage.REST
        begun = self.cycle is None or bool(self.conn.trailing_data[0])
        return Stage.HEAD if begun else Stage.IDLE


def count_places() -> int:
    """Connections that the system has files for, at most ``MOST``."""
    try:
        import resource
    except ImportError:  # not on Windows
        return MOST // 2
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if files == resource.RLIM_INFINITY else max(16, min(MOST, files - OTHER_FILES))


def _network(host: str) -> str:
    """Whose address it is: of IPv6, everyone has 2**64."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    return str(address.ipv4_mapped or ipaddress.ip_network((int(address) >> 64 << 64, 64)))
