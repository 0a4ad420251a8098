"""Limit the length of an answer if the request does not: by the context, the policy and the budget.

No typical length is assumed: without a limit the length stays unknown.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgekit.types.routing import DEVICE

if TYPE_CHECKING:
    from edgekit.types.routing import Budget, Request, Tier, Verdict


def most_told(request: Request, tier: Tier, budget: Budget, spent: float) -> int | None:
    """Return the limit of new tokens to send to an endpoint; None sends none.

    This is the request's limit, else the least of the tier's ``max_output``, the room in its context, and what the
    budget pays for. The room alone is not sent: many endpoints allow fewer new tokens than their context holds.

    Args:
        request: the request, with its prompt counted.
        tier: the endpoint.
        budget: the policy's budget.
        spent: the part of the day's budget that is spent, in its currency.
    """
    if request.sampling.max_new_tokens is not None:
        return request.sampling.max_new_tokens
    most = most_possible(request, tier, budget, spent)
    return None if tier.max_output is None and most == _room(request, tier) else most


def most_possible(request: Request, tier: Tier, budget: Budget, spent: float) -> int | None:
    """Return the most new tokens that could be charged; None if unbounded. Args: as ``most_told``."""
    if request.sampling.max_new_tokens is not None:
        return request.sampling.max_new_tokens
    limits = tier.max_output, _room(request, tier), _bought(request, tier, budget, spent)
    return min((limit for limit in limits if limit is not None), default=None)


def least_tokens(request: Request) -> int:
    """Return the prompt's tokens on the device plus the answer's limit, or plus one if it has none."""
    new = request.sampling.max_new_tokens
    return (request.tokens_for(DEVICE) or 0) + (1 if new is None else new)


def limited(request: Request, verdict: Verdict) -> Request:
    """Return the request with the answer limit of the verdict."""
    most = verdict.expected.most_new
    if most is None or request.sampling.max_new_tokens is not None:
        return request
    return replace(request, sampling=replace(request.sampling, max_new_tokens=most))


def _room(request: Request, tier: Tier) -> int | None:
    prompt = request.tokens_for(tier.name)
    return None if tier.context is None or prompt is None else max(tier.context - prompt, 1)


def _bought(request: Request, tier: Tier, budget: Budget, spent: float) -> int | None:
    """Return the new tokens that the budget pays for after the prompt, at least one; None if it sets no limit."""
    prompt, price = request.tokens_for(tier.name), tier.price
    limits = [budget.per_request] if budget.per_request is not None else []
    limits += [budget.per_day - spent] if budget.per_day is not None else []
    if price is None or prompt is None or price.output_per_million <= 0 or not limits:
        return None
    money = min(limits)
    count = int(max(money - price.cost(prompt, 0), 0.0) * 1e6 / price.output_per_million)
    # The division may round up.
    return max(count if price.cost(prompt, count) <= money else count - 1, 1)
