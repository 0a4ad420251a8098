"""Who answers: the device where nothing stands against it, else the first endpoint that passes its own checks.

``decide`` is total and pure: the same inputs give the same verdict, and none raises.
``escalate`` takes the next step up the list, after a local answer failed its checks or an endpoint failed altogether.
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
"""The code of a verdict that nothing stood against."""

_ANSWER_CHECKS = {"ended", "repetition", "schema", "quality", "prefix"}
_FALLS = {"latency", "battery", "thermal", "memory", "language", "quality"}


def decide(request: Request, policy: Policy, state: DeviceState, measurement: Measurement | None = None) -> Verdict:
    """Say who answers, with every check of everyone.

    1. The device, where nothing stands against it: no check failed, and no unknown that the policy says leaves.
    2. The first tier, cheapest first, none of whose checks failed. Those behind it that pass are the ladder.
       Not a request that the device's model cannot be fed: where that is all there is, nobody answers, and it is the
       reason.
    3. Where the policy's last resort is to answer: the device, degraded, if only checks failed that it can answer in
       spite of; else the first tier of which that is true.
    4. Nobody: ``tier`` is "".

    ``code`` is the first check that stood against the device, in every case but the first. Checks that fail for good
    are those of ``prechecks.HARD``.

    Args:
        request: with the prompt's tokens counted.
        policy: the rule.
        state: the moment.
        measurement: of this bundle on this kind of machine, None where there is none.
    """
    case = open_case(request, policy, state)
    device = device_candidate(case, measurement)
    tiers = [tier_candidate(case, tier) for tier in policy.tiers]
    own = check_prompt(case) + tuple(check(case, device) for check in DEVICE_CHECKS)
    theirs = {candidate.name: tuple(check(case, candidate) for check in TIER_CHECKS) for candidate in tiers}
    findings = own + tuple(finding for found in theirs.values() for finding in found)
    ladder = tuple(candidate.name for candidate in tiers if not _failed(theirs[candidate.name]))
    against = next((f for f in own if f.check not in UNFIT and _stands_against(f, policy)), None)
    # What could not be counted is unknown for that reason, and leaves for no other.
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
    """Go one step up, after ``verdict.tier`` failed.

    The next of the ladder answers whose privacy, money and reachability still pass. Where none does, it is as in
    decide's last resort: the device, degraded, with what it said where it has answered; else nobody.

    Args:
        verdict: what was decided before.
        finding: why its tier's answer will not do. Of the device: ``ended``, ``repetition``, ``schema``, ``quality`` or
            ``prefix``; ``reachable`` where it broke down, and then it is no last resort. Of an endpoint: ``reachable``,
            or ``money``.
        request: as in decide.
        policy: as in decide.
        state: the moment, now.
        measurement: as in decide.
    """
    case = open_case(request, policy, state)
    candidates = {tier.name: tier_candidate(case, tier) for tier in policy.tiers}
    findings = _renewed(verdict.findings, (finding,))
    for candidate in candidates.values():
        # Who has failed for good stays so, whatever is known of him now.
        if not any(f.tier == candidate.name and _blocks(f) for f in findings):
            fresh = check_privacy(case, candidate), check_money(case, candidate), check_reachable(case, candidate)
            findings = _renewed(findings, fresh)
    failed = {f.tier for f in findings if f.outcome == "fail"}
    left = [name for name in verdict.ladder if name in candidates and name not in failed]
    if left:
        reason = f"{finding.detail}: {left[0]} answers"
        # Why the device did not answer stays the code, whoever fails after it.
        code = finding.check if finding.tier == DEVICE else verdict.code
        return Verdict(left[0], code, reason, findings, candidates[left[0]].expected, tuple(left[1:]))
    expected = {name: candidate.expected for name, candidate in candidates.items()}
    expected[DEVICE] = device_candidate(case, measurement).expected
    return _last_resort(findings, finding, policy, expected)


def _last_resort(
    findings: tuple[Finding, ...], against: Finding, policy: Policy, expected: dict[str, Expected]
) -> Verdict:
    """Nobody passes: the device all the same, or a tier, where it can and the policy allows it; else nobody."""
    others = _obstacles(findings, policy)
    reason = against.detail if against.detail in others else f"{against.detail}; {others or 'there is nobody else'}"
    names = (DEVICE, *(tier.name for tier in policy.tiers))
    able = next((n for n in names if not any(f.tier == n and _blocks(f) for f in findings)), "")
    if not able or policy.last_resort == "refuse":
        refusal = "the policy's last resort is to refuse" if able else "nobody can answer"
        return Verdict("", against.check, f"{reason}: {refusal}", findings)
    name = "the device" if able == DEVICE else able
    return Verdict(
        able, against.check, f"{reason}: {name} answers all the same", findings, expected[able], degraded=able == DEVICE
    )


def _stands_against(finding: Finding, policy: Policy) -> bool:
    """Whether it keeps the device from answering: failed, or unknown where the policy says 'cloud'."""
    if finding.outcome == "unknown":
        return finding.check in _FALLS and getattr(policy.unknown, finding.check) == "cloud"
    return finding.outcome == "fail"


def _failed(findings: Iterable[Finding]) -> bool:
    return any(f.outcome == "fail" for f in findings)


def _blocks(finding: Finding) -> bool:
    """Whether its tier cannot answer at all. The device's own answer is there to be given, an endpoint's is gone."""
    final = finding.check in HARD or (finding.tier != DEVICE and finding.check in _ANSWER_CHECKS)
    return finding.outcome == "fail" and final


def _renewed(findings: tuple[Finding, ...], fresh: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings with those of the same check and tier replaced."""
    by_place = {(f.check, f.tier): f for f in fresh}
    kept = tuple(by_place.pop((f.check, f.tier), f) for f in findings)
    return (*kept, *by_place.values())


def _obstacles(findings: Iterable[Finding], policy: Policy) -> str:
    """What stands against each tier, the first of each, in words; the same words once."""
    said: dict[str, None] = {}
    for tier in policy.tiers:
        first = next((f for f in findings if f.tier == tier.name and f.outcome == "fail"), None)
        if first:
            said.setdefault(first.detail if tier.name in first.detail else f"{tier.name}: {first.detail}")
    return "; ".join(said)


def _praise(findings: Iterable[Finding]) -> str:
    """Why the device answers."""
    unknown = [f.check for f in findings if f.outcome == "unknown"]
    if not unknown:
        return "nothing stands against the device"
    return f"nothing that is known stands against the device; not known: {', '.join(unknown)}"
