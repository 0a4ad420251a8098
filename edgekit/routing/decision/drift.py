"""Compare live scores with those of the calibration: a guarantee holds only while the distributions agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

LEAST = 100
"""Fewest live scores that are compared."""

MOST_PSI = 0.25
"""Population stability index above which the distribution has drifted (the usual rule in credit scoring)."""

LEAST_P = 0.001
LEAST_KS = 0.1
"""A Kolmogorov-Smirnov test reports drift at a low p, as it is repeated often, and a gap that is not tiny."""

_BINS = 10


@dataclass(frozen=True)
class Drift:
    """Comparison of live scores with the calibration's.

    ``ks``: greatest gap of the two distribution functions, ``p`` that of the two-sample Kolmogorov-Smirnov test;
    ``psi``: population stability index over ten bins. All None below LEAST scores. ``words`` describes the result.
    """

    n: int
    ks: float | None
    p: float | None
    psi: float | None
    stale: bool
    words: str


def measure_drift(live: Sequence[float], calibrated: Sequence[float]) -> Drift:
    """Compare probabilities of live answers with those of the calibration (``Calibration.scores``)."""
    n = len(live)
    if n < LEAST or not len(calibrated):
        return Drift(n, None, None, None, stale=False, words=f"too few answers to compare: {n} of {LEAST}")
    from scipy.stats import ks_2samp

    now, then = np.asarray(live, float), np.asarray(calibrated, float)
    test = ks_2samp(now, then, method="asymp")
    ks, p, psi = float(test.statistic), float(test.pvalue), stability_index(now, then)
    # Two samples of one distribution differ too: the expected index is then (bins - 1) (1/n + 1/m).
    moved = psi - (_BINS - 1) * (1 / len(now) + 1 / len(then)) > MOST_PSI or (p < LEAST_P and ks > LEAST_KS)
    means = f"mean probability of being wrong {now.mean():.2f} over {n} answers, {then.mean():.2f} when calibrated"
    words = f"stale: {means}; no guarantee holds, calibrate again" if moved else f"as calibrated: {means}"
    return Drift(n, ks, p, psi, stale=moved, words=words)


def stability_index(now: NDArray[np.float64], then: NDArray[np.float64], bins: int = _BINS) -> float:
    """PSI: sum of (a - b) ln(a / b) over bins of equal mass in ``then``; half a count is added to every bin."""
    edges = np.unique(np.quantile(then, np.linspace(0, 1, bins + 1)[1:-1]))
    shares = []
    for values in (now, then):
        counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1) + 0.5
        shares.append(counts / counts.sum())
    a, b = shares
    return float(np.sum((a - b) * np.log(a / b)))
