"""What is looked at before anyone answers, one function a check, in the order in which they decide.

A check never guesses: where there is no number, its outcome is ``unknown``, and the policy says which way the device
falls. What is unknown of an endpoint does not stand against it, money left aside: it is asked and may refuse.
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
"""Why the device's model cannot be fed a request. It is the request's doing: no reason to send it elsewhere."""

HARD: frozenset[CheckName] = UNFIT | {"privacy", "capability", "context", "memory", "money", "reachable"}
"""Checks that nobody answers in spite of. The others say that it would be done badly."""

_NEEDS = {"tools": "tools", "images": "images", "json-schema": "answers by a JSON schema"}


@dataclass(frozen=True)
class Candidate:
    """Who might answer, the device or an endpoint, as the gates see either. ``tier`` is None for the device.

    ``prompt`` counts the prompt's tokens as it does, ``exact`` or estimated; ``context`` and ``most_new`` are its
    limits; None where not known.
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
    """Everything that a check may look at besides the candidate. ``ceiling``: how far it may go, ``because``: why."""

    request: Request
    policy: Policy
    state: DeviceState
    ceiling: Trust
    because: str


def open_case(request: Request, policy: Policy, state: DeviceState) -> Case:
    """A request with its ceiling."""
    return Case(request, policy, state, *find_ceiling(request, policy))


def find_ceiling(request: Request, policy: Policy) -> tuple[Trust, str]:
    """How far a request may go, and why: the strictest of all that apply; ``cloud-ok`` lifts the policy's own alone.

    Rules read what would be sent, whatever of it that is.
    """
    limits: list[tuple[Trust, str]] = []
    if request.private:
        limits.append(("device", f"it must stay on the device: {request.private}"))
    if request.override == "local-only":
        limits.append(("device", "the request is local-only"))
    # Rules read the text, which takes longer than the rest: not where nothing can get stricter.
    stays = limits or (policy.privacy.ceiling == DEVICE and request.override != "cloud-ok")
    if policy.privacy.rules and policy.tiers and not stays:
        reading = request.outgoing.reading
        limits += [
            (rule.ceiling, f"the rule '{rule.name}' keeps it at {rule.ceiling}")
            for rule in policy.privacy.rules
            if not reading.whole or matches(rule.match, reading.lines)
        ]
    if request.override == "cloud-ok":
        limits.append(("third-party", "the request is cloud-ok"))
    else:
        limits.append((policy.privacy.ceiling, f"the policy's ceiling is {policy.privacy.ceiling}"))
    return min(limits, key=lambda limit: TRUST.index(limit[0]))


def device_candidate(case: Case, measurement: Measurement | None) -> Candidate:
    """The device as the gates see it."""
    prompt, rules = case.request.tokens_for(DEVICE), case.policy.device
    new = case.request.sampling.max_new_tokens
    expected = expect_local(measurement, prompt, new, case.state.waiting)
    expected = replace(expected, most_new=rules.max_output if new is None else new)
    return Candidate(
        DEVICE, "device", rules.can, rules.languages, prompt, DEVICE in case.request.counted, case.state.context,
        rules.max_output, expected,
    )  # fmt: skip


def tier_candidate(case: Case, tier: Tier) -> Candidate:
    """An endpoint as the gates see it."""
    prompt = case.request.tokens_for(tier.name)
    rest = case.request, tier, case.policy.budget, case.state.spent_today
    expected = expect_tier(tier, prompt, case.request.sampling.max_new_tokens, most_possible(*rest))
    expected = replace(expected, most_new=most_told(*rest))
    return Candidate(
        tier.name, tier.trust, tier.can, tier.languages, prompt, tier.name in case.request.counted, tier.context,
        tier.max_output, expected, tier,
    )  # fmt: skip


def check_prompt(case: Case) -> tuple[Finding, ...]:
    """Why the device's model cannot be fed the request; nothing where it can."""
    unfit = case.request.unfit
    return (Finding(unfit.check, DEVICE, "fail", unfit.reason),) if unfit else ()


def check_privacy(case: Case, candidate: Candidate) -> Finding:
    """A veto: may the prompt be seen there."""
    if candidate.tier is None:
        return Finding("privacy", candidate.name, "pass", "nothing leaves the device")
    # Another program is never the device, whatever trust it was given.
    allowed = case.ceiling != DEVICE and TRUST.index(candidate.trust) <= TRUST.index(case.ceiling)
    detail = case.because if allowed else f"{case.because}, and {candidate.name} is {_trust_words(candidate.trust)}"
    return Finding("privacy", candidate.name, "pass" if allowed else "fail", detail)


def check_capability(case: Case, candidate: Candidate) -> Finding:
    """Tools, images, a schema."""
    needs = case.request.needs | ({"json-schema"} if case.request.schema else set())
    if lacking := sorted(needs - candidate.can):
        wanted = " and ".join(_NEEDS.get(need, need) for need in lacking)
        return Finding(
            "capability", candidate.name, "fail", f"the request needs {wanted}, which {_the(candidate)} cannot do"
        )
    detail = "the request needs only text" if not needs else f"it can do {', '.join(sorted(needs))}"
    return Finding("capability", candidate.name, "pass", detail)


def check_language(case: Case, candidate: Candidate) -> Finding:
    """Is it good at the language of the request."""
    language = case.request.language
    if not candidate.languages:
        return Finding("language", candidate.name, "pass", "any language")
    good = f"{_the(candidate)} is good at {', '.join(sorted(candidate.languages))}"
    if language is None:
        return _unknown(candidate, "language", f"the language could not be told; {good}", case.policy.unknown.language)
    if language in candidate.languages:
        return Finding("language", candidate.name, "pass", good)
    return Finding("language", candidate.name, "fail", f"the request is in '{language}'; {good}")


def check_context(case: Case, candidate: Candidate) -> Finding:
    """Do prompt and answer fit: counted before anything is sent."""
    new = case.request.sampling.max_new_tokens
    if candidate.most_new is not None and new is not None and new > candidate.most_new:
        return Finding(
            "context", candidate.name, "fail",
            f"up to {words.count(new)} new tokens are asked for, "
            f"{_the(candidate)} writes {words.count(candidate.most_new)}",
            float(new), float(candidate.most_new), "tokens",
        )  # fmt: skip
    if candidate.prompt is None:
        # The device's count is made by what would answer: where it cannot be made, neither can the answer.
        blind = candidate.tier is None and case.request.unfit is None
        detail = f"the prompt could not be counted for {_the(candidate)}"
        return Finding("context", candidate.name, "fail" if blind else "unknown", detail)
    about = "" if candidate.exact else "about "
    asked = f"the prompt's {about}{words.count(candidate.prompt)} tokens"
    asked += "" if new is None else f" and {words.count(new)} new ones"
    # An answer without a limit takes what is left, if that is one token.
    total = float(candidate.prompt + (1 if new is None else new))
    if candidate.context is None:
        return Finding("context", candidate.name, "pass", f"{asked}; its context is not known", total, None, "tokens")
    limit = f"{_the(candidate)}'s {words.count(candidate.context)}"
    fits = total <= candidate.context
    detail = f"{asked} {'fit' if fits else 'leave no room in' if new is None else 'do not fit'} {limit}"
    return Finding(
        "context", candidate.name, "pass" if fits else "fail", detail, total, float(candidate.context), "tokens"
    )


def check_memory(case: Case, candidate: Candidate) -> Finding:
    """Is there room for what answering takes."""
    needed, free, spare = case.state.memory_needed, case.state.free_memory, case.policy.bounds.free_memory
    if needed is None or free is None:
        lacking = "free memory" if free is None else "memory that answering takes"
        return _unknown(candidate, "memory", f"the {lacking} is not known", case.policy.unknown.memory)
    kept = f", {words.size(spare)} to stay free" if spare else ""
    detail = f"it takes {words.size(needed)} of {words.size(free)} free{kept}"
    fits = needed + spare <= free
    return Finding(
        "memory", candidate.name, "pass" if fits else "fail", detail, float(needed), float(free - spare), "B"
    )


def check_latency(case: Case, candidate: Candidate) -> Finding:
    """Is the answer expected in time, waiting included, if it takes every token that it may.

    How long one without a limit takes is not known.
    """
    bounds, expected, new = case.policy.bounds, candidate.expected, case.request.sampling.max_new_tokens
    answer = "for the answer" if new is None else f"for up to {words.count(new)} tokens"
    limits = (
        (expected.seconds_to_first, bounds.seconds_to_first, "to the first token"),
        (expected.seconds, bounds.seconds, answer),
    )
    said: list[str] = []
    for value, limit, what in limits:
        if limit is None:
            continue
        if value is None:
            source = (
                "no measurement of this bundle on this machine"
                if candidate.tier is None
                else "nothing is said of its speed"
            )
            if new is None and expected.seconds_to_first is not None:
                source = "the request sets no limit to its answer"
            return _unknown(candidate, "latency", source, case.policy.unknown.latency)
        if value > limit:
            wanted = f"{words.seconds(value)} {what} are expected"
            late = f"{wanted}, more than {words.seconds(limit)}{_waiting(case, candidate)}"
            return Finding("latency", candidate.name, "fail", late, value, limit, "s")
        said.append(f"{words.seconds(value)} {what} of {words.seconds(limit)}")
    if said:
        value, limit, _ = limits[0] if bounds.seconds is None else limits[1]
        return Finding(
            "latency", candidate.name, "pass", "; ".join(said) + _waiting(case, candidate), value, limit, "s"
        )
    known = "" if expected.seconds is None else f"{words.seconds(expected.seconds)} are expected; "
    return Finding("latency", candidate.name, "pass", f"{known}no limit is set", expected.seconds, None, "s")


def check_battery(case: Case, candidate: Candidate) -> Finding:
    """Is there enough charge, or a charger."""
    limit, percent, drains = case.policy.bounds.least_battery, case.state.battery_percent, case.state.on_battery
    if limit is None:
        return Finding("battery", candidate.name, "pass", "no limit is set", percent, None, "%")
    if drains is False:
        return Finding("battery", candidate.name, "pass", "a charger is connected", percent, limit, "%")
    if percent is not None and percent >= limit:
        return Finding(
            "battery", candidate.name, "pass", f"{percent:.0f} % of at least {limit:g} %", percent, limit, "%"
        )
    if percent is None or drains is None:
        lacking = "the battery's charge" if percent is None else "whether a charger is connected"
        return _unknown(candidate, "battery", f"{lacking} is not known", case.policy.unknown.battery)
    detail = f"the battery is at {percent:.0f} %, below {limit:g} %"
    return Finding("battery", candidate.name, "fail", detail, percent, limit, "%")


def check_thermal(case: Case, candidate: Candidate) -> Finding:
    """Is the processor cool enough."""
    limit, celsius = case.policy.bounds.most_celsius, case.state.celsius
    if limit is None:
        return Finding("thermal", candidate.name, "pass", "no limit is set", celsius, None, "°C")
    if celsius is None:
        return _unknown(candidate, "thermal", "the processor's temperature is not known", case.policy.unknown.thermal)
    if celsius <= limit:
        return Finding("thermal", candidate.name, "pass", f"{celsius:.0f} °C of {limit:g} °C", celsius, limit, "°C")
    detail = f"the processor is at {celsius:.0f} °C, above {limit:g} °C"
    return Finding("thermal", candidate.name, "fail", detail, celsius, limit, "°C")


def check_money(case: Case, candidate: Candidate) -> Finding:
    """Is there money for it, if the answer takes every token that it may."""
    budget, cost, spent = case.policy.budget, candidate.expected.cost, case.state.spent_today
    unit = budget.currency
    if cost is None:
        limited = budget.per_request is not None or budget.per_day is not None
        detail = f"what {candidate.name} would cost is not known, and there is {'a' if limited else 'no'} budget"
        return Finding("money", candidate.name, "fail" if limited else "pass", detail, unit=unit)
    asked = f"up to {_money(cost)} {unit}"
    if budget.per_request is not None and cost > budget.per_request:
        detail = f"{asked} for one request, more than {_money(budget.per_request)}"
        return Finding("money", candidate.name, "fail", detail, cost, budget.per_request, unit)
    if budget.per_day is not None and spent + cost > budget.per_day:
        detail = f"{asked}, and {_money(spent)} of today's {_money(budget.per_day)} are spent"
        return Finding("money", candidate.name, "fail", detail, spent + cost, budget.per_day, unit)
    if budget.per_day is not None:
        detail = f"{asked}; {_money(spent)} of today's {_money(budget.per_day)} are spent"
        return Finding("money", candidate.name, "pass", detail, spent + cost, budget.per_day, unit)
    return Finding("money", candidate.name, "pass", asked, cost, budget.per_request, unit)


def check_reachable(case: Case, candidate: Candidate) -> Finding:
    """Is it known to be down."""
    reason = dict(case.state.unreachable).get(candidate.name)
    if reason is None:
        return Finding("reachable", candidate.name, "pass", "not known to be down")
    return Finding("reachable", candidate.name, "fail", f"{candidate.name} cannot be reached: {reason}")


DEVICE_CHECKS: tuple[Callable[[Case, Candidate], Finding], ...] = (
    *(check_privacy, check_capability, check_language, check_context, check_memory, check_latency, check_battery),
    check_thermal,
)  # fmt: skip
"""Of the device, in the order in which they decide."""

TIER_CHECKS: tuple[Callable[[Case, Candidate], Finding], ...] = (
    *(check_privacy, check_capability, check_language, check_context, check_latency, check_money, check_reachable),
)  # fmt: skip
"""Of an endpoint, in the order in which they decide."""


def _unknown(candidate: Candidate, check: CheckName, detail: str, fall: str) -> Finding:
    if candidate.tier is not None:
        return Finding(check, candidate.name, "unknown", detail)
    way = "so it may leave the device" if fall == "cloud" else "so it stays"
    return Finding(check, candidate.name, "unknown", f"{detail}: the policy says '{fall}', {way}")


def _the(candidate: Candidate) -> str:
    return "the device" if candidate.tier is None else candidate.name


def _waiting(case: Case, candidate: Candidate) -> str:
    waits = candidate.tier is None and case.state.waiting > 0
    return f" ({words.seconds(case.state.waiting)} of it waiting)" if waits else ""


def _trust_words(trust: Trust) -> str:
    return {"device": "not the device", "private": "another machine", "third-party": "another company's"}[trust]


@lru_cache(maxsize=1024)
def _money(value: float) -> str:
    """An amount with what can be seen of it: ``0.00042``, ``1.50``."""
    return f"{value:,.2f}" if value >= 1 or value == 0 else f"{value:.2g}"
