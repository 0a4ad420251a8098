"""Error responses in OpenAI's format, with a status for each reason why nobody answered.

======================================  ======  ==========================  =====================================
verdict                                 status  ``code``                    meaning for a client
======================================  ======  ==========================  =====================================
``context``                             400     context_length_exceeded     shorten the prompt
``empty``                               400     empty_prompt                there is nothing to continue
``template``                            400     template_refused            the message is the template's own
``no-template``                         400     no_chat_template            this model only continues text
``capability``, ``language``            400     unsupported                 no permitted tier supports this
``privacy``                             403     privacy                     the device could not, others may not
a local answer failed its checks        422     answer_refused              a retry gives the same answer
``money``                               429     budget_exceeded             wait until tomorrow, or raise the budget
``memory``, ``latency``, ``battery``,   503     unavailable                 try again later
``thermal``, ``reachable``
======================================  ======  ==========================  =====================================

If an immediate retry cannot help, the header ``x-should-retry: false`` tells OpenAI's clients so.
"""

from __future__ import annotations

import logging
import traceback
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError, RouteError, RunError

if TYPE_CHECKING:
    from edgekit.types.routing import Verdict

_LOG = logging.getLogger("edgekit.serve")

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
    "empty": (HTTPStatus.BAD_REQUEST, "empty_prompt"),
    "template": (HTTPStatus.BAD_REQUEST, "template_refused"),
    "no-template": (HTTPStatus.BAD_REQUEST, "no_chat_template"),
    "capability": (HTTPStatus.BAD_REQUEST, "unsupported"),
    "language": (HTTPStatus.BAD_REQUEST, "unsupported"),
    "privacy": (HTTPStatus.FORBIDDEN, "privacy"),
    "money": (HTTPStatus.TOO_MANY_REQUESTS, "budget_exceeded"),
    **dict.fromkeys(_CHECKED, (HTTPStatus.UNPROCESSABLE_ENTITY, "answer_refused")),
}


class Refusal(Exception):
    """An error response to a request.

    Args:
        status: the HTTP status.
        message: what is wrong, and what to do.
        param: the field of the request that is at fault, None for none.
        code: a stable identifier.
        retry_after: seconds after which to retry, None for no header.
        verdict: the router's verdict, if there was one.
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
        """Make the error of a verdict that nobody answers."""
        status, code = _VERDICTS.get(verdict.code, (HTTPStatus.SERVICE_UNAVAILABLE, "unavailable"))
        return cls(status, verdict.reason, code=code, verdict=verdict)

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object, to be sent as JSON."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """The headers that say when to retry, or not to."""
        if self.retry_after is not None:
            return {"retry-after": str(self.retry_after)}
        again = self.status is HTTPStatus.SERVICE_UNAVAILABLE
        return {} if again else {"x-should-retry": "false"}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """Make a 400: the request itself is invalid."""
    return Refusal(HTTPStatus.BAD_REQUEST, message, param=param, code=code)


def explain_error(error: BaseException) -> Refusal:
    """Turn an exception into an error response. Unexpected ones are logged with their traceback, not their message."""
    match error:
        case Refusal():
            # The traceback's frames hold the exception: the cycle would keep the whole connection until a collection.
            return error.with_traceback(None)
        case RunError():
            return Refusal(HTTPStatus.BAD_REQUEST, _two_lines(error), code="cannot_run")
        case RouteError():
            return bad_request(_two_lines(error), "response_format", "invalid_schema")
        case EdgekitError():
            return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, _two_lines(error), code="unavailable")
    # Not logging.exception: the message of an unexpected error may contain a prompt.
    _LOG.error("%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
    return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "a bug in edgekit; see the server's log", code="bug")


def _two_lines(error: EdgekitError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message
