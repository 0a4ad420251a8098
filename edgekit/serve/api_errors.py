"""What clients are told when there is no answer: OpenAI's shape of an error, with a status that tells what to do.

======================================  ======  ==========================  =====================================
why nobody answered (the verdict)       status  ``code``                    what it means to a client
======================================  ======  ==========================  =====================================
``context``                             400     context_length_exceeded     shorten the prompt
``empty``                               400     empty_prompt                there is nothing to continue
``template``                            400     template_refused            the template's own words say why
``no-template``                         400     no_chat_template            this model continues texts only
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


def explain_error(error: BaseException) -> Refusal:
    """What a client is told of an error. What we did not foresee is logged by its place, not its words."""
    match error:
        case Refusal():
            # Whoever caught it stands in its traceback and holds it: together they would wait for a collection, and
            # the whole connection with them.
            return error.with_traceback(None)
        case RunError():
            return Refusal(HTTPStatus.BAD_REQUEST, _two_lines(error), code="cannot_run")
        case RouteError():
            return bad_request(_two_lines(error), "response_format", "invalid_schema")
        case EdgekitError():
            return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, _two_lines(error), code="unavailable")
    # Not logging.exception: the message of an unforeseen error may hold a prompt.
    _LOG.error("%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
    return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "a bug in edgekit; the server's log has its place", code="bug")


def _two_lines(error: EdgekitError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message
