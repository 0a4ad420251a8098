"""Compute the probability that an answer is wrong from its signals. Plain Python, as it runs for every answer."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import fields
from math import fsum, isfinite, log, nan
from typing import TYPE_CHECKING

from edgekit.errors import RouteError, did_you_mean
from edgekit.types.calibration import Signals

if TYPE_CHECKING:
    from edgekit.types.calibration import Score

LOG_TOKENS = "log_tokens"

ANSWER = "answer"
FEATURES = (*(f.name for f in fields(Signals) if f.name != ANSWER), LOG_TOKENS)
"""Features that a score may use, besides ``answer:`` with a digest."""


def wrong_probability(score: Score, signals: Signals) -> float:
    """Return the probability that the answer is wrong, 0 to 1.

    Raises:
        RouteError: the score uses an unknown feature, or has no knots; a signal is not finite.
    """
    return probability_of_raw(score, raw_score(score, signals))


def probability_of_raw(score: Score, raw: float) -> float:
    """Map a raw score to its probability: linear between the knots, constant outside.

    Raises:
        RouteError: the score has no knots, or the raw score is not finite.
    """
    if not score.knots:
        raise RouteError("the calibration's score has no knots", "calibrate again")
    if not isfinite(raw):
        raise RouteError("the answer's signals are not finite", "report this, with the prompt if you can")
    places = [place for place, _ in score.knots]
    at = bisect_right(places, raw)
    if at == 0:
        return score.knots[0][1]
    if at == len(places):
        return score.knots[-1][1]
    (x0, y0), (x1, y1) = score.knots[at - 1 : at + 1]
    return y0 + (y1 - y0) * (raw - x0) / (x1 - x0)


def cautious_probability(score: Score, signals: Signals) -> float:
    """Return the probability that the answer is wrong, 1.0 if a signal is not finite.

    Raises:
        RouteError: the score uses an unknown feature, or has no knots.
    """
    raw = raw_score(score, signals)
    return probability_of_raw(score, raw) if isfinite(raw) else 1.0


def raw_score(score: Score, signals: Signals) -> float:
    """Return ``intercept`` plus the weighted sum of the features: larger is worse; NaN if a signal is not finite.

    Raises:
        RouteError: the score uses an unknown feature.
    """
    terms = (weight * feature(signals, name) for name, weight in zip(score.features, score.weights, strict=True))
    values = (score.intercept, *terms)
    return fsum(values) if all(map(isfinite, values)) else nan


def feature(signals: Signals, name: str) -> float:
    """Return one feature of an answer: a field of its signals, or ``log_tokens``, the natural log of its length.

    ``answer:`` with a digest is 1 if the answer has that digest, else 0. NaN if the signal is missing.

    Raises:
        RouteError: the feature is unknown.
    """
    if name.startswith(f"{ANSWER}:"):
        return float(signals.answer == name.removeprefix(f"{ANSWER}:"))
    if name == LOG_TOKENS:
        return log(max(signals.tokens, 1))
    if name not in FEATURES:
        raise RouteError(f"unknown feature '{name}'", did_you_mean(name, FEATURES) + f"known: {', '.join(FEATURES)}")
    value = getattr(signals, name)
    return nan if value is None else float(value)
