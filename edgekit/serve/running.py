"""Run the server: bind the socket, run uvicorn on it, and shut down gracefully."""

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
from typing import TYPE_CHECKING, Any

import uvicorn

from edgekit.errors import ConfigError
from edgekit.serve.connections import Connection, Connections, count_places

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import FrameType

    from edgekit.serve.app import Service

_LOG = logging.getLogger("edgekit.serve")

TOKEN_VARIABLE = "EDGEKIT_TOKEN"
_SHORTEST_TOKEN = 16
_BACKLOG = 1024
"""Connections that the system queues until they are accepted: a stranger can fill a short queue, and clients retry only
after a second."""

_AT_ONCE = 16
"""Connections accepted per iteration of the event loop."""

_LINGER = 10
"""Seconds that connections have to read their last bytes at shutdown."""

_TIDY = 30
"""Seconds between two releases of unused memory."""

_IDLE = 15
"""Seconds that an idle connection stays open: longer than clients keep theirs."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """Open a listening socket; port 0 selects a free one. Clients can connect and wait until the model is loaded.

    Raises:
        ConfigError: the port is in use, the address is not one of this machine, or the system does not allow it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":
                # On other systems it would let two servers share one port.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        hints = {
            errno.EADDRINUSE: "stop the server on that port, or pass another `port`; `port=0` selects a free one",
            errno.EACCES: "pass `port=8080`: ports below 1024 need privileges",
        }
        hint = hints.get(error.errno or 0, "pass an address of this machine as `host`: 127.0.0.1, or 0.0.0.0 for all")
        why = "the port is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error)).lower()
        raise ConfigError(f"cannot listen on {host}, port {port}: {why}", hint) from error
    return listener


def address_of(listener: socket.socket) -> str:
    """Return the URL of a listener."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def read_token(file: Path | None) -> str:
    """Read the token from ``file``, else from the environment; "" for none.

    Raises:
        ConfigError: other users can read the file, or its content is not a valid token.
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
            raise ConfigError(f"{file}: other users can read the token", f"create a new token, and chmod 600 {file}")
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        need = f"at least {_SHORTEST_TOKEN} printable ASCII characters without spaces"
        raise ConfigError(f"{where}: a token must be {need}", "create one with `openssl rand -hex 32`")
    return token


class Running(uvicorn.Server):
    """A uvicorn server on an already bound socket. ``run_on`` blocks until it has ended.

    The first SIGTERM or SIGINT rejects new requests (503) and ends the server when all answers are complete; the second
    stops these too.

    Args:
        service: the application.
        ready: called once requests are answered.
    """

    def __init__(self, service: Service, ready: Callable[[], None] = lambda: None) -> None:
        self.connections = connections = Connections(count_places())
        off: dict[str, Any] = {"log_config": None, "lifespan": "off", "ws": "none"}
        off |= dict.fromkeys(("access_log", "proxy_headers", "server_header"), False)
        limits: Any = {"timeout_graceful_shutdown": _LINGER, "timeout_keep_alive": _IDLE, "backlog": _AT_ONCE}
        http: Any = partial(Connection, connections)
        super().__init__(uvicorn.Config(service.asgi, http=http, **off, **limits))
        self._service = service
        self._ready = ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[None] | None = None

    def run_on(self, listener: socket.socket) -> None:
        """Serve until a signal, or a call of ``end``."""
        try:
            self.run(sockets=[listener])
        finally:
            listener.close()
            self._service.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; then call ``ready``."""
        await super().startup(sockets=sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)  # asyncio has reduced it to _AT_ONCE
        self._loop = asyncio.get_running_loop()
        self._ready()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: drop connections that take too long, and release memory."""
        if counter % 10 == 0:
            self.connections.sweep()
        if counter % (10 * _TIDY) == 0:
            self._service.tidy()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal. Unlike uvicorn, do not raise it again after a graceful end."""
        del frame
        _LOG.info("%s: finishing %d answers", signal.Signals(sig).name, self._service.admission.active)
        self.end()

    def end(self) -> None:
        """End when all answers are complete; a second call ends at once. Thread-safe."""
        if self._loop is None:
            self.should_exit = True
        else:
            with suppress(RuntimeError):  # the loop has already ended
                self._loop.call_soon_threadsafe(self._begin_to_end)

    def _begin_to_end(self) -> None:
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._drain())
        else:
            self._service.stop_all()

    async def _drain(self) -> None:
        await self._service.admission.drain()
        self.should_exit = True
