"""From collected answers to a calibration: some fit the score, the others set the threshold and say how good it is.

The others fit nothing: neither score nor prefix nor the order in which thresholds are tested.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import RouteError
from edgekit.routing.decision.fit import describe_prefix, fit_prefix, fit_score, give_up_above, require_enough
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
"""Share of the examples that fits; the rest says how good it is. The threshold is LIKELIER_RIGHT."""

FITTING_FOR_GUARANTEE = 0.4
"""The same where a guarantee is asked for: what it takes is served examples of the threshold's split."""

LIKELIER_RIGHT = 0.5
"""The threshold without a guarantee: an answer is served that is likelier right than wrong."""


@dataclass(frozen=True)
class Contender:
    """A raw signal beside the calibrated score: its AUROC, and the score's less its own, paired. None: one class."""

    signal: str
    auroc: Interval | None
    advantage: Interval | None


@dataclass(frozen=True)
class CalibrationFit:
    """What the answers say of the signals, bound to nothing yet.

    ``served`` and ``failures`` are of the threshold's split: how many were served, and how many of those were wrong.
    ``guarantee`` and ``infeasible`` are None where none was asked for; one of them is not where it was. With
    ``infeasible`` nothing is served: ``threshold`` is 0. ``unusable``: answers with a signal that is no number.
    ``contenders``: mean entropy and mean log-probability as they are.
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
        """Share of the threshold's split that is served."""
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
    """Fit and judge a calibration.

    Args:
        answers: of the bundle, with what is right known.
        guarantee: (alpha, delta), None for none.
        prefix_tokens: of the answers' ``prefix``; 0: nothing is given up early.
        seed: of the split, the folds and the bootstrap.

    Raises:
        RouteError: too few answers, all right or all wrong, an id twice, or no signal that varies.
    """
    if guarantee:
        check_level(*guarantee)
    twice = [name for name, count in Counter(a.id for a in answers).items() if count > 1]
    if twice:
        raise RouteError(f"the answer '{twice[0]}' stands more than once", "an example may count once only")
    wrong = np.asarray([not a.right for a in answers], bool)
    share = FITTING_FOR_GUARANTEE if guarantee else FITTING
    require_enough(wrong, share=share)
    parts = split(wrong, share, seed)
    fitting, test = [answers[i] for i in parts.fit], [answers[i] for i in parts.threshold]
    bad = wrong[parts.threshold]

    fitted = fit_score([a.signals for a in fitting], [not a.right for a in fitting], seed=seed)
    early = (
        fit_prefix([a.prefix for a in fitting], [not a.right for a in fitting], seed=seed) if prefix_tokens else None
    )
    probabilities = np.asarray([cautious_probability(fitted.score, a.signals) for a in test])
    prefix = np.asarray([_prefix_probability(early.score, a.prefix) for a in test]) if early else None

    def rule(threshold: float) -> Rule:
        if early is None:
            return Rule(threshold)
        return Rule(threshold, give_up_above(early.probabilities, fitted.probabilities, threshold))

    kept, infeasible, chosen = None, None, rule(LIKELIER_RIGHT)
    if guarantee:
        alpha, delta = guarantee
        order = plan_sequence(fitted.probabilities, wrong[parts.fit], len(test), alpha=alpha, delta=delta)
        outcome = fixed_sequence(
            [rule(t) for t in order], probabilities, bad, alpha=alpha, delta=delta, prefix=prefix
        )  # fmt: skip
        if isinstance(outcome, Infeasible):
            infeasible, chosen = outcome, Rule(0.0)
        else:
            chosen, kept = outcome
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
        # Of the raw score, which has no ties beyond the last knots: the probability is a monotone map of it.
        auroc=auroc_interval(_worst_where_unknown(raws), bad, seed=seed),
        ece=expected_calibration_error(probabilities, bad),
        brier=brier(probabilities, bad),
        served=int(served.sum()),
        failures=int((served & bad).sum()),
        unusable=int(np.isnan(fitted.probabilities).sum() + np.isnan(raws).sum()),
        contenders=_contend(_worst_where_unknown(raws), [a.signals for a in test], bad, seed),
    )


def split(wrong: NDArray[np.bool_], share: float, seed: int) -> Parts:
    """Draw ``share`` of the examples at random, of the right and of the wrong ones alike; both in the data's order."""
    random = np.random.default_rng(seed)
    chosen = np.zeros(len(wrong), bool)
    for kind in (False, True):
        rows = random.permutation(np.flatnonzero(wrong == kind))
        chosen[rows[: round(share * len(rows))]] = True
    return Parts(np.flatnonzero(chosen), np.flatnonzero(~chosen))


def _prefix_probability(score: Score, signals: Signals | None) -> float:
    return float("nan") if signals is None else cautious_probability(score, signals)


def _worst_where_unknown(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """What cannot be judged is passed on first."""
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
