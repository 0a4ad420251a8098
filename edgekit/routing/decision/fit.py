"""Fit a score: choose signals and weights, and map the raw score to a probability of being wrong.

Candidates are each signal alone and logistic regressions on all of them; cross-validated AUROC chooses. With few
examples a candidate must beat a simpler one by more than the standard error of the difference. The probability is an
isotonic regression of the outcomes on held-out raw scores, or below 150 examples a logistic curve (Platt), which
overfits less.
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
"""The signal that comes from a second bundle."""

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
"""Signals with the sign that makes larger values worse; among equals the earlier is chosen."""

LEAST = 30
"""Fewest examples to fit a score."""

LEAST_OF_EACH = 5
"""Fewest right and fewest wrong examples, so that every fold has one of each."""

ISOTONIC = 150
"""Fewest examples for an isotonic probability."""

FAMILIAR = 30
"""Fewest occurrences of a short answer that gets a feature of its own."""

MOST_FAMILIAR = 20

EVENTS = 10
"""Examples of the rarer class per signal from which a regression on all signals does not overfit (Peduzzi 1996)."""

FOLDS = 5
REPEATS = 4
PENALTIES = (0.01, 0.1, 1.0)
"""Values of scikit-learn's C, strongest penalty first."""

LOST = 0.02
"""Largest share of the answers that would be served which giving up early may lose."""

CAUGHT = 0.05
"""Least share of the answers that would be passed on which giving up early must catch to be worthwhile."""

_CURVE = 33


@dataclass(frozen=True)
class Fitted:
    """A score, and its held-out probabilities of its own examples [N]; NaN for non-finite signals."""

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
    """Fit a probability of being wrong to signals.

    Examples with a non-finite signal are excluded: such an answer always gets probability 1.

    Args:
        signals: the signals of each answer.
        wrong: whether each answer was wrong.
        seed: seed of the folds.

    Raises:
        RouteError: there are too few examples or too few of one class, no signal varies, or scikit-learn is missing.
    """
    require_learning()
    labels = np.asarray(wrong, bool)
    names = (*(name for name, _ in ORIENTED), *_familiar(signals, labels))
    all_columns = feature_matrix(signals, names)
    # A second opinion is used only if every answer has one.
    asked = all(s.second_logprob is not None for s in signals)
    given = [j for j, name in enumerate(names) if asked or name != SECOND]
    usable = np.isfinite(all_columns[:, given]).all(axis=1)
    x, y = all_columns[usable], labels[usable]
    require_enough(y)
    varying = [j for j in given if _varies(x[:, j])]
    if not varying:
        raise RouteError(
            "every answer has the same signals, so nothing separates right from wrong", "calibrate on more varied data"
        )
    from threadpoolctl import threadpool_limits

    # For many small fits threads only add overhead.
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
    """Fit a score to the signals of the first tokens. None if too few answers are longer than that.

    ``probabilities`` are NaN for the shorter answers.
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
    """Return the least prefix threshold that loses at most the share LOST of the answers that would be served.

    Args:
        prefix: probabilities after the first tokens [N], NaN if there is none.
        probabilities: probabilities of the whole answers [N].
        threshold: threshold of the whole answers.
    """
    stood = prefix[(probabilities <= threshold) & np.isfinite(prefix)]
    if not len(stood):
        return float("inf")
    return float(np.quantile(stood, 1 - LOST, method="higher"))


def describe_prefix(
    tokens: int, score: Score, give_up: float, prefix: NDArray[np.float64], served: NDArray[np.bool_]
) -> PrefixScore | None:
    """Measure what giving up early catches and loses, on examples that fitted nothing; None if not worthwhile.

    Args:
        tokens: number of tokens of the prefix.
        score: score of the prefix.
        give_up: threshold of the prefix.
        prefix: probabilities after the first tokens [N], NaN if there is none.
        served: whether the whole answer would be served [N].
    """
    given_up = prefix > give_up
    caught = float(given_up[~served].mean()) if (~served).any() else 0.0
    lost = float(given_up[served].mean()) if served.any() else 0.0
    if caught < CAUGHT or not np.isfinite(give_up):
        return None
    return PrefixScore(tokens, score, give_up, caught, lost)


def feature_matrix(signals: Sequence[Signals], names: Sequence[str]) -> NDArray[np.float64]:
    """Return the named features [N, F]."""
    rows = [[feature(s, name) for name in names] for s in signals]
    return np.asarray(rows, np.float64).reshape(len(rows), len(names))


def require_learning() -> None:
    """Raise RouteError if scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise RouteError("calibration needs scikit-learn", "pip install 'edgekit[serve]'") from error


def require_enough(wrong: NDArray[np.bool_], *, share: float = 1.0) -> None:
    """Raise RouteError if ``share`` of these examples is too few to fit a score."""
    n, bad = len(wrong), int(wrong.sum())
    least, of_each = round(LEAST / share), round(LEAST_OF_EACH / share)
    if n < least:
        raise RouteError(f"{n} examples are too few to calibrate", f"give at least {least}; 500 are better")
    for count, word in ((n - bad, "right"), (bad, "wrong")):
        if not count:
            other = "wrong" if word == "right" else "right"
            raise RouteError(
                f"all {n} answers are {other}: calibration needs both kinds",
                "check how the answers are graded, or calibrate on questions of mixed difficulty",
            )
        if count < of_each:
            raise RouteError(
                f"only {count} of {n} answers are {word}: at least {of_each} are needed",
                f"give more examples, or {'easier' if word == 'right' else 'harder'} ones",
            )


def _familiar(signals: Sequence[Signals], wrong: NDArray[np.bool_]) -> list[str]:
    """Return features for short answers that are frequent, both right and wrong; the most frequent first.

    A model that must choose one of a few words prefers some of them, whatever the question (contextual calibration,
    Zhao et al. 2021), so the same log-probability means something else for each.
    """
    came: dict[str, list[int]] = {}
    for s, bad in zip(signals, wrong, strict=True):
        if s.answer:
            came.setdefault(s.answer, [0, 0])[int(bad)] += 1
    often = [a for a, (right, bad) in came.items() if right + bad >= FAMILIAR and min(right, bad) >= LEAST_OF_EACH]
    return [f"{ANSWER}:{a}" for a in sorted(often, key=lambda a: (-sum(came[a]), a))[:MOST_FAMILIAR]]


def _varies(values: NDArray[np.float64]) -> bool:
    """Whether a signal differs from its most common value in enough examples to fit a weight."""
    if np.ptp(values) <= 1e-9:
        return False
    _, counts = np.unique(values, return_counts=True)
    return len(values) - int(counts.max()) >= 2 * LEAST_OF_EACH


# --- choosing -----------------------------------------------------------------------------------


def _choose(x: NDArray[np.float64], y: NDArray[np.bool_], varying: Sequence[int], seed: int) -> _Candidate:
    """Choose the simplest candidate that none beats by more than the standard error of the difference over the folds.

    With at least EVENTS examples per signal the best mean wins, as nothing overfits then.
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
    # Within one standard error of the best; paired, since folds vary more than candidates do.
    gaps = scores[best] - scores
    errors = gaps.std(axis=1, ddof=1) / np.sqrt(FOLDS)
    near = [i for i in range(len(candidates)) if gaps[i].mean() <= errors[i]]
    simplest = min((len(candidates[i].columns), candidates[i].penalty) for i in near)
    alike = [i for i in near if (len(candidates[i].columns), candidates[i].penalty) == simplest]
    return candidates[max(alike, key=lambda i: (round(means[i], 6), -i))]


def _folds(y: NDArray[np.bool_], seed: int, *, repeats: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return the (held-out, training) indices of a repeated stratified split."""
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
    """Fit an isotonic regression with one knot per pool-adjacent-violators block, at its mean raw score.

    Linear interpolation keeps an order within a block, unlike steps (centred isotonic regression, Oron and Flournoy
    2017). No probability is nearer to 0 or 1 than half an example.
    """
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(raw, y).predict(raw)
    values, block, sizes = np.unique(np.round(fitted, 12), return_inverse=True, return_counts=True)
    centres = np.bincount(block, weights=raw, minlength=len(values)) / sizes
    half = 0.5 / len(y)
    return tuple((float(c), float(v)) for c, v in zip(centres, np.clip(values, half, 1 - half), strict=True))


def _platt(raw: NDArray[np.float64], y: NDArray[np.bool_]) -> tuple[tuple[float, float], ...]:
    """Fit a logistic curve to Platt's smoothed targets (Platt 1999), sampled half a range beyond the data."""
    from sklearn.linear_model import LogisticRegression

    bad = int(y.sum())
    target = np.where(y, (bad + 1) / (bad + 2), 1 / (len(y) - bad + 2))
    centre, spread = float(raw.mean()), float(raw.std()) or 1.0
    z = ((raw - centre) / spread)[:, None]
    # A soft target is both classes at once, weighted; C is so large that nothing is penalised.
    model = LogisticRegression(C=1e6, max_iter=1000).fit(
        np.concatenate([z, z]), np.repeat([1, 0], len(y)), sample_weight=np.concatenate([target, 1 - target])
    )
    slope, intercept = max(float(model.coef_[0, 0]), 0.0), float(model.intercept_[0])
    if not slope:
        # The score ranks the wrong way round: use the base rate.
        return ((centre, (bad + 1) / (len(y) + 2)),)
    margin = 0.5 * float(np.ptp(raw)) or 1.0
    at = np.linspace(raw.min() - margin, raw.max() + margin, _CURVE)
    values = 1 / (1 + np.exp(-(slope * (at - centre) / spread + intercept)))
    return tuple((float(a), float(v)) for a, v in zip(at, values, strict=True))
