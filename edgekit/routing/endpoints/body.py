"""Build the body of a request in the OpenAI protocol."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from edgekit.errors import CloudError

if TYPE_CHECKING:
    from edgekit.types.outgoing import Outgoing
    from edgekit.types.routing import Tier

OPTIONAL = frozenset({"max_tokens", "temperature", "top_p", "seed", "stream_options"})
"""Fields that some endpoints reject, and that can be dropped without changing the question."""

_WORDS_OF_THE_PROTOCOL = frozenset({"model", "role", "type", "id", "tool_call_id", "stop", "tool_choice", "required"})


def make_body(outgoing: Outgoing, tier: Tier, refused: frozenset[str]) -> dict[str, Any]:
    """Build the JSON object to post, only from the outgoing part and the tier's settings.

    Args:
        outgoing: the cleared part of the request.
        tier: the tier with the model and ``max_output``.
        refused: fields of OPTIONAL that the endpoint has rejected before.

    Raises:
        CloudError: ``passthrough`` is not a JSON object, or there is nothing to ask.
    """
    if outgoing.fault:
        raise CloudError(f"tier '{tier.name}': {outgoing.fault}", "check the request; nothing was sent")
    asked, ours = json.loads(outgoing.asked), json.loads(outgoing.sampling)
    if tier.max_output is not None:
        ours["max_tokens"] = min(ours.get("max_tokens", tier.max_output), tier.max_output)
    if "max_tokens" in ours and "max_tokens" in refused:
        ours["max_completion_tokens"] = ours["max_tokens"]
    ours = {name: value for name, value in ours.items() if name not in refused}
    if "max_completion_tokens" in asked:
        ours.pop("max_tokens", None)
    fixed: dict[str, Any] = {"model": tier.model, "stream": True}
    if "stream_options" not in refused:
        fixed["stream_options"] = {"include_usage": True}
    return {**ours, **asked, **fixed}


def texts(value: object) -> tuple[str, ...]:
    """Return all texts in a body, except the values of the protocol itself."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, dict):
        return tuple(t for k, v in value.items() if k not in _WORDS_OF_THE_PROTOCOL for t in texts(v))
    if isinstance(value, list):
        return tuple(t for v in value for t in texts(v))
    return ()
