"""The process: a socket, uvicorn on it, and an end that finishes what was begun."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import signal
import socket
import stat
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import uvicorn

from edgekit.errors import ConfigError
from edgekit.serve.connections import Connection, Connections, count_places
from edgekit.serve.memory import give_back

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import FrameType

    from edgekit.serve.app import Service

_LOG = logging.getLogger("edgekit.serve")

TOKEN_VARIABLE = "EDGEKIT_TOKEN"
_SHORTEST_TOKEN = 16
_BACKLOG = 1024
"""Connections that the system holds ready until they are accepted: with a short line, a stranger's many keep others
waiting for a second, until they knock again."""

_AT_ONCE = 16
"""Connections accepted between two looks at those that are open."""

_LINGER = 10
"""Seconds that connections get to take their last bytes."""

_TIDY = 30
"""Seconds between two times that memory is given back."""

_IDLE = 15
"""Seconds that a connection on which nothing is asked stays open: longer than clients keep theirs."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Clients that come before the model is loaded wait.

    Raises:
        ConfigError: the port is taken, the address is not of this machine, or the system forbids it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":
                # Only there: elsewhere it lets two servers share one port.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        hints = {
            errno.EADDRINUSE: "stop what listens there, or take another: --port 8081; --port 0 finds a free one",
            errno.EACCES: "ports below 1024 need rights: take --port 8080",
            errno.EADDRNOTAVAIL: "--host takes an address of this machine: 127.0.0.1, or 0.0.0.0 for all",
        }
        hint = hints.get(error.errno or 0, "--host takes an address of this machine: 127.0.0.1, or 0.0.0.0 for all")
        why = "the port is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error)).lower()
        raise ConfigError(f"cannot listen on {host}, port {port}: {why}", hint) from error
    return listener


def address_of(listener: socket.socket) -> str:
    """The URL under which a listener is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def read_token(file: Path | None) -> str:
    """The token from ``file``, else from the environment; "" for none.

    Raises:
        ConfigError: others may read the file, or what it holds is no token.
    """
    where = TOKEN_VARIABLE if file is None else str(file)
    if file is None:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        if not token:
            return ""
    else:
        try:
            mode = file.stat().st_mode
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: the token cannot be read: {type(error).__name__}", "check the path") from error
        if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"{file}: others may read this token", f"chmod 600 {file}, and make a new token")
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        need = f"at least {_SHORTEST_TOKEN} printable ASCII characters without spaces"
        raise ConfigError(f"{where}: a token is {need}", "make one: openssl rand -hex 32")
    return token


class Running(uvicorn.Server):
    """A server on a socket that is bound already. ``run_on`` blocks until it has ended.

    The first SIGTERM or SIGINT lets nobody in any more (503) and ends when all answers under way are whole; the second
    stops these too.

    Args:
        service: the application.
        ready: called once requests are answered.
    """

    def __init__(self, service: Service, ready: Callable[[], None] = lambda: None) -> None:
        self.connections = connections = Connections(count_places())
        super().__init__(
            uvicorn.Config(
                service.asgi, log_config=None, access_log=False, lifespan="off", ws="none", proxy_headers=False,
                http=partial(Connection, connections),  # type: ignore[arg-type]
                server_header=False, timeout_graceful_shutdown=_LINGER, timeout_keep_alive=_IDLE, backlog=_AT_ONCE,
            )
        )  # fmt: skip
        self._service = service
        self._ready = ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[None] | None = None

    def run_on(self, listener: socket.socket) -> None:
        """Answer until a signal or ``end`` comes."""
        try:
            self.run(sockets=[listener])
        finally:
            listener.close()
            self._service.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; then say that it is up."""
        await super().startup(sockets=sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)  # asyncio has shortened it to what is accepted at once
        self._loop = asyncio.get_running_loop()
        self._ready()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: drop those who take too long, and give back memory."""
        if counter % 10 == 0:
            self.connections.sweep()
        if counter % (10 * _TIDY) == 0:
            self._service.look(give_back)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal. Not kept, as uvicorn would: raised again it would end us with an error after a good end."""
        del frame
        _LOG.info("%s: finishing %d answers", signal.Signals(sig).name, self._service.admission.active)
        self.end()

    def end(self) -> None:
        """End when all answers are whole; called again, at once. From any thread."""
        if self._loop is None:
            self.should_exit = True
        else:
            with suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(self._begin_to_end)

    def _begin_to_end(self) -> None:
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._drain())
        else:
            self._service.stop_all()

    async def _drain(self) -> None:
        await self._service.admission.drain()
        self.should_exit = True
