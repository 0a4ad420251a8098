"""From what an answer says of itself to a probability that it is wrong. Plain Python: it runs beside every answer."""

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
"""What a score may be made of, besides ``answer:`` and a digest."""


def wrong_probability(score: Score, signals: Signals) -> float:
    """The probability that the answer is wrong, 0 to 1.

    Raises:
        RouteError: the score uses a feature that nobody knows, or has no knots; a signal is not a number.
    """
    return probability_of_raw(score, raw_score(score, signals))


def probability_of_raw(score: Score, raw: float) -> float:
    """The probability that belongs to a raw score: linear between the knots, flat outside.

    Raises:
        RouteError: the score has no knots, or the raw score is not a number.
    """
    if not score.knots:
        raise RouteError("the calibration's score has no knots", "calibrate again")
    if not isfinite(raw):
        raise RouteError("the answer's signals hold no number", "report this with the prompt, if you can")
    places = [place for place, _ in score.knots]
    at = bisect_right(places, raw)
    if at == 0:
        return score.knots[0][1]
    if at == len(places):
        return score.knots[-1][1]
    (x0, y0), (x1, y1) = score.knots[at - 1 : at + 1]
    return y0 + (y1 - y0) * (raw - x0) / (x1 - x0)


def cautious_probability(score: Score, signals: Signals) -> float:
    """The same, and 1.0 where a signal is no number: what cannot be judged counts as wrong.

    Raises:
        RouteError: the score uses a feature that nobody knows, or has no knots.
    """
    raw = raw_score(score, signals)
    return probability_of_raw(score, raw) if isfinite(raw) else 1.0


def raw_score(score: Score, signals: Signals) -> float:
    """``intercept`` and the weighted sum of the features: larger for worse; NaN where a signal is no number.

    Raises:
        RouteError: the score uses a feature that nobody knows.
    """
    terms = (weight * feature(signals, name) for name, weight in zip(score.features, score.weights, strict=True))
    values = (score.intercept, *terms)
    return fsum(values) if all(map(isfinite, values)) else nan


def feature(signals: Signals, name: str) -> float:
    """One feature of an answer: a field of its signals, or ``log_tokens``, the natural logarithm of their number.

    ``answer:`` and a digest: 1 where the answer is that one, else 0. NaN where the answer has none.

    Raises:
        RouteError: nobody knows a feature of that name.
    """
    if name.startswith(f"{ANSWER}:"):
        return float(signals.answer == name.removeprefix(f"{ANSWER}:"))
    if name == LOG_TOKENS:
        return log(max(signals.tokens, 1))
    if name not in FEATURES:
        raise RouteError(f"unknown feature '{name}'", did_you_mean(name, FEATURES) + f"known: {', '.join(FEATURES)}")
    value = getattr(signals, name)
    return nan if value is None else float(value)
