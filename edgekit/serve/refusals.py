"""What clients are told when there is no answer: OpenAI's shape of an error, with a status that tells what to do.

======================================  ======  ==========================  =====================================
why nobody answered (the verdict)       status  ``code``                    what it means to a client
======================================  ======  ==========================  =====================================
``context``                             400     context_length_exceeded     shorten the prompt
``capability``, ``language``            400     unsupported                 nobody allowed can do this
``privacy``                             403     privacy                     the device could not, others may not
a local answer failed its checks        422     answer_refused              asking again gives the same
``money``                               429     budget_exceeded             until tomorrow, or a larger budget
``memory``, ``latency``, ``battery``,   503     unavailable                 later
``thermal``, ``reachable``
======================================  ======  ==========================  =====================================

Where trying again at once cannot help, ``x-should-retry: false`` says so to OpenAI's clients.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.routing import Verdict

_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.INTERNAL_SERVER_ERROR: "server_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "server_error",
}
_CHECKED = ("ended", "repetition", "schema", "quality", "prefix")
_VERDICTS: dict[str, tuple[HTTPStatus, str]] = {
    "context": (HTTPStatus.BAD_REQUEST, "context_length_exceeded"),
    "capability": (HTTPStatus.BAD_REQUEST, "unsupported"),
    "language": (HTTPStatus.BAD_REQUEST, "unsupported"),
    "privacy": (HTTPStatus.FORBIDDEN, "privacy"),
    "money": (HTTPStatus.TOO_MANY_REQUESTS, "budget_exceeded"),
    **dict.fromkeys(_CHECKED, (HTTPStatus.UNPROCESSABLE_ENTITY, "answer_refused")),
}


class Refusal(Exception):
    """A request that gets no answer.

    Args:
        status: of HTTP.
        message: what is wrong, and what to do.
        param: the field of the request that is to blame, None for none.
        code: a stable word.
        retry_after: seconds after which it is worth trying again; None says nothing.
        verdict: the router's, where it got that far.
    """

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        verdict: Verdict | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after
        self.verdict = verdict

    @classmethod
    def of_verdict(cls, verdict: Verdict) -> Refusal:
        """Why nobody answers."""
        status, code = _VERDICTS.get(verdict.code, (HTTPStatus.SERVICE_UNAVAILABLE, "unavailable"))
        return cls(status, verdict.reason, code=code, verdict=verdict)

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's object, to be sent as JSON."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Beside the body: when to come again, or that it is no use."""
        if self.retry_after is not None:
            return {"retry-after": str(self.retry_after)}
        again = self.status is HTTPStatus.SERVICE_UNAVAILABLE
        return {} if again else {"x-should-retry": "false"}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """400: the request itself cannot be served."""
    return Refusal(HTTPStatus.BAD_REQUEST, message, param=param, code=code)
