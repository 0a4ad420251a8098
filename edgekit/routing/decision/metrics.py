"""Metrics of how well a score separates wrong answers from right ones. Larger scores are likelier wrong. Pure numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit.types.interval import Interval

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

DRAWS = 1000
"""Resamples of a bootstrap."""

BINS = 15
"""Bins of the expected calibration error, with equal numbers of examples."""

_AT_ONCE = 1_000_000
"""Resampled values held in memory at once."""


def auroc(score: NDArray[np.float64], wrong: NDArray[np.bool_]) -> float | None:
    """The probability that a wrong answer scores above a right one, ties counted half; None for a single class."""
    value = float(_aurocs(score[None], wrong[None])[0])
    return value if np.isfinite(value) else None


def auroc_interval(score: NDArray[np.float64], wrong: NDArray[np.bool_], *, seed: int = 0) -> Interval | None:
    """AUROC with the 95 % percentile interval of a bootstrap over examples; None for a single class."""
    return bootstrap(lambda rows: _aurocs(score[rows], wrong[rows]), len(wrong), seed=seed)


def auroc_difference(
    first: NDArray[np.float64], second: NDArray[np.float64], wrong: NDArray[np.bool_], *, seed: int = 0
) -> Interval | None:
    """AUROC of ``first`` less that of ``second``, paired: both on the same examples of every resample."""
    return bootstrap(
        lambda rows: _aurocs(first[rows], wrong[rows]) - _aurocs(second[rows], wrong[rows]), len(wrong), seed=seed
    )


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], NDArray[np.float64]], n: int, *, seed: int = 0, draws: int = DRAWS
) -> Interval | None:
    """A statistic with its 95 % percentile interval over resamples of ``n`` examples.

    Args:
        statistic: maps indices of examples [D, n] to D values; NaN where it is not defined.
        n: number of examples.
        seed: seed of the resampling.
        draws: number of resamples; those in which the statistic is not defined are ignored.

    Returns:
        The interval; None if the statistic is not defined on the examples themselves, or in most resamples.
    """
    if not n:
        return None
    value = float(statistic(np.arange(n)[None])[0])
    random = np.random.default_rng(seed)
    block = max(1, _AT_ONCE // n)
    sizes = [min(block, draws - start) for start in range(0, draws, block)]
    found = np.concatenate([statistic(random.integers(n, size=(size, n))) for size in sizes])
    found = found[np.isfinite(found)]
    if not np.isfinite(value) or len(found) < draws / 2:
        return None
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def expected_calibration_error(probability: NDArray[np.float64], wrong: NDArray[np.bool_], bins: int = BINS) -> float:
    """ECE: mean distance of a bin's mean probability from its share of wrong answers, bins of equal mass.

    Equal probabilities stay in one bin, so there may be fewer than ``bins``.
    """
    order = np.argsort(probability, kind="stable")
    p, y = probability[order], wrong[order].astype(float)
    edges = np.linspace(0, len(p), min(bins, len(p)) + 1)[1:-1].round().astype(int)
    edges = np.unique(np.searchsorted(p, p[edges], side="left")) if len(edges) else edges
    edges = edges[edges > 0]
    gaps = [abs(float(a.sum() - b.sum())) for a, b in zip(np.split(p, edges), np.split(y, edges), strict=True)]
    return sum(gaps) / len(p)


def brier(probability: NDArray[np.float64], wrong: NDArray[np.bool_]) -> float:
    """Mean squared difference of the probability from the outcome."""
    return float(np.mean((probability - wrong) ** 2))


def risk_coverage(score: NDArray[np.float64], wrong: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of failures among the k answers with the lowest scores, k = 1 .. N: risk at coverage k / N [N].

    Ties count as their expectation in random order, so a constant score has the base rate throughout.
    """
    n = len(wrong)
    values, group, sizes = np.unique(score, return_inverse=True, return_counts=True)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    failures = np.concatenate([[0.0], np.cumsum(np.bincount(group, weights=wrong, minlength=len(values)))])
    k = np.arange(1, n + 1)
    return np.asarray(np.interp(k, ends, failures) / k, np.float64)


def aurc(score: NDArray[np.float64], wrong: NDArray[np.bool_]) -> float:
    """Area under the risk-coverage curve: its mean over all coverages. The base rate for a constant score."""
    return float(risk_coverage(score, wrong).mean())


def _aurocs(scores: NDArray[np.float64], wrong: NDArray[np.bool_]) -> NDArray[np.float64]:
    """AUROC of each row of [D, N], by the rank sum (Mann-Whitney); NaN for rows of one class."""
    from scipy.stats import rankdata

    ranks = rankdata(scores, axis=1)
    bad = wrong.sum(axis=1)
    good = wrong.shape[1] - bad
    with np.errstate(invalid="ignore", divide="ignore"):
        values = ((ranks * wrong).sum(axis=1) - bad * (bad + 1) / 2) / (bad * good)
    return np.asarray(values, np.float64)
