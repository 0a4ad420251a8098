"""Turn failures of the connection into errors that a user can act on, without key or prompt in them."""

from __future__ import annotations

import math
import re
import socket
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal

from edgekit.errors import CloudError
from edgekit.words import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edgekit.routing.endpoints.keys import Key
    from edgekit.routing.endpoints.wire import Ended
    from edgekit.types.routing import Tier

Blame = Literal["endpoint", "account", "request", "nobody"]
"""What is at fault: ``account`` is the key, the bill or the URL; ``nobody`` if the request was cancelled."""

AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""

CANCELLED = "ask again"

_EXCERPT = 120
_SHARED = 12
_WHOLE = 3
"""An error never repeats ``_SHARED`` characters in a row of the prompt, nor a whole text of at least ``_WHOLE``."""


@dataclass(frozen=True)
class Failure:
    """The error to raise, whether a retry makes sense (``again``), and what is at fault.

    ``reason`` is the error without the tier's name. ``param``: the field that a 400 complains about, "" for none.
    """

    error: CloudError
    reason: str
    blame: Blame
    again: bool = False
    param: str = ""


@dataclass(frozen=True)
class Secrets:
    """The key and the texts that no error may contain."""

    key: Key
    texts: tuple[str, ...]

    def excerpt(self, text: object) -> str:
        """Return a short printable excerpt of an endpoint's message, "" if it repeats the prompt."""
        if not isinstance(text, str):
            return ""
        plain = " ".join("".join(c if c.isprintable() else " " for c in text[:4000]).split())
        masked = self.key.mask(re.sub(r"\b(sk|pk|key|tok|token)[-_][\w*.-]{4,}", "***", plain))
        low = _plain(masked)
        runs = {low[i : i + _SHARED] for i in range(max(1, len(low) - _SHARED + 1))}
        for sent in map(_plain, self.texts):
            if len(sent) >= _WHOLE and (sent in low or any(run in sent for run in runs)):
                return ""
        return masked if len(masked) <= _EXCERPT else masked[: _EXCERPT - 3] + "..."


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def explain(error: Exception, tier: Tier, secrets: Secrets, ended: Ended, shown: bool) -> Failure:
    """Explain an exception of the client, of httpx or of the parser.

    Args:
        error: the exception.
        tier: the tier that was asked.
        secrets: what the error must not repeat.
        ended: why the connection was ended, "" if it was not.
        shown: whether text of the answer was already shown.
    """
    import openai

    if ended:
        return _ended(tier, ended, shown)
    if isinstance(error, openai.APIStatusError):
        return _status(error, tier, secrets, shown)
    if isinstance(error, openai.APIConnectionError):
        return _connection(error, tier, shown)
    if isinstance(error, openai.APIError):
        return _event(error, tier, secrets, shown)
    if isinstance(error, ValueError | RecursionError):
        return make(tier, "sent a stream that violates the protocol", _PROTOCOL, shown=shown)
    return _connection(error, tier, shown)


_PROTOCOL = "check that the URL is that of an OpenAI-compatible endpoint; most end in /v1"


def make(
    tier: Tier,
    reason: str,
    hint: str,
    blame: Blame = "endpoint",
    *,
    again: bool = False,
    status: int | None = None,
    retry_after: float | None = None,
    shown: bool = False,
    param: str = "",
) -> Failure:
    """Make a failure with its error."""
    cut = " after part of the answer was shown" if shown else ""
    message = f"tier '{tier.name}' {reason}{cut}"
    error = CloudError(message, hint, status=status, retry_after=retry_after, shown=shown)
    return Failure(error, reason, blame, again and not shown, param)


def _ended(tier: Tier, ended: Ended, shown: bool) -> Failure:
    if ended == "cancelled":
        return make(tier, "was cancelled", CANCELLED, "nobody", shown=shown)
    if ended == "deadline":
        reason = f"took longer than its deadline of {seconds(tier.deadline)}"
        return make(tier, reason, "raise the tier's deadline, or ask for a shorter answer", shown=shown)
    if ended == "too long":
        return make(tier, "sent more bytes than an answer may have", "ask for fewer tokens", shown=shown)
    if ended == "encoded":
        return make(tier, "compressed its answer unasked", "check whether a proxy does that", shown=shown)
    return make(tier, "redirects to another host", "give the final URL in the policy", shown=shown)


def _status(error: Any, tier: Tier, secrets: Secrets, shown: bool) -> Failure:
    status: int = error.status_code
    body = error.body if isinstance(error.body, dict) else {}
    message = secrets.excerpt(body.get("message") or body.get("detail"))
    code = error.code if isinstance(error.code, str) and re.fullmatch(r"[a-z][a-z0-9_.-]{1,40}", error.code) else ""
    code = secrets.excerpt(code)
    wait = read_retry_after(error.response.headers)
    reason, hint, blame = _meaning(status, code, tier, secrets.key.source, wait)
    about = "".join(f": {s}" for s in (code, message) if s)
    return make(
        tier,
        f"{reason} ({status}{about})",
        hint,
        blame,
        again=status in AGAIN and blame == "endpoint",
        status=status,
        retry_after=wait,
        shown=shown,
        param=_param(body) if status in (400, 422) else "",
    )


def _meaning(status: int, code: str, tier: Tier, source: str, wait: float | None) -> tuple[str, str, Blame]:
    """Return the reason, the hint and what is at fault."""
    asks = f"try again in {seconds(wait)}" if wait is not None else "ask less often, or raise the account's limit"
    key = f"check the key in {source}" if source else "give its key by key_env or key_file"
    later: tuple[str, str, Blame] = ("failed", "try again later", "endpoint")
    known: dict[int, tuple[str, str, Blame]] = {
        401: ("does not accept the key", key, "account"),
        402: ("requires payment", "check the account's credit with the provider", "account"),
        403: ("refuses this account or this model", "check that the key may use the model", "account"),
        404: (f"has no model '{tier.model}', or the URL is wrong", "check url and model of the tier", "account"),
        408: later,
        409: later,
        429: ("limits the rate of requests", asks, "endpoint"),
    }
    if code == "insufficient_quota":
        return known[402]
    if status in known:
        return known[status]
    if status < 400:
        return "redirects to another URL, which is not followed", "give the final URL in the policy", "account"
    if status >= 500:
        return later
    return "does not accept the request", "compare what the endpoint can do with the tier's 'can'", "request"


def _param(body: Mapping[str, Any]) -> str:
    """Return the field that the endpoint rejects; max_tokens also if only the message names its successor."""
    if "max_completion_tokens" in str(body.get("message", "")) and "max_tokens" in str(body.get("message", "")):
        return "max_tokens"
    known = body.get("code") in ("unsupported_parameter", "unsupported_value", "unknown_parameter")
    return str(body.get("param") or "") if known else ""


def _event(error: Any, tier: Tier, secrets: Secrets, shown: bool) -> Failure:
    """Explain an error that was sent as an event of the stream."""
    body = error.body if isinstance(error.body, dict) else {}
    message = secrets.excerpt(body.get("message"))
    code = body.get("code")
    again = (type(code) is int and code in AGAIN) or body.get("type") in ("server_error", "overloaded_error")
    reason = "broke off with an error" + (f": {message}" if message else "")
    return make(tier, reason, "try again later", again=again, shown=shown)


_NETWORK = "check the network and the URL"


def _connection(error: Exception, tier: Tier, shown: bool) -> Failure:
    import httpx

    chain = tuple(_causes(error))
    if any(isinstance(e, ssl.SSLError) for e in chain):
        return _tls(chain, tier)
    later = "try again later, or raise the tier's stall"
    unresolved = "was not found: its host has no address"
    # The first match counts. The last column: whether the same request may succeed a moment later.
    known: tuple[tuple[tuple[type[Exception], ...], str, str, bool], ...] = (
        ((socket.gaierror,), unresolved, _NETWORK, any(getattr(e, "errno", 0) == socket.EAI_AGAIN for e in chain)),
        ((ConnectionRefusedError,), "refused the connection", "check that the server runs on the URL's port", True),
        ((httpx.ConnectTimeout, httpx.PoolTimeout), "could not be reached in time", _NETWORK, True),
        # A stall is not retried: the endpoint may still be working, and the next tier answers sooner.
        ((httpx.TimeoutException,), f"sent nothing for {seconds(tier.stall)}", later, False),
        ((httpx.ConnectError,), "could not be reached", _NETWORK, True),
        ((httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError), *_CUT),
    )
    for kinds, reason, hint, again in known:
        if any(isinstance(e, kinds) for e in chain):
            return make(tier, reason, hint, again=again, shown=shown)
    return make(tier, f"sent an answer that cannot be read ({type(error).__name__})", _PROTOCOL, shown=shown)


def _tls(chain: tuple[BaseException, ...], tier: Tier) -> Failure:
    for error in chain:
        if isinstance(error, ssl.SSLCertVerificationError):
            reason = f"has a certificate that is not accepted: {error.verify_message or 'not valid'}"
            hint = "have the certificate renewed, or check this machine's clock; nothing was sent"
            return make(tier, reason, hint, "account")
    return make(tier, "failed the TLS handshake", "check the URL's scheme, https or http")


_CUT = ("cut the connection", "try again later", True)


def cut_off(tier: Tier, shown: bool) -> Failure:
    """Make the failure for a connection that ended before the answer."""
    reason, hint, again = _CUT
    return make(tier, reason, hint, again=again, shown=shown)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of ``retry-after-ms`` or ``retry-after`` (a number, or a date after ``date``), else None."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        with_unit = headers.get(name, "").strip()
        if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", with_unit):
            return float(with_unit) / unit
    try:
        when = parsedate_to_datetime(headers.get("retry-after", "")).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    try:
        now = parsedate_to_datetime(headers.get("date", "")).timestamp()
    except (ValueError, TypeError, OverflowError):
        now = time.time()
    return max(0.0, when - now) if math.isfinite(when) else None
