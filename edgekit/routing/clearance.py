"""The seam where a request leaves the device: the vetoes read what would be sent, and nothing else is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.routing.decision.prechecks import find_ceiling
from edgekit.types.outgoing import Cleared

if TYPE_CHECKING:
    from edgekit.routing.retrieval import Grounding
    from edgekit.types.routing import Policy, Request


def clear(request: Request, policy: Policy, grounding: Grounding | None = None) -> Cleared:
    """Let every veto read what would be sent of a request.

    Args:
        request: as it is now, passages and all.
        policy: its ceiling and its rules.
        grounding: the documents some of which are private, None where there are none.

    Returns:
        What an endpoint may be given, and how far: an endpoint beyond the ceiling refuses it.
    """
    ceiling, because = find_ceiling(request, policy)
    quoted = grounding.find_quote(request) if grounding and ceiling != "device" else ""
    if quoted:
        ceiling, because = "device", f"it must stay on the device: {quoted}"
    return Cleared(request.outgoing, ceiling, because)
