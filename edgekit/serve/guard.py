"""What stands before every route: who may ask at all, how much may be sent, and the access log.

A server on loopback is reached by every page in the user's browser, so requests must name a loopback host (against DNS
rebinding) and must not come from another site. Beyond loopback a token is required: for everything but /health.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import logging
from dataclasses import dataclass
from http import HTTPStatus
from time import perf_counter
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse

from edgekit.serve.refusals import Refusal, bad_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOG = logging.getLogger("edgekit.serve.access")
_LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))
_OPEN = "/health"
_ASKS = ("GET", "HEAD")
_SLOWEST_BODY = 60.0
"""Seconds that a body may take."""

_DISCARDED = 64 << 20
"""Bytes beyond the limit that are read and dropped: a client that is still sending would never see its error."""

_BROWSER_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True)
class Guard:
    """ASGI middleware.

    ``token``: "" where none is needed. ``any_host``: whether names other than loopback's are answered.
    ``rejected`` hears of every request that was turned away here.
    """

    app: ASGIApp
    token: str
    any_host: bool
    rejected: Callable[[HTTPStatus], None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, hand it on, and log it without its query and body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = perf_counter()
        status = 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(k.encode(), v.encode()) for k, v in _BROWSER_HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        request = Request(scope)
        try:
            self._check(request)
        except Refusal as refusal:
            self.rejected(refusal.status)
            await refuse(refusal, self._challenge(request, refusal))(scope, receive, watch)
        else:
            await self.app(scope, receive, watch)
        path = scope["path"][:100].encode("ascii", "backslashreplace").decode()
        _LOG.info("%s %r %d %.3f s", request.method, path, status, perf_counter() - started)

    def _check(self, request: Request) -> None:
        if self.token and request.url.path != _OPEN and not self._knows_token(request):
            raise Refusal(
                HTTPStatus.UNAUTHORIZED, "a token is needed: Authorization: Bearer TOKEN", code="invalid_api_key"
            )
        host = request.headers.get("host", "")
        if not self.any_host and _name(host) not in _LOOPBACK:
            raise Refusal(HTTPStatus.FORBIDDEN, "this server answers to localhost only", code="host_not_allowed")
        if request.method not in _ASKS:
            origin = request.headers.get("origin")
            if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
                raise Refusal(HTTPStatus.FORBIDDEN, "requests of other sites are refused", code="origin_not_allowed")
            if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                raise Refusal(HTTPStatus.FORBIDDEN, "requests of other sites are refused", code="origin_not_allowed")

    def _knows_token(self, request: Request) -> bool:
        """Bearer for programs; Basic with any name for browsers, which ask for it themselves."""
        kind, _, value = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "basic":
            try:
                value = base64.b64decode(value, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        elif kind.lower() != "bearer":
            return False
        return hmac.compare_digest(value.strip().encode("utf-8", "replace"), self.token.encode())

    @staticmethod
    def _challenge(request: Request, refusal: Refusal) -> dict[str, str]:
        if refusal.status is not HTTPStatus.UNAUTHORIZED:
            return {}
        browser = "text/html" in request.headers.get("accept", "")
        return {"www-authenticate": 'Basic realm="edgekit"' if browser else "Bearer"}


def refuse(refusal: Refusal, headers: dict[str, str] | None = None) -> JSONResponse:
    """The response for a Refusal."""
    return JSONResponse(refusal.body, refusal.status, {**refusal.headers, **(headers or {})})


async def read_body(request: Request, limit: int) -> bytes:
    """All that a client sends, up to ``limit`` bytes.

    Raises:
        Refusal: 413 beyond the limit, 408 where it takes too long, 400 where the client's Content-Length is no number.
        ClientDisconnect: it went away.
    """
    told = request.headers.get("content-length")
    if told is not None and not told.isdecimal():
        raise bad_request("Content-Length is not a number")
    too_large = Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {limit:,} bytes", code="request_too_large"
    )
    waits = request.headers.get("expect", "").lower() == "100-continue"
    if told is not None and int(told) > limit and (waits or int(told) > limit + _DISCARDED):
        raise too_large
    chunks: list[bytes] = []
    length = 0
    try:
        async with asyncio.timeout(_SLOWEST_BODY):
            async for chunk in request.stream():
                length += len(chunk)
                if length <= limit:
                    chunks.append(chunk)
                else:
                    chunks.clear()
                    if length > limit + _DISCARDED:
                        break
    except TimeoutError:
        raise Refusal(HTTPStatus.REQUEST_TIMEOUT, "the body took too long to arrive", code="request_timeout") from None
    if length > limit:
        raise too_large
    return b"".join(chunks)


def _name(host: str) -> str:
    """The name in a Host header, without its port; "" for none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""
