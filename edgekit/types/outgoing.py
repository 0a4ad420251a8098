"""What an endpoint is sent of a request, made in one place: vetoes read it, and only what they have read is sent.

``compose`` makes it, ``clearance.clear`` lets the vetoes read it, and ``endpoints`` posts nothing but what was cleared.
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
"""Fields that the tier and the router set: nothing that is passed through changes them."""

_LONG = 7
"""Digits from which on one of the router's own numbers may be more than a number: a telephone's, a card's."""


@dataclass(frozen=True)
class Outgoing:
    """All of a request that any endpoint gets, as JSON objects: a body is these two and what the tier itself says.

    ``asked``: what was said and what is passed through. ``sampling``: how to answer, stop strings among it; an endpoint
    may get fewer of these fields, never others. ``schema`` is what the answer must satisfy: read as well, though only
    what ``asked`` says of it is sent. ``fault``: why nothing can be sent, "" if it can.
    """

    asked: str
    sampling: str
    schema: str = ""
    fault: str = ""

    @cached_property
    def reading(self) -> Reading:
        """Every text in it, keys and numbers among them, as whoever receives it could read it."""
        own = json.loads(self.sampling)
        numbers = {n: v for n, v in own.items() if not isinstance(v, list) and sum(map(str.isdigit, str(v))) >= _LONG}
        return read([json.loads(self.asked), own.get("stop", []), numbers, self.schema])


@dataclass(frozen=True)
class Cleared:
    """What every veto has read, and how far it may go. Made by ``clearance.clear``; see tests/test_clearance.py.

    ``because``: what set the ``ceiling``, in words.
    """

    outgoing: Outgoing
    ceiling: Trust
    because: str

    @classmethod
    def of(cls, request: Request) -> Cleared:
        """For a caller without a policy and without documents: the request's own word is all there is to keep."""
        if request.private or request.override == "local-only":
            return cls(request.outgoing, "device", request.private or "it says local-only")
        return cls(request.outgoing, "third-party", "nothing is said against it")


def compose(request: Request) -> Outgoing:
    """What would be sent. Never raises.

    What the request passes through stands above what it says itself. top_k, min_p and repetition_penalty are not part
    of the protocol and are not sent; neither is what nobody asked for.
    """
    sampling = json.dumps(_sampling(request), ensure_ascii=False)
    try:
        asked = {**_said(request), **_passed(request.passthrough)}
        written = json.dumps(asked, ensure_ascii=False)
    except (ValueError, RecursionError):
        everything = json.dumps([request.text, request.passthrough], ensure_ascii=False)
        return Outgoing(everything, sampling, request.schema, "what is to be passed through is not a JSON object")
    fault = "" if "messages" in asked or "prompt" in asked else "there is nothing to ask: no messages and no prompt"
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
    told: dict[str, Any] = {}
    if sampling.max_new_tokens is not None:
        told["max_tokens"] = sampling.max_new_tokens
    # Rounded: a third has as many digits as a card's number.
    if sampling.temperature is not None:
        told["temperature"] = round(sampling.temperature, 4)
    if sampling.top_p != 1.0:
        told["top_p"] = round(sampling.top_p, 4)
    if sampling.seed is not None and sampling.temperature != 0:
        told["seed"] = sampling.seed
    if sampling.stop:
        told["stop"] = list(sampling.stop)
    return told
