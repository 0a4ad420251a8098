"""What is sent: a request in the words of the OpenAI protocol."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from edgekit.errors import CloudError

if TYPE_CHECKING:
    from edgekit.types.outgoing import Outgoing
    from edgekit.types.routing import Tier

OPTIONAL = frozenset({"max_tokens", "temperature", "top_p", "seed", "stream_options"})
"""Fields that some endpoints do not take, and without which the question is still the same one."""

_WORDS_OF_THE_PROTOCOL = frozenset({"model", "role", "type", "id", "tool_call_id", "stop", "tool_choice", "required"})


def make_body(outgoing: Outgoing, tier: Tier, refused: frozenset[str]) -> dict[str, Any]:
    """The JSON object to post: what is outgoing, what the tier says of itself, and nothing else.

    Args:
        outgoing: what was cleared.
        tier: its model and its most tokens.
        refused: fields of OPTIONAL that the endpoint was found not to take.

    Raises:
        CloudError: ``passthrough`` is not a JSON object, or there is nothing to ask.
    """
    if outgoing.fault:
        raise CloudError(f"tier '{tier.name}': {outgoing.fault}", "nothing was sent; look at what was asked")
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
    """All the texts in a body that somebody wrote, without the words of the protocol."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, dict):
        return tuple(t for k, v in value.items() if k not in _WORDS_OF_THE_PROTOCOL for t in texts(v))
    if isinstance(value, list):
        return tuple(t for v in value for t in texts(v))
    return ()
