"""Middleware before every route: access control, the limit of the body, and the access log.

Every page in the user's browser can reach a server on loopback, so requests must name a loopback host (against DNS
rebinding) and must not come from another site. Beyond loopback a token is required, except for /health.
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
"""Most seconds for receiving a body."""

_BROWSER_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True)
class Guard:
    """ASGI middleware.

    ``token``: "" if none is needed. ``any_host``: whether Host headers other than loopback's are accepted.
    ``rejected`` is called for every request that is rejected here.
    """

    app: ASGIApp
    token: str
    any_host: bool
    rejected: Callable[[HTTPStatus], None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, pass it on, and log it without its query and body."""
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
            # The application handles its own errors: this one is a refusal of _check, or a bug.
            refusal = explain_error(error)
            self.rejected(refusal.status)
            if not status:
                await refuse(refusal, self._challenge(request, refusal))(scope, receive, watch)
        path = scope["path"][:100].encode("ascii", "backslashreplace").decode()
        _LOG.info("%s %r %d %.3f s", request.method[:20], path, status, perf_counter() - started)

    def _check(self, request: Request) -> None:
        # Not request.url, which is built from the Host header that the client controls.
        if self.token and request.scope["path"] != _OPEN and not self._knows_token(request):
            problem = "missing or wrong token: send the header Authorization: Bearer TOKEN"
            raise Refusal(HTTPStatus.UNAUTHORIZED, problem, code="invalid_api_key")
        host = request.headers.get("host", "")
        if not self.any_host and _name(host) not in _LOOPBACK:
            raise Refusal(HTTPStatus.FORBIDDEN, "the Host header must name localhost", code="host_not_allowed")
        if host and not _name(host):
            raise bad_request("the Host header is not a name with an optional port", code="invalid_host")
        if request.method not in _ASKS:
            origin = request.headers.get("origin")
            # Compared, not parsed. The page's own origin may be https behind a TLS proxy.
            own = (f"http://{host}".lower(), f"https://{host}".lower())
            same = request.headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")
            if (origin is not None and origin.lower() not in own) or not same:
                raise Refusal(HTTPStatus.FORBIDDEN, "requests from other sites are refused", code="origin_not_allowed")
        if "websocket" in request.headers.get("upgrade", "").lower():
            raise bad_request("websockets are not supported", code="upgrade_not_supported")
        if "transfer-encoding" in request.headers and "content-length" in request.headers:
            # A proxy may have used the other header, which allows request smuggling.
            raise bad_request("Content-Length and Transfer-Encoding exclude each other", code="invalid_http")

    def _knows_token(self, request: Request) -> bool:
        """Accept Bearer from programs, and Basic with any user name from browsers, which prompt for it."""
        kind, _, value = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "basic":
            try:
                value = base64.b64decode(value, validate=True).decode().partition(":")[2]
            except ValueError:  # not base64, ASCII or UTF-8
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
    """Return the response for a Refusal."""
    return JSONResponse(refusal.body, refusal.status, {**refusal.headers, **(headers or {})})


async def read_body(request: Request, limit: int) -> bytes:
    """Read the body, up to ``limit`` bytes; the connection discards the rest.

    Raises:
        Refusal: 413 above the limit, at once if Content-Length exceeds it; 408 if it takes too long.
        ClientDisconnect: the client disconnected.
    """
    too_large = Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {limit:,} bytes", code="request_too_large"
    )
    announced = request.headers.get("content-length", "0")  # only digits, else the connection refuses it
    if len(announced) > 20 or int(announced) > limit:
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
    """Return the name in a Host header, without its port; "" if it is invalid."""
    found = _HOST.fullmatch(host)
    return found[1].strip("[]").rstrip(".").lower() if found else ""
