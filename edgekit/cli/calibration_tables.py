"""The tables of ``route calibrate``, and the rows of ``inspect`` for a calibrated bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit import words
from edgekit.cli.layout import columns, facts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from edgekit.routing.decision.calibration_fit import CalibrationFit
    from edgekit.routing.evaluation.calibrate import Calibrated
    from edgekit.types.calibration import Calibration, Guarantee, PrefixScore, Score
    from edgekit.types.interval import Interval


def calibrated_tables(calibrated: Calibrated) -> Iterator[RenderableType]:
    """Accuracy of the answers, how well each signal separates right from wrong, and the threshold."""
    fit = calibrated.fit
    yield facts(_rows(fit))
    yield ""
    table = columns("signal", "AUROC>", "95 %>", "score minus signal>", "95 %>")
    table.add_row("calibrated score", *_interval(fit.auroc), "", "")
    for c in fit.contenders:
        table.add_row(f"raw {c.signal}", *_interval(c.auroc), *_interval(c.advantage, signed=True))
    yield table


def calibration_rows(c: Calibration) -> Iterator[tuple[str, str]]:
    """The rows that ``inspect`` shows of a calibration."""
    promise = c.guarantee
    rule = f"serves answers up to P(wrong) {words.number(c.threshold)}"
    yield (
        "calibration",
        f"{rule}; {score_words(c.score)}, on {words.count(c.n_fit + c.n_threshold)} answers to {c.data}, {c.time}",
    )
    if c.auroc:
        a = c.auroc
        yield "", f"AUROC {a.value:.3f} [{a.low:.3f}, {a.high:.3f}], ECE {c.ece:.3f}, Brier {c.brier:.3f}"
    yield "", guarantee_words(promise) if promise else "no guarantee"
    if c.prefix:
        yield "", prefix_words(c.prefix)
    if c.second_sha256:
        yield "", f"needs bundle {c.second_sha256[:16]} as a second opinion"
    where = ", ".join(f"{name} {value}" for name, value in c.runtime if name != "edgekit")
    template = f"chat template {c.template_sha256[:12]}" if c.template_sha256 else "no chat template"
    yield "", f"valid for this bundle on {c.provider}, {where}, with {template}"


def score_words(score: Score) -> str:
    """The signals, and how they become a probability."""
    method = "isotonic" if score.method == "isotonic" else "logistic (Platt)"
    if len(score.features) == 1:
        return f"{score.features[0]}, {method}"
    return f"{len(score.features)} signals, {method}"


def guarantee_words(g: Guarantee) -> str:
    """The guarantee, and the counts behind it."""
    return (
        f"{words.promise(g.alpha, g.delta)}: {g.failures} of {g.served} were wrong, at most "
        f"{words.percent(g.bound)} by the exact bound; coverage {words.percent(g.coverage)}"
    )


def prefix_words(prefix: PrefixScore) -> str:
    """What abandoning answers early catches and loses."""
    return (
        f"abandoned after {prefix.tokens} tokens if P(wrong) exceeds {words.number(prefix.threshold)}: catches "
        f"{words.percent(prefix.caught)} of what is not served anyway, loses {words.percent(prefix.lost)} of the rest"
    )


def _rows(fit: CalibrationFit) -> Iterator[tuple[str, str]]:
    n = fit.n_fit + fit.n_threshold
    yield (
        "answers",
        f"{words.count(n)}: {words.count(fit.n_fit)} for the fit, {words.count(fit.n_threshold)} for the threshold",
    )
    yield "right", f"{words.count(fit.right)}, {words.percent(fit.right / n)}"
    if fit.unusable:
        yield "unusable", f"{words.count(fit.unusable)} with a NaN or infinite signal: counted as wrong"
    yield "score", score_words(fit.score)
    if len(fit.score.features) > 1:
        yield "signals", feature_words(fit.score.features)
    yield "ECE", f"{fit.ece:.3f}, 15 equal-mass bins"
    yield "Brier", f"{fit.brier:.3f}"
    if fit.infeasible:
        from edgekit.routing.evaluation.calibrate import refusal_words

        yield "threshold", "none: no answer is served"
        yield "guarantee", refusal_words(fit.infeasible)
        return
    yield "threshold", f"{words.number(fit.threshold)}: answers above this P(wrong) go to the cloud"
    yield "coverage", f"{words.percent(fit.coverage)} served, {fit.failures} of {fit.served} wrong"
    yield "guarantee", guarantee_words(fit.guarantee) if fit.guarantee else "not requested"
    yield "early exit", prefix_words(fit.prefix) if fit.prefix else "never"


def _interval(interval: Interval | None, *, signed: bool = False) -> tuple[str, str]:
    if interval is None:
        return "undefined", ""
    form = "+.3f" if signed else ".3f"
    return f"{interval.value:{form}}", f"[{interval.low:{form}}, {interval.high:{form}}]"


def feature_words(features: Sequence[str]) -> str:
    """The names of a score's signals; the indicators of frequent answers, named by digest, are only counted."""
    named = [name for name in features if ":" not in name]
    answers = len(features) - len(named)
    return ", ".join(named + ([f"indicators of {answers} frequent answers"] if answers else []))
