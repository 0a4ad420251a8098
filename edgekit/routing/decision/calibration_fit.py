"""Make a calibration from collected answers: one split fits the score, the other sets the threshold and evaluates it.

The second split fits nothing: neither score nor prefix nor the order in which thresholds are tested.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import RouteError
from edgekit.routing.decision.fit import Fitted, describe_prefix, fit_prefix, fit_score, give_up_above, require_enough
from edgekit.routing.decision.metrics import auroc_difference, auroc_interval, brier, expected_calibration_error
from edgekit.routing.decision.score import cautious_probability, feature, raw_score
from edgekit.routing.decision.threshold import Infeasible, Rule, check_level, fixed_sequence, plan_sequence
from edgekit.types.calibration import Guarantee, PrefixScore, Score  # noqa: TC001 - record.py resolves these at run time
from edgekit.types.interval import Interval  # noqa: TC001 - as above

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgekit.types.calibration import Signals
    from edgekit.types.routing import LocalAnswer

FITTING = 0.75
"""Share of the examples that fits the score; the rest evaluates it. The threshold is LIKELIER_RIGHT."""

FITTING_FOR_GUARANTEE = 0.4
"""The same with a guarantee, which needs many served examples in the threshold's split."""

LIKELIER_RIGHT = 0.5
"""The threshold without a guarantee: an answer is served if it is likelier right than wrong."""


@dataclass(frozen=True)
class Contender:
    """The AUROC of a raw signal, and the paired advantage of the calibrated score. None if there is only one class."""

    signal: str
    auroc: Interval | None
    advantage: Interval | None


@dataclass(frozen=True)
class CalibrationFit:
    """The result of a fit, not yet bound to a bundle.

    ``served`` and ``failures`` are of the threshold's split: how many were served, and how many of those were wrong.
    Without a requested guarantee both ``guarantee`` and ``infeasible`` are None, else exactly one is. With
    ``infeasible`` nothing is served: ``threshold`` is 0. ``unusable``: answers with a non-finite signal.
    ``contenders``: raw mean entropy and mean log-probability.
    """

    n_fit: int
    n_threshold: int
    right: int
    score: Score
    threshold: float
    guarantee: Guarantee | None
    infeasible: Infeasible | None
    prefix: PrefixScore | None
    scores: tuple[float, ...]
    auroc: Interval | None
    ece: float
    brier: float
    served: int
    failures: int
    unusable: int
    contenders: tuple[Contender, ...]

    @property
    def coverage(self) -> float:
        """The share of the threshold's split that is served."""
        return self.served / self.n_threshold


@dataclass(frozen=True)
class Parts:
    """Indices of the examples that fit and of those that set the threshold."""

    fit: NDArray[np.int64]
    threshold: NDArray[np.int64]


def calibrate(
    answers: Sequence[LocalAnswer],
    *,
    guarantee: tuple[float, float] | None = None,
    prefix_tokens: int = 0,
    seed: int = 0,
) -> CalibrationFit:
    """Fit and evaluate a calibration.

    Args:
        answers: the bundle's graded answers.
        guarantee: (alpha, delta), None for no guarantee.
        prefix_tokens: number of tokens of the answers' ``prefix``; 0 if no answer is given up early.
        seed: seed of the split, the folds and the bootstrap.

    Raises:
        RouteError: there are too few answers, all are right or all wrong, an id is not unique, or no signal varies.
    """
    if guarantee:
        check_level(*guarantee)
    twice = [name for name, count in Counter(a.id for a in answers).items() if count > 1]
    if twice:
        raise RouteError(f"duplicate answer to '{twice[0]}'", "keep one answer per example")
    wrong = np.asarray([not a.right for a in answers], bool)
    share = FITTING_FOR_GUARANTEE if guarantee else FITTING
    require_enough(wrong, share=share)
    parts = split(wrong, share, seed)
    fitting, test = [answers[i] for i in parts.fit], [answers[i] for i in parts.threshold]
    bad = wrong[parts.threshold]

    fitted = fit_score([a.signals for a in fitting], [not a.right for a in fitting], seed=seed)
    early = None
    if prefix_tokens:
        early = fit_prefix([a.prefix for a in fitting], [not a.right for a in fitting], seed=seed)
    probabilities = np.asarray([cautious_probability(fitted.score, a.signals) for a in test])
    prefix = np.asarray([_prefix_probability(early.score, a.prefix) for a in test]) if early else None
    chosen, kept, infeasible = _choose_rule(fitted, early, wrong[parts.fit], probabilities, prefix, bad, guarantee)
    served = probabilities <= chosen.threshold
    raws = np.asarray([raw_score(fitted.score, a.signals) for a in test])
    return CalibrationFit(
        n_fit=len(fitting),
        n_threshold=len(test),
        right=int((~wrong).sum()),
        score=fitted.score,
        threshold=chosen.threshold,
        guarantee=kept,
        infeasible=infeasible,
        prefix=None
        if early is None or prefix is None
        else describe_prefix(prefix_tokens, early.score, chosen.give_up, prefix, served),
        scores=tuple(sorted(float(p) for p in probabilities)),
        # The probability is a monotone map of the raw score, but has ties beyond the outer knots.
        auroc=auroc_interval(_worst_where_unknown(raws), bad, seed=seed),
        ece=expected_calibration_error(probabilities, bad),
        brier=brier(probabilities, bad),
        served=int(served.sum()),
        failures=int((served & bad).sum()),
        unusable=int(np.isnan(fitted.probabilities).sum() + np.isnan(raws).sum()),
        contenders=_contend(_worst_where_unknown(raws), [a.signals for a in test], bad, seed),
    )


def _choose_rule(
    fitted: Fitted,
    early: Fitted | None,
    labels: NDArray[np.bool_],
    probabilities: NDArray[np.float64],
    prefix: NDArray[np.float64] | None,
    wrong: NDArray[np.bool_],
    guarantee: tuple[float, float] | None,
) -> tuple[Rule, Guarantee | None, Infeasible | None]:
    """Choose the loosest rule that keeps the guarantee; serve nothing if none does. Default: LIKELIER_RIGHT."""

    def rule(threshold: float) -> Rule:
        if early is None:
            return Rule(threshold)
        return Rule(threshold, give_up_above(early.probabilities, fitted.probabilities, threshold))

    if guarantee is None:
        return rule(LIKELIER_RIGHT), None, None
    alpha, delta = guarantee
    rules = [rule(t) for t in plan_sequence(fitted.probabilities, labels, len(wrong), alpha=alpha, delta=delta)]
    outcome = fixed_sequence(rules, probabilities, wrong, alpha=alpha, delta=delta, prefix=prefix)
    return (Rule(0.0), None, outcome) if isinstance(outcome, Infeasible) else (*outcome, None)


def split(wrong: NDArray[np.bool_], share: float, seed: int) -> Parts:
    """Draw ``share`` of the examples at random, stratified by right and wrong; both parts keep the data's order."""
    random = np.random.default_rng(seed)
    chosen = np.zeros(len(wrong), bool)
    for kind in (False, True):
        rows = random.permutation(np.flatnonzero(wrong == kind))
        chosen[rows[: round(share * len(rows))]] = True
    return Parts(np.flatnonzero(chosen), np.flatnonzero(~chosen))


def _prefix_probability(score: Score, signals: Signals | None) -> float:
    return float("nan") if signals is None else cautious_probability(score, signals)


def _worst_where_unknown(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Replace non-finite values by +inf: an answer that cannot be judged is passed on first."""
    return np.where(np.isfinite(values), values, np.inf)


def _contend(
    raw: NDArray[np.float64], signals: Sequence[Signals], wrong: NDArray[np.bool_], seed: int
) -> tuple[Contender, ...]:
    found = []
    for name, sign in (("mean_entropy", 1.0), ("mean_logprob", -1.0)):
        value = _worst_where_unknown(sign * np.asarray([feature(s, name) for s in signals]))
        advantage = auroc_difference(raw, value, wrong, seed=seed)
        found.append(Contender(name, auroc_interval(value, wrong, seed=seed), advantage))
    return tuple(found)
