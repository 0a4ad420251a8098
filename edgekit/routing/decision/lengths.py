"""How long an answer may get where the request does not say: as long as fits, as the policy allows, as its money buys.

Nothing here is a usual length: what nobody said stays unsaid, and is not held against anyone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgekit.types.routing import DEVICE

if TYPE_CHECKING:
    from edgekit.types.routing import Budget, Request, Tier, Verdict


def most_told(request: Request, tier: Tier, budget: Budget, spent: float) -> int | None:
    """The most new tokens that an endpoint is asked for; None leaves it to the endpoint.

    What the request says; else the least of the tier's ``max_output``, of what its context has room for, and of what
    the budget buys. Room alone is not told: many endpoints write less than their context holds.

    Args:
        request: with its prompt counted.
        tier: the endpoint.
        budget: the policy's.
        spent: of the day's budget, in its currency.
    """
    if request.sampling.max_new_tokens is not None:
        return request.sampling.max_new_tokens
    most = most_possible(request, tier, budget, spent)
    return None if tier.max_output is None and most == _room(request, tier) else most


def most_possible(request: Request, tier: Tier, budget: Budget, spent: float) -> int | None:
    """The most new tokens that could be charged; None where nothing bounds them. The arguments are ``most_told``'s."""
    if request.sampling.max_new_tokens is not None:
        return request.sampling.max_new_tokens
    limits = tier.max_output, _room(request, tier), _bought(request, tier, budget, spent)
    return min((limit for limit in limits if limit is not None), default=None)


def least_tokens(request: Request) -> int:
    """Tokens of the prompt on the device and of its answer: as many as are asked for, one where nobody says."""
    new = request.sampling.max_new_tokens
    return (request.tokens_for(DEVICE) or 0) + (1 if new is None else new)


def limited(request: Request, verdict: Verdict) -> Request:
    """The request with the limit that its answer has by the verdict."""
    most = verdict.expected.most_new
    if most is None or request.sampling.max_new_tokens is not None:
        return request
    return replace(request, sampling=replace(request.sampling, max_new_tokens=most))


def _room(request: Request, tier: Tier) -> int | None:
    prompt = request.tokens_for(tier.name)
    return None if tier.context is None or prompt is None else max(tier.context - prompt, 1)


def _bought(request: Request, tier: Tier, budget: Budget, spent: float) -> int | None:
    """The new tokens that the budget pays for behind the prompt, at least one; None where it sets no limit."""
    prompt, price = request.tokens_for(tier.name), tier.price
    limits = [budget.per_request] if budget.per_request is not None else []
    limits += [budget.per_day - spent] if budget.per_day is not None else []
    if price is None or prompt is None or price.output_per_million <= 0 or not limits:
        return None
    money = min(limits)
    count = int(max(money - price.cost(prompt, 0), 0.0) * 1e6 / price.output_per_million)
    # The division may round up.
    return max(count if price.cost(prompt, count) <= money else count - 1, 1)
