"""The checks before anyone answers, one function each, in the order in which they decide.

A check never guesses: without a number its outcome is ``unknown``, and the policy's ``unknown`` decides for the device.
An unknown does not rule out an endpoint, except for money: the endpoint is asked and may refuse.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from edgekit import words
from edgekit.routing.decision.latency_model import expect_local, expect_tier
from edgekit.routing.decision.lengths import most_possible, most_told
from edgekit.routing.decision.patterns import matches
from edgekit.types.routing import DEVICE, TRUST, Ability, CheckName, Expected, Finding, Trust

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekit.types import Measurement
    from edgekit.types.routing import DeviceState, Policy, Request, Tier

UNFIT: frozenset[CheckName] = frozenset({"empty", "no-template", "template"})
"""Why the device's model cannot take a request as input. The request is at fault, so it is not sent elsewhere."""

HARD: frozenset[CheckName] = UNFIT | {"privacy", "capability", "context", "memory", "money", "reachable"}
"""Checks that rule a candidate out when they fail. The others only predict a bad or slow answer."""

_NEEDS = {"tools": "tools", "images": "images", "json-schema": "answers by a JSON schema"}


@dataclass(frozen=True)
class Candidate:
    """The device or an endpoint, as the checks see it. ``tier`` is None for the device.

    ``prompt`` is the prompt's length in the candidate's own tokens, ``exact`` or estimated; ``context`` and
    ``most_new`` are its limits in tokens; None if unknown.
    """

    name: str
    trust: Trust
    can: frozenset[Ability]
    languages: frozenset[str]
    prompt: int | None
    exact: bool
    context: int | None
    most_new: int | None
    expected: Expected
    tier: Tier | None = None


@dataclass(frozen=True)
class Case:
    """Everything that a check reads besides the candidate. ``ceiling``: the trust the request may go to, and why."""

    request: Request
    policy: Policy
    state: DeviceState
    ceiling: Trust
    because: str


def open_case(request: Request, policy: Policy, state: DeviceState) -> Case:
    """Collect what the checks read, with the request's ceiling."""
    return Case(request, policy, state, *find_ceiling(request, policy))


def find_ceiling(request: Request, policy: Policy) -> tuple[Trust, str]:
    """Return the trust that a request may go to, and why: the strictest limit that applies.

    ``cloud-ok`` lifts only the policy's own ceiling. Privacy rules read everything that would be sent.
    """
    limits: list[tuple[Trust, str]] = []
    if request.private:
        limits.append(("device", f"the request must stay on the device: {request.private}"))
    if request.override == "local-only":
        limits.append(("device", "the request is local-only"))
    # Rules read the whole text, which is slow: skip them if the ceiling is already the strictest.
    stays = limits or (policy.privacy.ceiling == DEVICE and request.override != "cloud-ok")
    if policy.privacy.rules and policy.tiers and not stays:
        reading = request.outgoing.reading
        limits += [
            (rule.ceiling, f"the privacy rule '{rule.name}' limits it to {rule.ceiling}")
            for rule in policy.privacy.rules
            if not reading.whole or matches(rule.match, reading.lines)
        ]
    if request.override == "cloud-ok":
        limits.append(("third-party", "the request is cloud-ok"))
    else:
        limits.append((policy.privacy.ceiling, f"the policy's ceiling is {policy.privacy.ceiling}"))
    return min(limits, key=lambda limit: TRUST.index(limit[0]))


def device_candidate(case: Case, measurement: Measurement | None) -> Candidate:
    """Describe the device as a candidate."""
    prompt, rules = case.request.tokens_for(DEVICE), case.policy.device
    new = case.request.sampling.max_new_tokens
    expected = expect_local(measurement, prompt, new, case.state.waiting)
    expected = replace(expected, most_new=rules.max_output if new is None else new)
    exact, limits = DEVICE in case.request.counted, (case.state.context, rules.max_output)
    return Candidate(DEVICE, "device", rules.can, rules.languages, prompt, exact, *limits, expected)


def tier_candidate(case: Case, tier: Tier) -> Candidate:
    """Describe an endpoint as a candidate."""
    prompt = case.request.tokens_for(tier.name)
    rest = case.request, tier, case.policy.budget, case.state.spent_today
    expected = expect_tier(tier, prompt, case.request.sampling.max_new_tokens, most_possible(*rest))
    expected = replace(expected, most_new=most_told(*rest))
    exact, limits = tier.name in case.request.counted, (tier.context, tier.max_output)
    return Candidate(tier.name, tier.trust, tier.can, tier.languages, prompt, exact, *limits, expected, tier)


def check_prompt(case: Case) -> tuple[Finding, ...]:
    """Check that the device's model can take the request as input; a finding only if it cannot."""
    unfit = case.request.unfit
    return (Finding(unfit.check, DEVICE, "fail", unfit.reason),) if unfit else ()


def check_privacy(case: Case, candidate: Candidate) -> Finding:
    """Check that the request may go to the candidate. A veto."""
    if candidate.tier is None:
        return Finding("privacy", candidate.name, "pass", "nothing leaves the device")
    # An endpoint is never the device, whatever trust the policy gives it.
    allowed = case.ceiling != DEVICE and TRUST.index(candidate.trust) <= TRUST.index(case.ceiling)
    detail = case.because if allowed else f"{case.because}, and {candidate.name} is {_trust_words(candidate.trust)}"
    return Finding("privacy", candidate.name, "pass" if allowed else "fail", detail)


def check_capability(case: Case, candidate: Candidate) -> Finding:
    """Check that the candidate can do what the request needs: tools, images, a JSON schema."""
    needs = case.request.needs | ({"json-schema"} if case.request.schema else set())
    if lacking := sorted(needs - candidate.can):
        wanted = " and ".join(_NEEDS.get(need, need) for need in lacking)
        detail = f"the request needs {wanted}, which {_the(candidate)} does not support"
        return Finding("capability", candidate.name, "fail", detail)
    detail = f"{_the(candidate)} supports {', '.join(sorted(needs))}" if needs else "the request needs only text"
    return Finding("capability", candidate.name, "pass", detail)


def check_language(case: Case, candidate: Candidate) -> Finding:
    """Check that the candidate's languages include that of the request."""
    language = case.request.language
    if not candidate.languages:
        return Finding("language", candidate.name, "pass", "any language")
    good = f"{_the(candidate)}'s languages are {', '.join(sorted(candidate.languages))}"
    if language is None:
        detail = f"the language could not be detected; {good}"
        return _unknown(candidate, "language", detail, case.policy.unknown.language)
    if language in candidate.languages:
        return Finding("language", candidate.name, "pass", good)
    return Finding("language", candidate.name, "fail", f"the request is in '{language}'; {good}")


def check_context(case: Case, candidate: Candidate) -> Finding:
    """Check that prompt and answer fit the candidate's limits, before anything is sent."""
    new, most = case.request.sampling.max_new_tokens, candidate.most_new
    if most is not None and new is not None and new > most:
        detail = f"{words.count(new)} new tokens are more than {_the(candidate)}'s max_output of {words.count(most)}"
        return Finding("context", candidate.name, "fail", detail, float(new), float(most), "tokens")
    if candidate.prompt is None:
        # The device's own tokenizer counts: if that fails, the model cannot answer either.
        blind = candidate.tier is None and case.request.unfit is None
        detail = f"the prompt could not be counted for {_the(candidate)}"
        return Finding("context", candidate.name, "fail" if blind else "unknown", detail)
    about = "" if candidate.exact else "about "
    asked = f"the prompt's {about}{words.count(candidate.prompt)} tokens"
    asked += "" if new is None else f" and {words.count(new)} new ones"
    # An answer without a limit takes what is left, which must be at least one token.
    total = float(candidate.prompt + (1 if new is None else new))
    if candidate.context is None:
        return Finding("context", candidate.name, "pass", f"{asked}; the context is unknown", total, None, "tokens")
    limit = f"{_the(candidate)}'s context of {words.count(candidate.context)}"
    fits = total <= candidate.context
    detail = f"{asked} {'fit' if fits else 'leave no room in' if new is None else 'do not fit'} {limit}"
    return Finding(
        "context", candidate.name, "pass" if fits else "fail", detail, total, float(candidate.context), "tokens"
    )


def check_memory(case: Case, candidate: Candidate) -> Finding:
    """Check that the memory for answering is free."""
    needed, free, spare = case.state.memory_needed, case.state.free_memory, case.policy.bounds.free_memory
    if needed is None or free is None:
        lacking = "free memory" if free is None else "memory needed to answer"
        return _unknown(candidate, "memory", f"the {lacking} is unknown", case.policy.unknown.memory)
    kept = f", {words.size(spare)} of which must stay free" if spare else ""
    detail = f"answering needs {words.size(needed)} of {words.size(free)} free{kept}"
    fits = needed + spare <= free
    return Finding(
        "memory", candidate.name, "pass" if fits else "fail", detail, float(needed), float(free - spare), "B"
    )


def check_latency(case: Case, candidate: Candidate) -> Finding:
    """Check that the answer is expected in time, waiting included, if it uses its whole token limit.

    The time of an answer without a limit is unknown.
    """
    bounds, expected, new = case.policy.bounds, candidate.expected, case.request.sampling.max_new_tokens
    answer = "for the answer" if new is None else f"for up to {words.count(new)} tokens"
    limits = (
        (expected.seconds_to_first, bounds.seconds_to_first, "to the first token"),
        (expected.seconds, bounds.seconds, answer),
    )
    details: list[str] = []
    for value, limit, what in limits:
        if limit is None:
            continue
        if value is None:
            source = (
                "no measurement of this bundle on this machine"
                if candidate.tier is None
                else f"the policy has no speed of {candidate.name}"
            )
            if new is None and expected.seconds_to_first is not None:
                source = "the request does not limit its answer"
            return _unknown(candidate, "latency", source, case.policy.unknown.latency)
        if value > limit:
            late = f"{words.seconds(value)} expected {what}, above {words.seconds(limit)}{_waiting(case, candidate)}"
            return Finding("latency", candidate.name, "fail", late, value, limit, "s")
        details.append(f"{words.seconds(value)} expected {what}, at most {words.seconds(limit)}")
    if details:
        value, limit, _ = limits[0] if bounds.seconds is None else limits[1]
        return Finding(
            "latency", candidate.name, "pass", "; ".join(details) + _waiting(case, candidate), value, limit, "s"
        )
    known = "" if expected.seconds is None else f"{words.seconds(expected.seconds)} expected; "
    return Finding("latency", candidate.name, "pass", f"{known}no limit is set", expected.seconds, None, "s")


def check_battery(case: Case, candidate: Candidate) -> Finding:
    """Check that the battery is charged enough, or a charger is connected."""
    limit, percent, drains = case.policy.bounds.least_battery, case.state.battery_percent, case.state.on_battery
    if limit is None:
        return Finding("battery", candidate.name, "pass", "no limit is set", percent, None, "%")
    if drains is False:
        return Finding("battery", candidate.name, "pass", "a charger is connected", percent, limit, "%")
    if percent is not None and percent >= limit:
        detail = f"the battery is at {percent:.0f} %, at least {limit:g} %"
        return Finding("battery", candidate.name, "pass", detail, percent, limit, "%")
    if percent is None or drains is None:
        lacking = "the battery's charge" if percent is None else "whether a charger is connected"
        return _unknown(candidate, "battery", f"{lacking} is unknown", case.policy.unknown.battery)
    detail = f"the battery is at {percent:.0f} %, below {limit:g} %"
    return Finding("battery", candidate.name, "fail", detail, percent, limit, "%")


def check_thermal(case: Case, candidate: Candidate) -> Finding:
    """Check that the processor is cool enough."""
    limit, celsius = case.policy.bounds.most_celsius, case.state.celsius
    if limit is None:
        return Finding("thermal", candidate.name, "pass", "no limit is set", celsius, None, "°C")
    if celsius is None:
        return _unknown(candidate, "thermal", "the processor's temperature is unknown", case.policy.unknown.thermal)
    cool = celsius <= limit
    detail = f"the processor is at {celsius:.0f} °C, {'at most' if cool else 'above'} {limit:g} °C"
    return Finding("thermal", candidate.name, "pass" if cool else "fail", detail, celsius, limit, "°C")


def check_money(case: Case, candidate: Candidate) -> Finding:
    """Check that the budget covers the answer if it uses its whole token limit."""
    budget, cost, spent = case.policy.budget, candidate.expected.cost, case.state.spent_today
    unit = budget.currency
    if cost is None:
        limited = budget.per_request is not None or budget.per_day is not None
        detail = f"the cost of {candidate.name} is unknown, and there is {'a' if limited else 'no'} budget"
        return Finding("money", candidate.name, "fail" if limited else "pass", detail, unit=unit)
    asked = f"up to {_money(cost)} {unit}"
    if budget.per_request is not None and cost > budget.per_request:
        detail = f"{asked} for one request, above {_money(budget.per_request)}"
        return Finding("money", candidate.name, "fail", detail, cost, budget.per_request, unit)
    if budget.per_day is not None and spent + cost > budget.per_day:
        detail = f"{asked}, with {_money(spent)} of today's {_money(budget.per_day)} already spent"
        return Finding("money", candidate.name, "fail", detail, spent + cost, budget.per_day, unit)
    if budget.per_day is not None:
        detail = f"{asked}; {_money(spent)} of today's {_money(budget.per_day)} spent"
        return Finding("money", candidate.name, "pass", detail, spent + cost, budget.per_day, unit)
    return Finding("money", candidate.name, "pass", asked, cost, budget.per_request, unit)


def check_reachable(case: Case, candidate: Candidate) -> Finding:
    """Check that the endpoint is not known to be down."""
    reason = dict(case.state.unreachable).get(candidate.name)
    if reason is None:
        return Finding("reachable", candidate.name, "pass", "not known to be down")
    return Finding("reachable", candidate.name, "fail", f"{candidate.name} is unavailable: {reason}")


DEVICE_CHECKS: tuple[Callable[[Case, Candidate], Finding], ...] = (
    *(check_privacy, check_capability, check_language, check_context),
    *(check_memory, check_latency, check_battery, check_thermal),
)
"""The device's checks, in the order in which they decide."""

TIER_CHECKS: tuple[Callable[[Case, Candidate], Finding], ...] = (
    *(check_privacy, check_capability, check_language, check_context),
    *(check_latency, check_money, check_reachable),
)
"""An endpoint's checks, in the order in which they decide."""


def _unknown(candidate: Candidate, check: CheckName, detail: str, fall: str) -> Finding:
    if candidate.tier is not None:
        return Finding(check, candidate.name, "unknown", detail)
    return Finding(check, candidate.name, "unknown", f"{detail}; the policy's unknown.{check} is '{fall}'")


def _the(candidate: Candidate) -> str:
    return "the device" if candidate.tier is None else candidate.name


def _waiting(case: Case, candidate: Candidate) -> str:
    waits = candidate.tier is None and case.state.waiting > 0
    return f" ({words.seconds(case.state.waiting)} of it waiting)" if waits else ""


def _trust_words(trust: Trust) -> str:
    return {"device": "not the device", "private": "a private endpoint", "third-party": "a third-party endpoint"}[trust]


@lru_cache(maxsize=1024)
def _money(value: float) -> str:
    """Format an amount with its significant digits: ``0.00042``, ``1.50``."""
    return f"{value:,.2f}" if value >= 1 or value == 0 else f"{value:.2g}"
