"""From signals to a probability, by hand."""

from __future__ import annotations

from dataclasses import asdict, replace
from math import log, nan

import pytest

from edgekit.errors import RouteError
from edgekit.routing.decision.score import FEATURES, feature, raw_score, wrong_probability
from tests.route.cases import SCORE, SIGNALS


def test_linear_between_the_knots_and_flat_outside() -> None:
    for logprob, probability in (
        (0.5, 0.0),
        (0.0, 0.0),
        (-0.25, 0.1),
        (-0.5, 0.2),
        (-0.75, 0.5),
        (-1.0, 0.8),
        (-9.0, 0.8),
    ):
        assert wrong_probability(SCORE, replace(SIGNALS, mean_logprob=logprob)) == pytest.approx(probability)


def test_the_raw_score_is_a_sum_of_weighted_features() -> None:
    score = replace(SCORE, features=("log_tokens", "q10"), weights=(2.0, -3.0), intercept=0.25)
    assert raw_score(score, SIGNALS) == pytest.approx(0.25 + 2 * log(20) + 4.5)
    assert raw_score(replace(score, weights=(0.0, 1.0)), SIGNALS) == pytest.approx(0.25 - 1.5)


def test_features() -> None:
    assert feature(replace(SIGNALS, tokens=3), "log_tokens") == pytest.approx(log(3))
    assert feature(replace(SIGNALS, tokens=0), "log_tokens") == 0
    told = {name: value for name, value in asdict(SIGNALS).items() if name != "answer"}
    told |= {"second_logprob": nan, "log_tokens": log(20)}
    assert {name: feature(SIGNALS, name) for name in FEATURES} == pytest.approx(told, nan_ok=True)


def test_what_no_score_can_be_made_of() -> None:
    with pytest.raises(RouteError, match="unknown feature 'mean_logprb'") as caught:
        wrong_probability(replace(SCORE, features=("mean_logprb",)), SIGNALS)
    assert "did you mean 'mean_logprob'?" in caught.value.hint
    with pytest.raises(RouteError, match="not finite"):
        wrong_probability(SCORE, replace(SIGNALS, mean_logprob=float("nan")))
    with pytest.raises(RouteError, match="no knots"):
        wrong_probability(replace(SCORE, knots=()), SIGNALS)


def test_a_single_knot_is_a_constant() -> None:
    assert wrong_probability(replace(SCORE, knots=((0.5, 0.3),)), SIGNALS) == 0.3
    # Two knots at one place are a step.
    step = replace(SCORE, knots=((0.0, 0.1), (0.3, 0.1), (0.3, 0.9), (1.0, 0.9)))
    assert wrong_probability(step, replace(SIGNALS, mean_logprob=-0.3)) == pytest.approx(0.9)
