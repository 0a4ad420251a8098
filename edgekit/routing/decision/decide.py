"""Decide who answers: the device if it passes its checks, else the first endpoint that passes its own.

``decide`` is pure and total: the same inputs give the same verdict, and no input raises.
``escalate`` moves to the next tier after a local answer failed its checks or an endpoint failed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.routing.decision.prechecks import (
    DEVICE_CHECKS,
    HARD,
    TIER_CHECKS,
    UNFIT,
    check_money,
    check_privacy,
    check_prompt,
    check_reachable,
    device_candidate,
    open_case,
    tier_candidate,
)
from edgekit.types.routing import DEVICE, Expected, Finding, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgekit.types import Measurement
    from edgekit.types.routing import DeviceState, Policy, Request

LOCAL = "local"
"""The code of a verdict for the device with no failed check."""

_ANSWER_CHECKS = {"ended", "repetition", "schema", "quality", "prefix"}
_FALLS = {"latency", "battery", "thermal", "memory", "language", "quality"}


def decide(request: Request, policy: Policy, state: DeviceState, measurement: Measurement | None = None) -> Verdict:
    """Decide who answers, with the findings of every check of the device and all tiers.

    1. The device, if none of its checks failed and none is unknown where the policy's ``unknown`` is 'cloud'.
    2. The first tier, cheapest first, none of whose checks failed. Later tiers that pass are the ladder.
       A request that the device's model cannot take as input is not sent to a tier for that reason alone: nobody
       answers.
    3. If the policy's last resort is 'answer': the device, degraded, if none of its failed checks is in
       ``prechecks.HARD``; else the first tier for which that holds.
    4. Nobody: ``tier`` is "".

    ``code`` is the first check that kept the device from answering, except in the first case.

    Args:
        request: the request, with the prompt's tokens counted.
        policy: the policy.
        state: the current state of the device.
        measurement: a measurement of this bundle on this kind of machine, None if there is none.
    """
    case = open_case(request, policy, state)
    device = device_candidate(case, measurement)
    tiers = [tier_candidate(case, tier) for tier in policy.tiers]
    own = check_prompt(case) + tuple(check(case, device) for check in DEVICE_CHECKS)
    theirs = {candidate.name: tuple(check(case, candidate) for check in TIER_CHECKS) for candidate in tiers}
    findings = own + tuple(finding for found in theirs.values() for finding in found)
    ladder = tuple(candidate.name for candidate in tiers if not _failed(theirs[candidate.name]))
    against = next((f for f in own if f.check not in UNFIT and _stands_against(f, policy)), None)
    # The other unknowns follow from the missing token count: they are no reason to leave the device.
    if request.unfit and (against is None or against.outcome == "unknown"):
        return Verdict("", own[0].check, own[0].detail, findings)
    if against is None:
        return Verdict(DEVICE, LOCAL, _praise(own), findings, device.expected, ladder)
    expected = {candidate.name: candidate.expected for candidate in tiers}
    if ladder:
        reason = f"{against.detail}: {ladder[0]} answers"
        return Verdict(ladder[0], against.check, reason, findings, expected[ladder[0]], ladder[1:])
    return _last_resort(findings, against, policy, {DEVICE: device.expected, **expected})


def escalate(
    verdict: Verdict,
    finding: Finding,
    request: Request,
    policy: Policy,
    state: DeviceState,
    measurement: Measurement | None = None,
) -> Verdict:
    """Move to the next tier after ``verdict.tier`` failed.

    The first tier of the ladder answers whose privacy, money and reachability checks still pass. If there is none,
    decide's last resort applies: the device, degraded, with the answer it may already have given; else nobody.

    Args:
        verdict: the previous verdict.
        finding: why its tier failed. For the device: ``ended``, ``repetition``, ``schema``, ``quality`` or ``prefix``,
            or ``reachable`` if it broke down, which rules it out as the last resort. For an endpoint: ``reachable`` or
            ``money``.
        request: as in decide.
        policy: as in decide.
        state: the current state of the device.
        measurement: as in decide.
    """
    case = open_case(request, policy, state)
    candidates = {tier.name: tier_candidate(case, tier) for tier in policy.tiers}
    findings = _renewed(verdict.findings, (finding,))
    for candidate in candidates.values():
        # A tier that failed for good is not checked again.
        if not any(f.tier == candidate.name and _blocks(f) for f in findings):
            fresh = check_privacy(case, candidate), check_money(case, candidate), check_reachable(case, candidate)
            findings = _renewed(findings, fresh)
    failed = {f.tier for f in findings if f.outcome == "fail"}
    left = [name for name in verdict.ladder if name in candidates and name not in failed]
    if left:
        reason = f"{finding.detail}: {left[0]} answers"
        # The code stays the reason why the device did not answer, whichever tier fails later.
        code = finding.check if finding.tier == DEVICE else verdict.code
        return Verdict(left[0], code, reason, findings, candidates[left[0]].expected, tuple(left[1:]))
    expected = {name: candidate.expected for name, candidate in candidates.items()}
    expected[DEVICE] = device_candidate(case, measurement).expected
    return _last_resort(findings, finding, policy, expected)


def _last_resort(
    findings: tuple[Finding, ...], against: Finding, policy: Policy, expected: dict[str, Expected]
) -> Verdict:
    """The verdict when nobody passes: the device or a tier if it can answer and the policy allows it, else nobody."""
    others = _obstacles(findings, policy)
    reason = against.detail if against.detail in others else f"{against.detail}; {others or 'there is no other tier'}"
    names = (DEVICE, *(tier.name for tier in policy.tiers))
    able = next((n for n in names if not any(f.tier == n and _blocks(f) for f in findings)), "")
    if not able or policy.last_resort == "refuse":
        refusal = "the policy's last_resort is 'refuse'" if able else "no tier can answer"
        return Verdict("", against.check, f"{reason}: {refusal}", findings)
    reason += f": {'the device' if able == DEVICE else able} answers as the last resort"
    return Verdict(able, against.check, reason, findings, expected[able], degraded=able == DEVICE)


def _stands_against(finding: Finding, policy: Policy) -> bool:
    """Whether a finding keeps the device from answering: failed, or unknown where the policy says 'cloud'."""
    if finding.outcome == "unknown":
        return finding.check in _FALLS and getattr(policy.unknown, finding.check) == "cloud"
    return finding.outcome == "fail"


def _failed(findings: Iterable[Finding]) -> bool:
    return any(f.outcome == "fail" for f in findings)


def _blocks(finding: Finding) -> bool:
    """Whether the finding rules its tier out. A failed answer of the device is kept and may be served; a tier's not."""
    final = finding.check in HARD or (finding.tier != DEVICE and finding.check in _ANSWER_CHECKS)
    return finding.outcome == "fail" and final


def _renewed(findings: tuple[Finding, ...], fresh: Iterable[Finding]) -> tuple[Finding, ...]:
    """Replace the findings of the same check and tier; append the others."""
    by_place = {(f.check, f.tier): f for f in fresh}
    kept = tuple(by_place.pop((f.check, f.tier), f) for f in findings)
    return (*kept, *by_place.values())


def _obstacles(findings: Iterable[Finding], policy: Policy) -> str:
    """Describe the first failed check of each tier, without duplicates."""
    details: dict[str, None] = {}
    for tier in policy.tiers:
        first = next((f for f in findings if f.tier == tier.name and f.outcome == "fail"), None)
        if first:
            details.setdefault(first.detail if tier.name in first.detail else f"{tier.name}: {first.detail}")
    return "; ".join(details)


def _praise(findings: Iterable[Finding]) -> str:
    """Describe why the device answers."""
    unknown = ", ".join(f.check for f in findings if f.outcome == "unknown")
    return "the device passes all checks" if not unknown else f"the device fails no check; unknown: {unknown}"
