"""Fit a score: which signals, with which weights, and what a raw score means as a probability of being wrong.

Candidates are each signal alone and logistic regressions on all of them; cross-validated AUROC chooses, and where
examples are few a candidate must beat a simpler one by more than the standard error of the difference. The probability
is an isotonic regression of what happened on held-out raw scores, under 150 examples a logistic curve (Platt), which
has less to overfit with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgekit.errors import RouteError
from edgekit.routing.decision.metrics import auroc
from edgekit.routing.decision.score import ANSWER, feature, probability_of_raw
from edgekit.types.calibration import PrefixScore, Score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgekit.types.calibration import Signals

SECOND = "second_logprob"
"""The signal that another bundle gives."""

ORIENTED = (
    ("mean_logprob", -1.0),
    ("mean_prob_margin", -1.0),
    ("mean_entropy", 1.0),
    ("q10", -1.0),
    ("q25", -1.0),
    ("q05", -1.0),
    ("min_logprob", -1.0),
    ("first_logprob", -1.0),
    ("first_prob_margin", -1.0),
    ("first_entropy", 1.0),
    ("log_tokens", 1.0),
    (SECOND, -1.0),
)
"""Signals with the sign that makes larger worse; of equals the earlier is chosen."""

LEAST = 30
"""Fewest examples that fit a score."""

LEAST_OF_EACH = 5
"""Fewest right ones and fewest wrong ones among them: every fold has one of each."""

ISOTONIC = 150
"""Examples from which on the probability is isotonic."""

FAMILIAR = 30
"""Times that a short answer must have come to be weighed by itself."""

MOST_FAMILIAR = 20

EVENTS = 10
"""Examples of the rarer kind a signal from which on a regression on all signals does not overfit (Peduzzi 1996)."""

FOLDS = 5
REPEATS = 4
PENALTIES = (0.01, 0.1, 1.0)
"""scikit-learn's C, from the strongest penalty on."""

LOST = 0.02
"""Most of the answers which would have stood that giving up early may lose."""

CAUGHT = 0.05
"""Least of the answers which are passed on anyway that giving up early must catch to be worth having."""

_CURVE = 33


@dataclass(frozen=True)
class Fitted:
    """A score, and what it made of its own examples while they were held out [N]; NaN where a signal is no number."""

    score: Score
    probabilities: NDArray[np.float64]


@dataclass(frozen=True)
class _Candidate:
    """One signal with its sign, or (``penalty`` > 0) a logistic regression on several."""

    columns: tuple[int, ...]
    sign: float = 1.0
    penalty: float = 0.0


@dataclass(frozen=True)
class _Linear:
    weights: NDArray[np.float64]
    intercept: float


def fit_score(signals: Sequence[Signals], wrong: Sequence[bool], *, seed: int = 0) -> Fitted:
    """Fit signals to a probability of being wrong.

    Examples with a signal that is no number are left out: such an answer is not trusted (probability 1).

    Args:
        signals: of each answer.
        wrong: whether it was.
        seed: of the folds.

    Raises:
        RouteError: too few examples, too few of one kind, no signal that varies, or scikit-learn is missing.
    """
    require_learning()
    labels = np.asarray(wrong, bool)
    names = (*(name for name, _ in ORIENTED), *_familiar(signals, labels))
    all_columns = feature_matrix(signals, names)
    # A second opinion counts where every answer has one.
    asked = all(s.second_logprob is not None for s in signals)
    given = [j for j, name in enumerate(names) if asked or name != SECOND]
    usable = np.isfinite(all_columns[:, given]).all(axis=1)
    x, y = all_columns[usable], labels[usable]
    require_enough(y)
    varying = [j for j in given if _varies(x[:, j])]
    if not varying:
        raise RouteError(
            "every answer has the same signals: nothing tells right from wrong", "calibrate on answers that differ"
        )
    from threadpoolctl import threadpool_limits

    # Many small fits: threads would only wait for each other.
    with threadpool_limits(1):
        chosen = _choose(x, y, varying, seed)
        held_out = np.empty(len(y))
        for fold, train in _folds(y, seed, repeats=1):
            held_out[fold] = _raw(_fit_linear(chosen, x[train], y[train]), chosen, x[fold])
        linear = _fit_linear(chosen, x, y)
        knots, method = _curve(held_out, y)
    score = Score(
        features=tuple(names[j] for j in chosen.columns),
        weights=tuple(float(w) for w in linear.weights),
        intercept=linear.intercept,
        method=method,
        knots=knots,
    )
    probabilities = np.full(len(labels), np.nan)
    probabilities[usable] = [probability_of_raw(score, float(r)) for r in held_out]
    return Fitted(score, probabilities)


def fit_prefix(signals: Sequence[Signals | None], wrong: Sequence[bool], *, seed: int = 0) -> Fitted | None:
    """The same after the first tokens. None where too few answers went on after them to fit anything.

    ``probabilities`` are NaN for the answers that were over by then.
    """
    reached = [i for i, s in enumerate(signals) if s is not None]
    try:
        fitted = fit_score([s for s in signals if s is not None], [wrong[i] for i in reached], seed=seed)
    except RouteError:
        return None
    probabilities = np.full(len(signals), np.nan)
    probabilities[reached] = fitted.probabilities
    return Fitted(fitted.score, probabilities)


def give_up_above(prefix: NDArray[np.float64], probabilities: NDArray[np.float64], threshold: float) -> float:
    """The least probability after the first tokens above which at most LOST of the answers that would stand are lost.

    Args:
        prefix: probabilities after the first tokens [N], NaN where there are none.
        probabilities: of the whole answers [N].
        threshold: of the whole answers.
    """
    stood = prefix[(probabilities <= threshold) & np.isfinite(prefix)]
    if not len(stood):
        return float("inf")
    return float(np.quantile(stood, 1 - LOST, method="higher"))


def describe_prefix(
    tokens: int, score: Score, give_up: float, prefix: NDArray[np.float64], served: NDArray[np.bool_]
) -> PrefixScore | None:
    """What giving up early catches and loses, by examples that fitted nothing; None where it is not worth having.

    Args:
        tokens: of the prefix.
        score: of the prefix.
        give_up: its threshold.
        prefix: probabilities after the first tokens [N], NaN where there are none.
        served: whether the whole answer stands [N].
    """
    given_up = prefix > give_up
    caught = float(given_up[~served].mean()) if (~served).any() else 0.0
    lost = float(given_up[served].mean()) if served.any() else 0.0
    if caught < CAUGHT or not np.isfinite(give_up):
        return None
    return PrefixScore(tokens, score, give_up, caught, lost)


def feature_matrix(signals: Sequence[Signals], names: Sequence[str]) -> NDArray[np.float64]:
    """The named features [N, F]."""
    rows = [[feature(s, name) for name in names] for s in signals]
    return np.asarray(rows, np.float64).reshape(len(rows), len(names))


def require_learning() -> None:
    """Raise RouteError where scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise RouteError("calibration needs scikit-learn", "pip install 'edgekit[serve]'") from error


def require_enough(wrong: NDArray[np.bool_], *, share: float = 1.0) -> None:
    """Raise RouteError where ``share`` of these examples cannot fit a score."""
    n, bad = len(wrong), int(wrong.sum())
    least, of_each = round(LEAST / share), round(LEAST_OF_EACH / share)
    if n < least:
        raise RouteError(f"{n} examples cannot calibrate anything", f"give at least {least}; 500 are better")
    for count, word in ((n - bad, "right"), (bad, "wrong")):
        if not count:
            other = "wrong" if word == "right" else "right"
            raise RouteError(
                f"all {n} answers are {other}: there is nothing to tell apart",
                "check how the answers are compared with the data, or calibrate on questions of mixed difficulty",
            )
        if count < of_each:
            raise RouteError(
                f"only {count} of {n} answers are {word}: at least {of_each} are needed to tell them apart",
                "give more examples, or some of another difficulty",
            )


def _familiar(signals: Sequence[Signals], wrong: NDArray[np.bool_]) -> list[str]:
    """Features for the short answers that came often, both right and wrong; the most frequent first.

    A model asked for one word of a few prefers some of them, whatever the question (contextual calibration, Zhao et
    al. 2021): one probability does not mean the same for each.
    """
    came: dict[str, list[int]] = {}
    for s, bad in zip(signals, wrong, strict=True):
        if s.answer:
            came.setdefault(s.answer, [0, 0])[int(bad)] += 1
    often = [a for a, (right, bad) in came.items() if right + bad >= FAMILIAR and min(right, bad) >= LEAST_OF_EACH]
    return [f"{ANSWER}:{a}" for a in sorted(often, key=lambda a: (-sum(came[a]), a))[:MOST_FAMILIAR]]


def _varies(values: NDArray[np.float64]) -> bool:
    """Whether a signal differs from its commonest value in as many examples as it takes to weigh it."""
    if np.ptp(values) <= 1e-9:
        return False
    _, counts = np.unique(values, return_counts=True)
    return len(values) - int(counts.max()) >= 2 * LEAST_OF_EACH


# --- choosing -----------------------------------------------------------------------------------


def _choose(x: NDArray[np.float64], y: NDArray[np.bool_], varying: Sequence[int], seed: int) -> _Candidate:
    """The simplest candidate that none beats by more than the standard error of the difference over the folds.

    Where EVENTS are there, the one with the best mean: nothing overfits then, and what is passed over for its
    simplicity is lost.
    """
    own = [j for j in varying if j < len(ORIENTED)]
    candidates = [_Candidate((j,), ORIENTED[j][1]) for j in own]
    for together in dict.fromkeys((tuple(own), tuple(varying))):
        # One answer alone has no sign that is known beforehand: a regression finds it.
        if len(together) > 1 or (together and not own):
            candidates += [_Candidate(together, penalty=c) for c in PENALTIES]
    folds = _folds(y, seed, repeats=REPEATS)
    scores = np.zeros((len(candidates), len(folds)))
    for i, candidate in enumerate(candidates):
        for k, (fold, train) in enumerate(folds):
            value = auroc(_raw(_fit_linear(candidate, x[train], y[train]), candidate, x[fold]), y[fold])
            scores[i, k] = 0.5 if value is None else value
    means = scores.mean(axis=1)
    best = int(np.argmax(means))
    if min(y.sum(), (~y).sum()) >= EVENTS * len(varying):
        return candidates[best]
    # Within one error of the best; the difference is paired, since folds vary more than candidates do.
    gaps = scores[best] - scores
    errors = gaps.std(axis=1, ddof=1) / np.sqrt(FOLDS)
    near = [i for i in range(len(candidates)) if gaps[i].mean() <= errors[i]]
    simplest = min((len(candidates[i].columns), candidates[i].penalty) for i in near)
    alike = [i for i in near if (len(candidates[i].columns), candidates[i].penalty) == simplest]
    return candidates[max(alike, key=lambda i: (round(means[i], 6), -i))]


def _folds(
    y: NDArray[np.bool_], seed: int, *, repeats: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:  # fmt: skip
    """(held out, the rest) of a repeated stratified split."""
    from sklearn.model_selection import RepeatedStratifiedKFold

    split = RepeatedStratifiedKFold(n_splits=FOLDS, n_repeats=repeats, random_state=seed)
    return [(test, train) for train, test in split.split(np.zeros((len(y), 1)), y)]


def _fit_linear(candidate: _Candidate, x: NDArray[np.float64], y: NDArray[np.bool_]) -> _Linear:
    if not candidate.penalty:
        return _Linear(np.asarray([candidate.sign]), 0.0)
    from sklearn.linear_model import LogisticRegression

    x = x[:, candidate.columns]
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-9, scale, np.inf)
    model = LogisticRegression(C=candidate.penalty, max_iter=1000).fit((x - mean) / scale, y)
    weights = model.coef_[0] / scale
    return _Linear(weights, float(model.intercept_[0] - weights @ mean))


def _raw(linear: _Linear, candidate: _Candidate, x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(x[:, candidate.columns] @ linear.weights + linear.intercept, np.float64)


# --- probabilities ------------------------------------------------------------------------------


def _curve(
    raw: NDArray[np.float64], y: NDArray[np.bool_]
) -> tuple[tuple[tuple[float, float], ...], Literal["isotonic", "platt"]]:
    if len(y) < ISOTONIC:
        return _platt(raw, y), "platt"
    return _isotonic(raw, y), "isotonic"


def _isotonic(raw: NDArray[np.float64], y: NDArray[np.bool_]) -> tuple[tuple[float, float], ...]:
    """Each block that the pool-adjacent-violators algorithm finds is one knot, at its mean raw score.

    Steps would leave no order within a block, and no threshold there (centred isotonic regression, Oron and Flournoy
    2017). No probability is nearer to 0 or 1 than half an example.
    """
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(raw, y).predict(raw)
    values, block, sizes = np.unique(np.round(fitted, 12), return_inverse=True, return_counts=True)
    centres = np.bincount(block, weights=raw, minlength=len(values)) / sizes
    half = 0.5 / len(y)
    return tuple((float(c), float(v)) for c, v in zip(centres, np.clip(values, half, 1 - half), strict=True))


def _platt(raw: NDArray[np.float64], y: NDArray[np.bool_]) -> tuple[tuple[float, float], ...]:
    """A logistic curve through Platt's smoothed targets (Platt 1999), sampled half a range beyond the data."""
    from sklearn.linear_model import LogisticRegression

    bad = int(y.sum())
    target = np.where(y, (bad + 1) / (bad + 2), 1 / (len(y) - bad + 2))
    centre, spread = float(raw.mean()), float(raw.std()) or 1.0
    z = ((raw - centre) / spread)[:, None]
    # A soft target is both classes at once, weighted; C so large that nothing is penalised.
    model = LogisticRegression(C=1e6, max_iter=1000).fit(
        np.concatenate([z, z]), np.repeat([1, 0], len(y)), sample_weight=np.concatenate([target, 1 - target])
    )
    slope, intercept = max(float(model.coef_[0, 0]), 0.0), float(model.intercept_[0])
    if not slope:
        # The score ranks the wrong way round: it says nothing, and the curve is the base rate.
        return ((centre, (bad + 1) / (len(y) + 2)),)
    margin = 0.5 * float(np.ptp(raw)) or 1.0
    at = np.linspace(raw.min() - margin, raw.max() + margin, _CURVE)
    values = 1 / (1 + np.exp(-(slope * (at - centre) / spread + intercept)))
    return tuple((float(a), float(v)) for a, v in zip(at, values, strict=True))
