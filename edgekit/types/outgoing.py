"""The content of a request that is sent to an endpoint: vetoes check it, and only checked content is sent.

``compose`` makes it, ``clearance.clear`` runs the vetoes on it, and ``endpoints`` posts only what was cleared.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgekit.types.reading import Reading, read

if TYPE_CHECKING:
    from edgekit.types.routing import Request, Trust

OURS = frozenset({"model", "stream", "stream_options", "n"})
"""Fields set by the tier and the router, which passthrough fields cannot change."""

_LONG = 7
"""Number of digits from which a sampling parameter might be a phone or card number."""


@dataclass(frozen=True)
class Outgoing:
    """Everything of a request that any endpoint gets, as JSON objects; a body has these two and the tier's own fields.

    ``asked``: messages or prompt, and passthrough fields. ``sampling``: sampling parameters, including stop strings; an
    endpoint may get fewer of these fields, never others. ``schema`` is the schema of the answer, which is checked too,
    although it is only sent as part of ``asked``. ``fault``: why nothing can be sent, "" if it can.
    """

    asked: str
    sampling: str
    schema: str = ""
    fault: str = ""

    @cached_property
    def reading(self) -> Reading:
        """Every string in it, including keys and numbers, as a receiver could decode it."""
        own = json.loads(self.sampling)
        numbers = {n: v for n, v in own.items() if not isinstance(v, list) and sum(map(str.isdigit, str(v))) >= _LONG}
        return read([json.loads(self.asked), own.get("stop", []), numbers, self.schema])


@dataclass(frozen=True)
class Cleared:
    """Content that every veto has checked, and the ``ceiling`` of trust it may be sent to.

    Made by ``clearance.clear``; see tests/test_clearance.py. ``because``: the reason for the ``ceiling``.
    """

    outgoing: Outgoing
    ceiling: Trust
    because: str

    @classmethod
    def of(cls, request: Request) -> Cleared:
        """Clear a request without policy and documents: only the request's own restrictions apply."""
        if request.private or request.override == "local-only":
            return cls(request.outgoing, "device", request.private or "the request is local-only")
        return cls(request.outgoing, "third-party", "no rule restricts it")


def compose(request: Request) -> Outgoing:
    """Make the content to send. Never raises.

    Passthrough fields override the request's own. top_k, min_p and repetition_penalty are not part of the protocol and
    are not sent; neither are parameters that were not set.
    """
    sampling = json.dumps(_sampling(request), ensure_ascii=False)
    try:
        asked = {**_said(request), **_passed(request.passthrough)}
        written = json.dumps(asked, ensure_ascii=False)
    except (ValueError, RecursionError):
        everything = json.dumps([request.text, request.passthrough], ensure_ascii=False)
        return Outgoing(everything, sampling, request.schema, "`passthrough` is not a JSON object")
    fault = "" if "messages" in asked or "prompt" in asked else "the request has neither messages nor a prompt"
    return Outgoing(written, sampling, request.schema, fault)


def _said(request: Request) -> dict[str, Any]:
    if request.messages:
        return {"messages": [{"role": m.role, "content": m.content} for m in request.messages]}
    return {"prompt": request.prompt} if request.prompt else {}


def _passed(passthrough: str) -> dict[str, Any]:
    passed = json.loads(passthrough) if passthrough else {}
    if not isinstance(passed, dict):
        raise ValueError("not an object")
    return {name: value for name, value in passed.items() if name not in OURS}


def _sampling(request: Request) -> dict[str, Any]:
    sampling = request.sampling
    fields: dict[str, Any] = {}
    if sampling.max_new_tokens is not None:
        fields["max_tokens"] = sampling.max_new_tokens
    # Rounded, because 1/3 has as many digits as a card number.
    if sampling.temperature is not None:
        fields["temperature"] = round(sampling.temperature, 4)
    if sampling.top_p != 1.0:
        fields["top_p"] = round(sampling.top_p, 4)
    if sampling.seed is not None and sampling.temperature != 0:
        fields["seed"] = sampling.seed
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    return fields
