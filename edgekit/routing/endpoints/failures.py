"""From what went wrong on the wire to an error that a person can act on, without key and prompt in it."""

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
"""What is at fault: ``account`` is the key, the bill or the address, ``nobody`` a request that was cancelled."""

AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504})
"""The statuses after which the same request may succeed."""

CANCELLED = "who asked went away: ask again"

_EXCERPT = 120
_SHARED = 12
_WHOLE = 3
"""An error shares fewer than ``_SHARED`` characters in a row with the prompt, and holds no text of ``_WHOLE`` whole."""


@dataclass(frozen=True)
class Failure:
    """What happened: the error to raise, whether a retry makes sense, and what is at fault.

    ``reason`` is the error without the tier's name. ``param``: the field that a 400 complains of, "" for none.
    """

    error: CloudError
    reason: str
    blame: Blame
    again: bool = False
    param: str = ""


@dataclass(frozen=True)
class Secrets:
    """What no error may hold."""

    key: Key
    texts: tuple[str, ...]

    def excerpt(self, text: object) -> str:
        """A short printable piece of what an endpoint said, "" where it repeats the prompt."""
        if not isinstance(text, str):
            return ""
        plain = " ".join("".join(c if c.isprintable() else " " for c in text[:4000]).split())
        masked = self.key.mask(re.sub(r"\b(sk|pk|key|tok|token)[-_][\w*.-]{4,}", "***", plain))
        low = _plain(masked)
        runs = {low[i : i + _SHARED] for i in range(max(1, len(low) - _SHARED + 1))}
        for said in map(_plain, self.texts):
            if len(said) >= _WHOLE and (said in low or any(run in said for run in runs)):
                return ""
        return masked if len(masked) <= _EXCERPT else masked[: _EXCERPT - 3] + "..."


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def explain(error: Exception, tier: Tier, secrets: Secrets, ended: Ended, shown: bool) -> Failure:
    """Say what an exception of the client, of httpx or of the parser means.

    Args:
        error: the exception.
        tier: whose it is.
        secrets: what must not be repeated.
        ended: what the connection knows of its end.
        shown: text of the answer had been given out.
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
        return make(tier, "sent a stream that is not what the protocol says", _PROTOCOL, shown=shown)
    return _connection(error, tier, shown)


_PROTOCOL = "is the URL that of an OpenAI-compatible endpoint? it ends in /v1 mostly"


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
    """A failure with its error."""
    cut = " after a part of the answer had been shown" if shown else ""
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
        return make(tier, "compressed its answer, which was not asked for", "is there a proxy before it?", shown=shown)
    return make(tier, "would have been asked at another host", "give the final URL in the policy", shown=shown)


def _status(error: Any, tier: Tier, secrets: Secrets, shown: bool) -> Failure:
    status: int = error.status_code
    body = error.body if isinstance(error.body, dict) else {}
    said = secrets.excerpt(body.get("message") or body.get("detail"))
    code = error.code if isinstance(error.code, str) and re.fullmatch(r"[a-z][a-z0-9_.-]{1,40}", error.code) else ""
    code = secrets.excerpt(code)
    wait = read_retry_after(error.response.headers)
    reason, hint, blame = _meaning(status, code, tier, secrets.key.source, wait)
    about = "".join(f": {s}" for s in (code, said) if s)
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
    """Reason, hint and what is at fault."""
    asks = f"it asks to wait {seconds(wait)}" if wait is not None else "ask less often, or raise the account's limit"
    key = f"look at the key in {source}" if source else "name its key: key_env or key_file"
    known: dict[int, tuple[str, str, Blame]] = {
        401: ("does not accept the key", key, "account"),
        402: ("wants to be paid", "look at the account's credit with the provider", "account"),
        403: ("refuses this account or this model", "may the key use the model?", "account"),
        404: (f"knows no model '{tier.model}', or the URL is wrong", "compare url and model", "account"),
        408: ("is in trouble", "try again later", "endpoint"),
        409: ("is in trouble", "try again later", "endpoint"),
        429: ("is asked too often", asks, "endpoint"),
    }
    if code == "insufficient_quota":
        return known[402]
    if status in known:
        return known[status]
    if status < 400:
        return "points to another address, which is not followed", "give the final URL in the policy", "account"
    if status >= 500:
        return "is in trouble", "try again later", "endpoint"
    return "does not accept the request", "compare what the endpoint can do with the tier's 'can'", "request"


def _param(body: Mapping[str, Any]) -> str:
    """The field that the endpoint does not take; max_tokens also where only the text names its successor."""
    if "max_completion_tokens" in str(body.get("message", "")) and "max_tokens" in str(body.get("message", "")):
        return "max_tokens"
    known = body.get("code") in ("unsupported_parameter", "unsupported_value", "unknown_parameter")
    return str(body.get("param") or "") if known else ""


def _event(error: Any, tier: Tier, secrets: Secrets, shown: bool) -> Failure:
    """An error that came as an event of the stream."""
    body = error.body if isinstance(error.body, dict) else {}
    said = secrets.excerpt(body.get("message"))
    code = body.get("code")
    again = (type(code) is int and code in AGAIN) or body.get("type") in ("server_error", "overloaded_error")
    reason = "broke off with an error" + (f": {said}" if said else "")
    return make(tier, reason, "try again later", again=again, shown=shown)


_NETWORK = "is the network there? is the URL right?"


def _connection(error: Exception, tier: Tier, shown: bool) -> Failure:
    import httpx

    chain = tuple(_causes(error))
    if any(isinstance(e, ssl.SSLError) for e in chain):
        return _tls(chain, tier)
    later = "try again later, or raise the tier's stall"
    unresolved = "was not found: its host has no address"
    # The first that fits. The last column: whether the same request may succeed a moment later.
    known: tuple[tuple[tuple[type[Exception], ...], str, str, bool], ...] = (
        ((socket.gaierror,), unresolved, _NETWORK, any(getattr(e, "errno", 0) == socket.EAI_AGAIN for e in chain)),
        ((ConnectionRefusedError,), "refused the connection", "is the server running? is the URL's port right?", True),
        ((httpx.ConnectTimeout, httpx.PoolTimeout), "could not be reached in time", _NETWORK, True),
        # A stall is not tried again: the endpoint may be at work, and the next tier is there sooner.
        ((httpx.TimeoutException,), f"sent nothing for {seconds(tier.stall)}", later, False),
        ((httpx.ConnectError,), "could not be reached", _NETWORK, True),
        ((httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError), *_CUT),
    )
    for kinds, reason, hint, again in known:
        if any(isinstance(e, kinds) for e in chain):
            return make(tier, reason, hint, again=again, shown=shown)
    return make(tier, f"could not be understood ({type(error).__name__})", _PROTOCOL, shown=shown)


def _tls(chain: tuple[BaseException, ...], tier: Tier) -> Failure:
    for error in chain:
        if isinstance(error, ssl.SSLCertVerificationError):
            reason = f"shows a certificate that is not accepted: {error.verify_message or 'not valid'}"
            hint = "nothing was sent; have the certificate renewed, or look at this machine's clock"
            return make(tier, reason, hint, "account")
    return make(tier, "does not speak TLS as it should", "is the URL's scheme right, https or http?")


_CUT = ("cut the connection", "try again later", True)


def cut_off(tier: Tier, shown: bool) -> Failure:
    """The connection ended before the answer did."""
    reason, hint, again = _CUT
    return make(tier, reason, hint, again=again, shown=shown)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that ``retry-after-ms`` or ``retry-after`` ask for (a number, or a date beside ``date``), or None."""
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
