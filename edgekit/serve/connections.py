"""Limit connections: the time of each of their stages, and their number.

uvicorn waits forever for a request that never ends and for a reader that never reads. Here every stage of a connection
except the answer has a time limit. A connection that has not passed the guard is a stranger's and must not block
others: when there is no room, the oldest of the address with the most strangers' connections is dropped.
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
"""Most connections, if the system allows that many files."""

OTHER_FILES = 128
"""Files that the process needs besides connections: the model's, the history's, endpoints'."""

SHARE = 2
"""One address may hold 1 / SHARE of all connections without having passed the guard."""

DISCARDED = 64 << 20
"""Most bytes that are read and dropped after an early answer, so that a client that is still sending sees its error."""

DISCARDED_OF_STRANGERS = 1 << 20


class Stage(Enum):
    """The stage of a connection."""

    HEAD = "waiting for the head of a request"
    BODY = "waiting for its body"
    ANSWER = "answering"
    UNREAD = "the client does not read"
    REST = "answered before the request had ended"
    IDLE = "no request"
    CLOSING = "closed, with unsent data"


LIMITS = {
    Stage.HEAD: 10.0,
    Stage.BODY: 70.0,  # read_body has a lower limit and tells the client
    Stage.UNREAD: 20.0,
    Stage.REST: 5.0,
    Stage.IDLE: 20.0,  # uvicorn's own limit is lower, but does not always apply
    Stage.CLOSING: 10.0,
}
"""Most seconds that a connection may stay in a stage. An answer has no limit."""


class Connections:
    """All open connections. Used only in the event loop's thread.

    Args:
        most: most connections.
        clock: monotonic time in seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float] = monotonic) -> None:
        self.most = most
        self.clock = clock
        self.log = logging.getLogger("edgekit.serve.connections")
        # uvicorn's warning for every bad request would let a stranger fill the disk; bugs are logged as errors.
        self.log.setLevel(logging.ERROR)
        self._unproved: dict[str, dict[Connection, None]] = {}
        self._proved: dict[Connection, None] = {}

    def __len__(self) -> int:
        return len(self._proved) + sum(map(len, self._unproved.values()))

    def enter(self, newcomer: Connection) -> bool:
        """Find a place for a new connection. Returns False if all others are being answered."""
        mine = self._unproved.get(newcomer.peer, {})
        if len(mine) * SHARE >= self.most:
            self._drop_stranger(mine)
        if len(self) >= self.most and not self._make_room():
            return False
        self._unproved.setdefault(newcomer.peer, {})[newcomer] = None
        return True

    def leave(self, connection: Connection) -> None:
        """Release the connection's place, if it has one."""
        self._proved.pop(connection, None)
        mine = self._unproved.get(connection.peer, {})
        mine.pop(connection, None)
        if not mine:
            self._unproved.pop(connection.peer, None)

    def sweep(self) -> None:
        """Drop the connections that exceed their time limit."""
        now = self.clock()
        everyone = [*self._proved, *(c for mine in self._unproved.values() for c in mine)]
        for connection in everyone:
            if connection.overdue(now):
                self._drop(connection)

    def _make_room(self) -> bool:
        """Drop a stranger's connection of the address with the most of them, else the oldest not being answered."""
        while self._unproved:
            if self._drop_stranger(max(self._unproved.values(), key=len)):
                return True
        idle = next((c for c in self._proved if c.stage in (Stage.IDLE, Stage.HEAD, Stage.BODY, Stage.REST)), None)
        if idle:
            self._drop(idle)
        return idle is not None

    def _drop_stranger(self, mine: dict[Connection, None]) -> bool:
        """Drop an address's oldest connection that has not passed the guard; move those that have to ``_proved``."""
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
    """uvicorn's connection with a stage, and errors in the API's format.

    Attributes:
        peer: the client's address, or network for IPv6, by which connections are counted.
        stage: the current stage.
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
        """Whether its last request, or an earlier one, passed the guard."""
        return self.scope is not None and PROVED in self.scope["state"]

    def overdue(self, now: float) -> bool:
        """Whether it has exceeded the time limit of its stage."""
        self._look()
        return now - self._since > LIMITS.get(self.stage, inf)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place, or refuse the connection."""
        super().connection_made(transport)
        self.peer = _network(self.client[0]) if self.client else ""
        if not self._connections.enter(self):
            full = Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections", code="too_many", retry_after=5)
            self._refuse(full)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the place."""
        self._connections.leave(self)
        super().connection_lost(exc)
        # asyncio's transport holds a bound method of itself: the cycle would keep the socket until a collection.
        getattr(self.transport, "__dict__", {}).pop("_read_ready_cb", None)

    def data_received(self, data: bytes) -> None:
        """As uvicorn's, but count and limit the data that follows an early answer."""
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
        """The client does not read what was sent."""
        super().pause_writing()
        self._look()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._look()

    def send_400_response(self, msg: str) -> None:
        """Refuse data that is not HTTP. An answer in progress is treated as disconnected."""
        if self.cycle and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._refuse(bad_request(msg.rstrip(".").lower(), code="invalid_http"))

    def _refuse(self, refusal: Refusal) -> None:
        """Send an error as the last response, without closing, so that a client that is still sending sees it."""
        body = json.dumps(refusal.body).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        headers += refusal.headers.items()
        reason = refusal.status.phrase.encode()
        # Fails if a response has already begun.
        with suppress(h11.LocalProtocolError):
            head = self.conn.send(h11.Response(status_code=refusal.status, headers=headers, reason=reason))
            self.transport.write((head or b"") + body)
            self.transport.write_eof()
        self._refused = True
        self._look()

    def _look(self) -> None:
        """Update the stage and the time of its start."""
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
    """Return the number of connections that the limit of open files allows, at most ``MOST``."""
    try:
        import resource
    except ImportError:  # not on Windows
        return MOST // 2
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if files == resource.RLIM_INFINITY else max(16, min(MOST, files - OTHER_FILES))


def _network(host: str) -> str:
    """Return an IPv4 address, or the /64 network of an IPv6 address, as one client has 2**64 of these."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    return str(address.ipv4_mapped or ipaddress.ip_network((int(address) >> 64 << 64, 64)))
