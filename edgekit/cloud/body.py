"""What is sent: a request in the words of the OpenAI protocol."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from edgekit.errors import CloudError

if TYPE_CHECKING:
    from edgekit.routing import Request, Tier

OPTIONAL = frozenset({"max_tokens", "temperature", "top_p", "seed", "stream_options"})
"""Fields that some endpoints do not take, and without which the question is still the same one."""

_OURS = frozenset({"model", "stream", "stream_options", "n"})
_WORDS_OF_THE_PROTOCOL = frozenset({"model", "role", "type", "id", "tool_call_id", "stop", "tool_choice", "required"})


def make_body(request: Request, tier: Tier, refused: frozenset[str]) -> dict[str, Any]:
    """The JSON object to post. What the request passes through stands above what it says itself.

    Model and streaming are the tier's and ours: nothing that is passed through changes them. top_k, min_p and
    repetition_penalty are not part of the protocol and are not sent; neither is seed 0, which asks for nothing.

    Args:
        request: messages, or a prompt.
        tier: its model and its most tokens.
        refused: fields of OPTIONAL that the endpoint was found not to take.

    Raises:
        CloudError: ``passthrough`` is not a JSON object, or there is nothing to ask.
    """
    passed = _read(request, tier)
    sampling = request.sampling
    tokens = sampling.max_new_tokens if tier.max_output is None else min(sampling.max_new_tokens, tier.max_output)
    ours: dict[str, Any] = {"max_tokens": tokens, "temperature": sampling.temperature}
    if sampling.top_p != 1.0:
        ours["top_p"] = sampling.top_p
    if sampling.temperature > 0 and sampling.seed:
        ours["seed"] = sampling.seed
    if "max_tokens" in refused:
        ours["max_completion_tokens"] = ours["max_tokens"]
    if sampling.stop:
        ours["stop"] = list(sampling.stop)
    ours = {name: value for name, value in ours.items() if name not in refused}
    if "max_completion_tokens" in passed:
        ours.pop("max_tokens", None)
    said = _said(request, passed, tier)
    fixed: dict[str, Any] = {"model": tier.model, "stream": True}
    if "stream_options" not in refused:
        fixed["stream_options"] = {"include_usage": True}
    return {**said, **ours, **passed, **fixed}


def _read(request: Request, tier: Tier) -> dict[str, Any]:
    if not request.passthrough:
        return {}
    try:
        passed = json.loads(request.passthrough)
    except (ValueError, RecursionError):
        passed = None
    if not isinstance(passed, dict):
        raise CloudError(f"tier '{tier.name}': what is to be passed through is not a JSON object", "nothing was sent")
    return {name: value for name, value in passed.items() if name not in _OURS}


def _said(request: Request, passed: dict[str, Any], tier: Tier) -> dict[str, Any]:
    if request.messages:
        return {"messages": [{"role": m.role, "content": m.content} for m in request.messages]}
    if request.prompt:
        return {"prompt": request.prompt}
    if "messages" in passed or "prompt" in passed:
        return {}
    raise CloudError(f"tier '{tier.name}': there is nothing to ask: no messages and no prompt", "nothing was sent")


def texts(value: object) -> tuple[str, ...]:
    """All the texts in a body that somebody wrote, without the words of the protocol."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, dict):
        return tuple(t for k, v in value.items() if k not in _WORDS_OF_THE_PROTOCOL for t in texts(v))
    if isinstance(value, list):
        return tuple(t for v in value for t in texts(v))
    return ()
