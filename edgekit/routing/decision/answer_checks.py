"""A local answer, looked at: did it end, does it turn in circles, is it the JSON asked for, how likely is it wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING

from edgekit import words
from edgekit.errors import ConfigError, RouteError
from edgekit.routing.decision.decide import escalate
from edgekit.routing.decision.schema import find_breach
from edgekit.routing.decision.score import raw_score, wrong_probability
from edgekit.types.routing import DEVICE, Finding, Verdict

if TYPE_CHECKING:
    from edgekit.routing.decision.loops import Loop
    from edgekit.types import Measurement
    from edgekit.types.calibration import Calibration, Score, Signals
    from edgekit.types.routing import DeviceState, Policy, Request

_ENDED = {
    "eos": "it came to its end",
    "stop": "it came to a stop string or its end",
    "tool_calls": "it ended with a call of tools",
    "length": "its limit of tokens cut it off",
    "context": "the end of the context cut it off",
    "cancelled": "it was cancelled",
}
_CUT = ("length", "context")


@dataclass(frozen=True)
class Judgement:
    """What was found, and who answers now: the device still, or whom ``escalate`` names. ``wrong``: None if unknown."""

    findings: tuple[Finding, ...]
    verdict: Verdict
    wrong: float | None


def judge(
    verdict: Verdict,
    request: Request,
    policy: Policy,
    state: DeviceState,
    *,
    text: str,
    finish: str,
    repeated: Loop | None,
    signals: Signals | None,
    calibration: Calibration | None,
    measurement: Measurement | None = None,
) -> Judgement:
    """Check a finished local answer; the first failure decides. Never raises.

    A verdict that is degraded already is kept: its answer is given because nobody else may.

    Args:
        verdict: of the device.
        request: what was asked; its schema went through check_schema.
        policy: the rule.
        state: the moment, now.
        text: the whole answer.
        finish: why it ended: ``eos``, ``stop``, ``length``, ``context``; anything else is no end.
        repeated: the loop it ended in, None if in none.
        signals: what it says of itself, None where that was not taken.
        calibration: of this very bundle, None where there is none.
        measurement: as in decide.
    """
    quality, wrong = _quality(signals, calibration, policy)
    found = (
        _ended(finish, policy),
        _repetition(repeated, policy),
        *((_schema(request.schema, text),) if request.schema else ()),
        quality,
    )
    known = replace(verdict, findings=(*verdict.findings, *found))
    against = next((f for f in found if f.outcome == "fail"), None)
    if against is None and quality.outcome == "unknown" and policy.unknown.quality == "cloud":
        against = quality
    if against is None or verdict.degraded:
        return Judgement(found, known, wrong)
    return Judgement(found, escalate(known, against, request, policy, state, measurement), wrong)


def judge_prefix(signals: Signals, calibration: Calibration | None, policy: Policy) -> Finding | None:
    """Check the first tokens of an answer: ``fail`` says that the whole one would hardly stand.

    None where there is nothing to go by: no calibrated prefix, not as many tokens, or the policy wants none. Worth
    giving up for only where somebody else may answer.
    """
    prefix = calibration.prefix if calibration and policy.answers.prefix else None
    if prefix is None or signals.tokens < prefix.tokens:
        return None
    wrong = _probability(prefix.score, signals)
    if wrong is None:
        return None
    likely = f"after {prefix.tokens} tokens it is wrong with probability {wrong:.2f}"
    if wrong > prefix.threshold:
        detail = f"{likely}, above {prefix.threshold:.2f}"
        return Finding("prefix", DEVICE, "fail", detail, wrong, prefix.threshold)
    return Finding("prefix", DEVICE, "pass", f"{likely}, at most {prefix.threshold:.2f}", wrong, prefix.threshold)


def check_calibrated(policy: Policy, calibration: Calibration | None) -> None:
    """Refuse a policy that serves more than a calibration's guarantee covers, before anything is asked.

    Raises:
        ConfigError: ``answers.most_wrong`` is above the threshold of a guarantee.
    """
    most = policy.answers.most_wrong
    if most is not None and calibration and calibration.guarantee and most > calibration.threshold:
        raise ConfigError(
            f"policy '{policy.name}': answers.most_wrong is {most:g}, and the calibration guarantees at most "
            f"{words.percent(calibration.guarantee.alpha)} wrong only up to {calibration.threshold:g}",
            "remove most_wrong, or calibrate without a guarantee",
        )


def _ended(finish: str, policy: Policy) -> Finding:
    detail = _ENDED.get(finish, f"it broke off: {finish}")
    if finish in _CUT and not policy.answers.cut_off:
        return Finding("ended", DEVICE, "pass", f"{detail}, which the policy allows")
    return Finding("ended", DEVICE, "pass" if finish in ("eos", "stop", "tool_calls") else "fail", detail)


def _repetition(loop: Loop | None, policy: Policy) -> Finding:
    if loop is None:
        return Finding("repetition", DEVICE, "pass", "it does not repeat itself")
    if not policy.answers.repetition:
        return Finding("repetition", DEVICE, "pass", f"{loop.words}, which the policy allows", float(loop.length))
    return Finding(
        "repetition", DEVICE, "fail", f"it turns in circles: {loop.words}", float(loop.length), None, "tokens"
    )


def _schema(schema: str, text: str) -> Finding:
    breach = find_breach(schema, text)
    return Finding("schema", DEVICE, "fail" if breach else "pass", breach or "it satisfies the schema")


def _quality(signals: Signals | None, calibration: Calibration | None, policy: Policy) -> tuple[Finding, float | None]:
    """The calibrated probability beside the greatest that is served, and itself."""
    wrong = _probability(calibration.score, signals) if calibration and signals else None
    if calibration is None or wrong is None:
        lacking = "this bundle has no calibration" if calibration is None else "the answer has no signals"
        way = "somebody else answers" if policy.unknown.quality == "cloud" else "it stays"
        return Finding(
            "quality", DEVICE, "unknown", f"{lacking}: the policy says '{policy.unknown.quality}', {way}"
        ), None
    most = policy.answers.most_wrong
    limit = calibration.threshold if most is None else most
    if calibration.guarantee:
        limit = min(limit, calibration.threshold)
    said = f"it is wrong with probability {wrong:.2f}"
    if wrong > limit:
        return Finding("quality", DEVICE, "fail", f"{said}, above {limit:.2f}", wrong, limit), wrong
    return Finding("quality", DEVICE, "pass", f"{said}, at most {limit:.2f}", wrong, limit), wrong


def _probability(score: Score, signals: Signals) -> float | None:
    """The probability, None where the score is none.

    Signals that are no numbers count as wrong, as they did when the threshold was chosen: a guarantee covers no others.
    """
    try:
        return wrong_probability(score, signals) if isfinite(raw_score(score, signals)) else 1.0
    except (RouteError, ValueError, OverflowError):
        return None
