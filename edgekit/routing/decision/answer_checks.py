"""Checks of a local answer: whether it ended, repeats itself, satisfies its schema, and how likely it is wrong."""

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
    "eos": "the answer is complete",
    "stop": "the answer is complete or reached a stop string",
    "tool_calls": "the answer ends with tool calls",
    "length": "the answer was cut off at its token limit",
    "context": "the answer was cut off at the end of the context",
    "cancelled": "the answer was cancelled",
}
_CUT = ("length", "context")


@dataclass(frozen=True)
class Judgement:
    """The findings, and the verdict after them: the device's, or that of ``escalate``. ``wrong`` is None if unknown."""

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
    """Check a finished local answer; the first failed check decides. Never raises.

    A verdict that is already degraded is kept: its answer is served because no tier may answer.

    Args:
        verdict: the verdict by which the device answered.
        request: the request; its schema has passed check_schema.
        policy: the policy.
        state: the current state of the device.
        text: the whole answer.
        finish: why it ended: ``eos``, ``stop``, ``length``, ``context``; any other value fails the check ``ended``.
        repeated: the loop in which the answer ended, None if there is none.
        signals: the answer's signals, None if they were not collected.
        calibration: this bundle's calibration, None if it has none.
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
    """Check the first tokens of an answer; ``fail`` predicts that the whole answer would fail its checks.

    Returns None without a calibrated prefix, with too few tokens, or if the policy switches the check off.
    """
    prefix = calibration.prefix if calibration and policy.answers.prefix else None
    if prefix is None or signals.tokens < prefix.tokens:
        return None
    wrong = _probability(prefix.score, signals)
    if wrong is None:
        return None
    likely = f"after {prefix.tokens} tokens the probability of being wrong is {wrong:.2f}"
    if wrong > prefix.threshold:
        detail = f"{likely}, above {prefix.threshold:.2f}"
        return Finding("prefix", DEVICE, "fail", detail, wrong, prefix.threshold)
    return Finding("prefix", DEVICE, "pass", f"{likely}, at most {prefix.threshold:.2f}", wrong, prefix.threshold)


def check_calibrated(policy: Policy, calibration: Calibration | None) -> None:
    """Refuse a policy that serves more than a calibration's guarantee covers.

    Raises:
        ConfigError: ``answers.most_wrong`` is above the threshold of a guarantee.
    """
    most = policy.answers.most_wrong
    if most is not None and calibration and calibration.guarantee and most > calibration.threshold:
        raise ConfigError(
            f"policy '{policy.name}': answers.most_wrong is {most:g}, and the calibration's guarantee of at most "
            f"{words.percent(calibration.guarantee.alpha)} wrong holds only up to {calibration.threshold:g}",
            "remove most_wrong, or calibrate without a guarantee",
        )


def _ended(finish: str, policy: Policy) -> Finding:
    detail = _ENDED.get(finish, f"the answer broke off: {finish}")
    if finish in _CUT and not policy.answers.cut_off:
        return Finding("ended", DEVICE, "pass", f"{detail}; the policy allows that")
    return Finding("ended", DEVICE, "pass" if finish in ("eos", "stop", "tool_calls") else "fail", detail)


def _repetition(loop: Loop | None, policy: Policy) -> Finding:
    if loop is None:
        return Finding("repetition", DEVICE, "pass", "no repetition")
    if not policy.answers.repetition:
        return Finding("repetition", DEVICE, "pass", f"{loop.words}; the policy allows that", float(loop.length))
    return Finding(
        "repetition", DEVICE, "fail", f"the answer repeats itself: {loop.words}", float(loop.length), None, "tokens"
    )


def _schema(schema: str, text: str) -> Finding:
    breach = find_breach(schema, text)
    return Finding("schema", DEVICE, "fail" if breach else "pass", breach or "the answer satisfies the schema")


def _quality(signals: Signals | None, calibration: Calibration | None, policy: Policy) -> tuple[Finding, float | None]:
    """Compare the calibrated probability of being wrong with its limit. Returns it too, None if unknown."""
    wrong = _probability(calibration.score, signals) if calibration and signals else None
    if calibration is None or wrong is None:
        lacking = "the bundle has no calibration" if calibration is None else "the answer has no signals"
        detail = f"{lacking}; the policy's unknown.quality is '{policy.unknown.quality}'"
        return Finding("quality", DEVICE, "unknown", detail), None
    most = policy.answers.most_wrong
    limit = calibration.threshold if most is None else most
    if calibration.guarantee:
        limit = min(limit, calibration.threshold)
    likely = f"the probability of being wrong is {wrong:.2f}"
    if wrong > limit:
        return Finding("quality", DEVICE, "fail", f"{likely}, above {limit:.2f}", wrong, limit), wrong
    return Finding("quality", DEVICE, "pass", f"{likely}, at most {limit:.2f}", wrong, limit), wrong


def _probability(score: Score, signals: Signals) -> float | None:
    """Return the probability of being wrong, None if the score cannot be computed.

    Non-finite signals count as wrong (1.0), as they did when the threshold was chosen.
    """
    try:
        return wrong_probability(score, signals) if isfinite(raw_score(score, signals)) else 1.0
    except (RouteError, ValueError, OverflowError):
        return None
