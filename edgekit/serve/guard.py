"""What stands before every route: who may ask at all, how much may be sent, and the access log.

A server on loopback is reached by every page in the user's browser, so requests must name a loopback host (against DNS
rebinding) and must not come from another site. Beyond loopback a token is required: for everything but /health.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import logging
import re
from dataclasses import dataclass
from http import HTTPStatus
from time import perf_counter
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse

from edgekit.serve.api_errors import Refusal, bad_request, explain_error
from edgekit.serve.connections import PROVED

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOG = logging.getLogger("edgekit.serve.access")
_LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))
_OPEN = "/health"
_ASKS = ("GET", "HEAD")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{0,5})?", re.IGNORECASE | re.ASCII)
_SLOWEST_BODY = 60.0
"""Seconds that a body may take."""

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
            scope["state"][PROVED] = True
            await self.app(scope, receive, watch)
        except Exception as error:
            # The application's own errors are answers already: what arrives here was refused, or is a bug.
            refusal = explain_error(error)
            self.rejected(refusal.status)
            if not status:
                await refuse(refusal, self._challenge(request, refusal))(scope, receive, watch)
        path = scope["path"][:100].encode("ascii", "backslashreplace").decode()
        _LOG.info("%s %r %d %.3f s", request.method[:20], path, status, perf_counter() - started)

    def _check(self, request: Request) -> None:
        # Not request.url: it is put together from the Host that the client claims.
        if self.token and request.scope["path"] != _OPEN and not self._knows_token(request):
            raise Refusal(
                HTTPStatus.UNAUTHORIZED, "a token is needed: Authorization: Bearer TOKEN", code="invalid_api_key"
            )
        host = request.headers.get("host", "")
        if not self.any_host and _name(host) not in _LOOPBACK:
            raise Refusal(HTTPStatus.FORBIDDEN, "this server answers to localhost only", code="host_not_allowed")
        if host and not _name(host):
            raise bad_request("Host is no name with a port", code="invalid_host")
        if request.method not in _ASKS:
            origin = request.headers.get("origin")
            # Compared, not parsed. The page's own may be https where TLS ends before us.
            own = (f"http://{host}".lower(), f"https://{host}".lower())
            same = request.headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")
            if (origin is not None and origin.lower() not in own) or not same:
                raise Refusal(HTTPStatus.FORBIDDEN, "requests of other sites are refused", code="origin_not_allowed")
        if "websocket" in request.headers.get("upgrade", "").lower():
            raise bad_request("no websockets are spoken here", code="upgrade_not_supported")
        if "transfer-encoding" in request.headers and "content-length" in request.headers:
            # Whoever stands between may have believed the other one: that is how requests are smuggled.
            raise bad_request("Content-Length and Transfer-Encoding exclude one another", code="invalid_http")

    def _knows_token(self, request: Request) -> bool:
        """Bearer for programs; Basic with any name for browsers, which ask for it themselves."""
        kind, _, value = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "basic":
            try:
                value = base64.b64decode(value, validate=True).decode().partition(":")[2]
            except ValueError:  # no base64, no ASCII, no UTF-8
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
    """All that a client sends, up to ``limit`` bytes; what comes beyond is the connection's affair.

    Raises:
        Refusal: 413 beyond the limit, at once where it is announced; 408 where it takes too long.
        ClientDisconnect: it went away.
    """
    too_large = Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {limit:,} bytes", code="request_too_large"
    )
    told = request.headers.get("content-length", "0")  # of digits only, or the connection would have refused it
    if len(told) > 20 or int(told) > limit:
        raise too_large
    chunks: list[bytes] = []
    length = 0
    try:
        async with asyncio.timeout(_SLOWEST_BODY):
            async for chunk in request.stream():
                length += len(chunk)
                if length > limit:
                    break
                chunks.append(chunk)
    except TimeoutError:
        raise Refusal(HTTPStatus.REQUEST_TIMEOUT, "the body took too long to arrive", code="request_timeout") from None
    if length > limit:
        raise too_large
    return b"".join(chunks)


def _name(host: str) -> str:
    """The name in a Host header, without its port; "" where there is none."""
    found = _HOST.fullmatch(host)
    return found[1].strip("[]").rstrip(".").lower() if found else ""
