"""A real server on loopback that misbehaves as it is told: sockets and bytes, nothing in between."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trustme

from edgekit.routing.clearance import clear
from edgekit.types import Sampling
from edgekit.types.routing import Message, Policy, Request, Tier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from edgekit.types.outgoing import Cleared

KEY = "sk-secret-4f9a2b7c1d"
PROMPT = "The patient Erika Mustermann has a rare disease; what is to be done?"
SSE = {"content-type": "text/event-stream"}


@dataclass
class Heard:
    """One request as it came in."""

    line: str
    headers: dict[str, str]
    data: bytes

    @property
    def body(self) -> dict:
        return json.loads(self.data)

    @property
    def path(self) -> str:
        return self.line.split()[1]


@dataclass
class Connection:
    """The server's end of one request."""

    socket: socket.socket
    heard: Heard
    stopping: threading.Event

    def head(self, status: int = 200, *, length: int | None = None, **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
        lines.append("transfer-encoding: chunked" if length is None else f"content-length: {length}")
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())

    def plain(self, status: int, text: str, kind: str = "application/json", **headers: str) -> None:
        data = text.encode()
        self.head(status, length=len(data), content_type=kind, **headers)
        self.socket.sendall(data)

    def error(self, status: int, message: str = "no", code: str | None = None, param: str = "", **headers: str) -> None:
        problem = {"message": message, "code": code, "param": param or None, "type": "some_error"}
        self.plain(status, json.dumps({"error": problem}), **headers)

    def chunk(self, data: bytes) -> None:
        self.socket.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def event(self, value: object) -> None:
        self.chunk(b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n")

    def stream(self, **headers: str) -> None:
        self.head(200, content_type="text/event-stream; charset=utf-8", **headers)

    def say(self, *pieces: str) -> None:
        for piece in pieces:
            if "messages" in self.heard.body:
                self.event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
            else:
                self.event({"choices": [{"index": 0, "text": piece, "finish_reason": None}]})

    def end(self, finish: str = "stop", usage: tuple[int, int] | None = (11, 3)) -> None:
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        if usage is not None:
            self.event({"choices": [], "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}})
        self.event(b"[DONE]")
        self.socket.sendall(b"0\r\n\r\n")

    def answer(self, *pieces: str) -> None:
        self.stream()
        self.say(*pieces)
        self.end()

    def hang(self) -> None:
        """Say nothing until the client is gone or the test is over."""
        self.socket.settimeout(0.05)
        while not self.stopping.is_set():
            with suppress(TimeoutError):
                if not self.socket.recv(1):
                    return

    def cut(self) -> None:
        """End the connection in the middle."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


@dataclass
class Server:
    """What came in, and where to reach it."""

    url: str
    port: int
    heard: list[Heard] = field(default_factory=list)
    connections: int = 0
    gone: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serve(*scripts: Callable[[Connection], None], tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Answer the n-th request by the n-th script, and all that follow by the last."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = Server(f"{'https' if tls else 'http'}://127.0.0.1:{port}/v1", port)
    stopping = threading.Event()
    threads: list[threading.Thread] = []
    lock = threading.Lock()

    def attend(raw: socket.socket) -> None:
        with suppress(OSError), raw:
            peer = tls.wrap_socket(raw, server_side=True) if tls else raw
            with peer:
                while (heard := hear(peer)) is not None:
                    with lock:
                        script = scripts[min(len(server.heard), len(scripts) - 1)]
                        server.heard.append(heard)
                    script(Connection(peer, heard, stopping))
        server.gone.set()

    def accept() -> None:
        with suppress(OSError):
            while True:
                raw, _ = listener.accept()
                server.connections += 1
                raw.settimeout(5)
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                thread = threading.Thread(target=attend, args=(raw,), daemon=True)
                threads.append(thread)
                thread.start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield server
    finally:
        stopping.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(2)


def hear(peer: socket.socket) -> Heard | None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = peer.recv(65536)
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    headers = {k.strip().lower(): v.strip() for k, _, v in (f.partition(":") for f in fields)}
    while len(body) < int(headers.get("content-length", 0)):
        body += peer.recv(65536)
    return Heard(line, headers, body)


def tier(url: str, **changed: object) -> Tier:
    fields = {
        "name": "far",
        "trust": "third-party",
        "url": url,
        "model": "big-model",
        "key_env": "FAR_KEY",
        "deadline": 5.0,
        "stall": 1.0,
        "retries": 0,
    }
    return Tier(**{**fields, **changed})  # type: ignore[arg-type]


def cleared(request: Request) -> Cleared:
    """What an endpoint takes: there is no rule against it."""
    return clear(request, Policy("none"))


def question(text: str = PROMPT, **changed: object) -> Cleared:
    sampling = changed.pop("sampling", Sampling(max_new_tokens=50))
    return cleared(Request(messages=(Message("user", text),), sampling=sampling, **changed))  # type: ignore[arg-type]


def secure(ca: trustme.CA, name: str = "127.0.0.1", **more: datetime) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(name, **more).configure_cert(context)
    return context


def trusting(*authorities: trustme.CA) -> dict[str, ssl.SSLContext]:
    context = ssl.create_default_context()
    for ca in authorities:
        ca.configure_trust(context)
    return {"verify": context}
