"""The point where a request leaves the device: the vetoes read exactly what would be sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.routing.decision.prechecks import find_ceiling
from edgekit.types.outgoing import Cleared

if TYPE_CHECKING:
    from edgekit.routing.retrieval import Grounding
    from edgekit.types.routing import Policy, Request


def clear(request: Request, policy: Policy, grounding: Grounding | None = None) -> Cleared:
    """Apply every veto to the part of a request that would be sent.

    Args:
        request: the request in its final form, passages included.
        policy: the policy with the ceiling and the privacy rules.
        grounding: the user's documents, some of which are private; None if there are none.

    Returns:
        What may be sent, and the trust it is cleared for: an endpoint beyond that ceiling refuses it.
    """
    ceiling, because = find_ceiling(request, policy)
    quoted = grounding.find_quote(request) if grounding and ceiling != "device" else ""
    if quoted:
        ceiling, because = "device", f"the request must stay on the device: {quoted}"
    return Cleared(request.outgoing, ceiling, because)
