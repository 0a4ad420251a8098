"""The connection to an endpoint: one host, one deadline, cancellable from any thread, a limit on bytes.

Loads openai, httpx and httpcore, so it is imported only when an endpoint is opened.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
import sys
from contextlib import contextmanager, suppress
from threading import Event, Lock, Thread, local
from typing import TYPE_CHECKING, Literal

import certifi
import httpcore
import httpx
import openai

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from edgekit.routing.endpoints.keys import Key

Ended = Literal["", "cancelled", "deadline", "too long", "elsewhere", "encoded"]

CONNECT = 10.0
"""Most seconds to resolve and reach the host; the tier's deadline and stall may shorten it."""

_SENT = {"host", "accept", "connection", "content-type", "content-length"}
_LONGEST_ERROR = 65_536
_AFTER_FINISH = 2.0
_DRAIN = 0.05
_USER_AGENT = "edgekit"

_current = local()


class Call:
    """One request's control of its connection.

    Args:
        until: the deadline, on ``clock``.
        clock: monotonic time in seconds.
        most_bytes: most bytes of the answer.
    """

    def __init__(self, until: float, clock: Callable[[], float], most_bytes: int) -> None:
        self.ended: Ended = ""
        self.cancelled = Event()
        self.finished = False
        self._until = until
        self._clock = clock
        self._left = most_bytes
        self._patience: float | None = None
        self._lock = Lock()
        self._stream: _Stream | None = None

    @contextmanager
    def sending(self, key: Key) -> Iterator[None]:
        """Within the block, requests of this thread belong to this call."""
        _current.call, _current.key = self, key
        try:
            yield
        finally:
            _current.call = _current.key = None

    def remaining(self) -> float:
        """Return the seconds until the deadline."""
        return self._until - self._clock()

    def finish(self) -> None:
        """The answer is complete: wait only briefly for the rest."""
        self.finished = True
        self._patience = _AFTER_FINISH

    def drain(self) -> None:
        """Only the end of the body is still expected."""
        self._patience = _DRAIN

    def wait(self, timeout: float | None, error: type[Exception]) -> float:
        """Return the seconds that an operation on the socket may take; raise if cancelled or past the deadline."""
        if self.cancelled.is_set():
            self.ended = "cancelled"
            raise httpcore.ReadError("cancelled")
        left = self.remaining()
        if left <= 0:
            self.ended = "deadline"
            raise error("deadline")
        return min(t for t in (timeout, left, self._patience) if t is not None)

    def timed_out(self) -> None:
        """Record whether an operation timed out because of the deadline."""
        if self.remaining() <= 0:
            self.ended = "deadline"

    def count(self, data: bytes) -> None:
        """Count received bytes."""
        if self.cancelled.is_set():
            self.ended = "cancelled"
            raise httpcore.ReadError("cancelled")
        self._left -= len(data)
        if self._left < 0:
            self.ended = "too long"
            raise httpcore.ReadError("too long")

    def hold(self, stream: _Stream) -> None:
        """Use this connection from now on."""
        with self._lock:
            self._stream = stream

    def release(self) -> None:
        """Release the connection for other calls."""
        with self._lock:
            if self._stream is not None:
                self._stream.call = None
            self._stream = None

    def cancel(self) -> None:
        """Cut the connection from any thread, which wakes up its reader."""
        with self._lock:
            self.cancelled.set()
            if self._stream is not None:
                self._stream.cut()


class _Stream(httpcore.NetworkStream):
    """A socket with the limits of the call that uses it."""

    def __init__(self, inner: httpcore.NetworkStream, call: Call | None) -> None:
        self._inner = inner
        self.call = call
        if call is not None:
            call.hold(self)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        call = self.call
        if call is None:
            return self._inner.read(max_bytes, timeout)
        try:
            data = self._inner.read(max_bytes, call.wait(timeout, httpcore.ReadTimeout))
        except httpcore.ReadTimeout:
            call.timed_out()
            raise
        call.count(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        call: Call | None = getattr(_current, "call", None)
        if call is not None and call is not self.call:
            self.call = call
            call.hold(self)
        if call is None:
            self._inner.write(buffer, timeout)
            return
        try:
            self._inner.write(buffer, call.wait(timeout, httpcore.WriteTimeout))
        except httpcore.WriteTimeout:
            call.timed_out()
            raise

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        call = self.call
        wait = timeout if call is None else call.wait(timeout, httpcore.ConnectTimeout)
        try:
            inner = self._inner.start_tls(ssl_context, server_hostname, wait)
        except httpcore.ConnectTimeout:
            if call is not None:
                call.timed_out()
            raise
        return _Stream(inner, call)

    def get_extra_info(self, info: str) -> object:
        return self._inner.get_extra_info(info)

    def cut(self) -> None:
        """Shut the socket down below TLS, which unlike closing wakes up a reading thread."""
        sock = self._inner.get_extra_info("socket")
        with suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Network(httpcore.NetworkBackend):
    """Connects to one host only; resolving its name counts against the time."""

    def __init__(self, host: str, port: int) -> None:
        self._place = (host, port)
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        call: Call | None = getattr(_current, "call", None)
        if call is None or (host, port) != self._place:
            if call is not None:
                call.ended = "elsewhere"
            raise httpcore.ConnectError("not the tier's host")
        try:
            return self._connect(call, host, port, timeout, socket_options)
        except httpcore.ConnectTimeout:
            call.timed_out()
            raise

    def _connect(
        self,
        call: Call,
        host: str,
        port: int,
        timeout: float | None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None,
    ) -> httpcore.NetworkStream:
        addresses = _look_up(host, port, call.wait(timeout, httpcore.ConnectTimeout))
        failure: Exception = httpcore.ConnectError("no address")
        for address in addresses:
            wait = call.wait(timeout, httpcore.ConnectTimeout)
            try:
                inner = self._inner.connect_tcp(address, port, wait, socket_options=socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
                continue
            return _Stream(inner, call)
        raise failure

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ARG002
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        raise httpcore.ConnectError(f"not the tier's host: {path}")


def _look_up(host: str, port: int, wait: float) -> list[str]:
    """Resolve a host in a thread, as getaddrinfo has no timeout."""
    with suppress(ValueError):
        return [str(ipaddress.ip_address(host))]
    found: list[str] = []
    failed: list[OSError] = []

    def ask() -> None:
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.extend(dict.fromkeys(str(a[4][0]) for a in answers))
        except (OSError, UnicodeError) as error:
            failed.append(error if isinstance(error, OSError) else socket.gaierror(socket.EAI_NONAME, "not a name"))

    thread = Thread(target=ask, name="edgekit-dns", daemon=True)
    thread.start()
    thread.join(wait)
    if failed:
        try:
            raise failed[0]
        except OSError as error:  # chained as the context, as httpcore drops causes
            raise httpcore.ConnectError("name") from error
    if thread.is_alive():
        raise httpcore.ConnectTimeout("name")
    return found


class _Transport(httpx.HTTPTransport):
    """HTTP/1.1 to one host, without proxies, redirects, compression or environment variables."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        super().__init__(verify=context, trust_env=False)
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=None,
            max_keepalive_connections=20,
            keepalive_expiry=30.0,
            network_backend=_Network(host, port),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        _strip(request, _current.key)
        response = super().handle_request(request)
        call: Call = _current.call
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            response.close()
            call.ended = "encoded"
            raise httpx.DecodingError("compressed unasked", request=request)
        inner = response.stream
        if isinstance(inner, httpx.SyncByteStream):
            response.stream = _Body(inner, call, None if response.is_success else _LONGEST_ERROR)
        return response


def _strip(request: httpx.Request, key: Key) -> None:
    """Remove the headers that the client adds to describe the machine; add the key."""
    for name in [n for n in request.headers if n not in _SENT]:
        del request.headers[name]
    request.headers["user-agent"] = _USER_AGENT
    request.headers["accept-encoding"] = "identity"
    if key:
        request.headers["authorization"] = f"Bearer {key.reveal()}"


class _Body(httpx.SyncByteStream):
    """The body of an answer. If it is closed after the answer's end, the connection can be reused."""

    def __init__(self, inner: httpx.SyncByteStream, call: Call, most: int | None) -> None:
        self._inner = inner
        self._call = call
        self._most = most
        self._parts: Iterator[bytes] = iter(())

    def __iter__(self) -> Iterator[bytes]:
        self._parts = iter(self._inner)
        left = self._most
        for part in self._parts:
            if left is None:
                yield part
                continue
            yield part[:left]
            left -= len(part)
            if left <= 0:
                return

    def close(self) -> None:
        if self._call.finished and not self._call.ended:
            # The client stops reading at [DONE]; the end of the body follows, mostly in the same packet.
            self._call.drain()
            with suppress(httpx.HTTPError, httpcore.ReadTimeout, ValueError):
                for _, _ in zip(range(4), self._parts, strict=False):
                    pass
        self._inner.close()


def _trust(*, certificates: bool) -> ssl.SSLContext:
    """Make a client context as ssl and httpx do, but without reading the environment.

    ``certificates``: whether to load them, which takes a while and is useless without TLS.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if sys.version_info >= (3, 13):
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
    if certificates:
        context.load_verify_locations(certifi.where())
    return context


class _Quiet(logging.Filter):
    """Suppresses the client's DEBUG log of our requests, which would include prompts."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.DEBUG or getattr(_current, "call", None) is None


_QUIET = _Quiet()


def open_client(url: str, *, stall: float, deadline: float, verify: ssl.SSLContext | None) -> openai.OpenAI:
    """Open the official client on our own transport, which sends the key; the client never gets it."""
    place = httpx.URL(url)
    verify = verify or _trust(certificates=place.scheme == "https")
    verify.keylog_filename = None  # type: ignore[assignment]  # default contexts obey SSLKEYLOGFILE
    port = place.port or {"http": 80, "https": 443}[place.scheme]
    logging.getLogger("openai._base_client").addFilter(_QUIET)  # adding it twice has no effect
    return openai.OpenAI(
        api_key="none",
        base_url=url,
        max_retries=0,
        http_client=httpx.Client(
            transport=_Transport(place.raw_host.decode("ascii"), port, verify),
            timeout=httpx.Timeout(stall, connect=min(CONNECT, stall, deadline)),
            follow_redirects=False,
            trust_env=False,
        ),
    )
