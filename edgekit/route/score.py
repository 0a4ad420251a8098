"""From signals to the probability of being wrong, as a calibration says. Standard library only: it runs per answer."""

from __future__ import annotations

from bisect import bisect_right
from math import isfinite, log, nan
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.calibration import Score, Signals

LOG_TOKENS = "log_tokens"


def feature(signals: Signals, name: str) -> float:
    """A field of Signals, or the logarithm of the number of tokens."""
    if name == LOG_TOKENS:
        return log(max(signals.tokens, 1))
    return float(getattr(signals, name))


def raw_score(score: Score, signals: Signals) -> float:
    """The intercept plus the features by their weights, larger for worse; NaN where a signal is no number."""
    total = score.intercept
    for name, weight in zip(score.features, score.weights, strict=True):
        total += weight * feature(signals, name)
    return total if isfinite(total) else nan


def probability_of_raw(score: Score, raw: float) -> float:
    """The probability that belongs to a raw score: linear between the knots, flat outside; 1.0 for NaN."""
    if not isfinite(raw):
        return 1.0
    knots = score.knots
    at = bisect_right(knots, raw, key=lambda knot: knot[0])
    if at == 0:
        return knots[0][1]
    if at == len(knots):
        return knots[-1][1]
    (x0, y0), (x1, y1) = knots[at - 1], knots[at]
    return y0 + (y1 - y0) * (raw - x0) / (x1 - x0)


def probability_wrong(score: Score, signals: Signals) -> float:
    """How likely the answer is wrong. 1.0 where a signal is no number: what cannot be judged is not trusted."""
    return probability_of_raw(score, raw_score(score, signals))
