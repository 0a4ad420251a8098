"""The trail of an answer's signals against numpy, token by token."""

import dataclasses

import numpy as np
import pytest

from edgekit.routing.decision.signals import SHORT, SignalTrail, digest_answer
from edgekit.types import Emitted
from edgekit.types.calibration import Signals

RANDOM = np.random.default_rng(3)


def emitted(logprob, lead=0.5, entropy=1.0):
    return Emitted(7, " x", logprob, logprob_margin=99.0, prob_margin=lead, entropy=entropy)


def random_tokens(count):
    return [emitted(-float(RANDOM.exponential()), *map(float, RANDOM.random(2))) for _ in range(count)]


def reference(tokens):
    logprobs = np.array([t.logprob for t in tokens])
    return Signals(
        tokens=len(tokens),
        mean_logprob=logprobs.mean(),
        q05=np.quantile(logprobs, 0.05, method="linear"),
        q10=np.quantile(logprobs, 0.10, method="linear"),
        q25=np.quantile(logprobs, 0.25, method="linear"),
        min_logprob=logprobs.min(),
        mean_prob_margin=np.mean([t.prob_margin for t in tokens]),
        mean_entropy=np.mean([t.entropy for t in tokens]),
        first_entropy=tokens[0].entropy,
        first_logprob=tokens[0].logprob,
        first_prob_margin=tokens[0].prob_margin,
        answer=digest_answer(" x" * len(tokens), len(tokens)),
    )


@pytest.mark.parametrize("count", [1, 2, 3, 16, 21, 200])
def test_against_numpy(count):
    tokens = random_tokens(count)
    trail = SignalTrail()
    for token in tokens:
        trail.push(token)
    assert len(trail) == count
    found = trail.read()
    assert found.second_logprob is None
    told, expected = (
        dataclasses.astuple(dataclasses.replace(s, second_logprob=0.0))[:-1] for s in (found, reference(tokens))
    )
    assert found.answer == reference(tokens).answer
    assert told == pytest.approx(expected, rel=1e-12)


def test_reading_early_changes_nothing_later():
    tokens = random_tokens(40)
    read, unread = SignalTrail(), SignalTrail()
    for at, token in enumerate(tokens, 1):
        read.push(token)
        unread.push(token)
        early = read.read()
        assert early.tokens == at
        assert early.first_logprob == tokens[0].logprob
    assert read.read() == unread.read()


def test_the_quantile_that_is_said():
    trail = SignalTrail()
    for logprob in (-4.0, -1.0, -3.0, -2.0, 0.0):
        trail.push(emitted(logprob))
    signals = trail.read()
    assert (signals.min_logprob, signals.q25) == (-4.0, -3.0)
    assert signals.q10 == pytest.approx(-3.6)


def test_the_same_tokens_in_another_order_have_the_same_whole():
    """Sums do not depend on the order, so that a calibration refitted elsewhere has the same numbers."""
    tokens = random_tokens(100)
    forth, back = SignalTrail(), SignalTrail()
    for token, other in zip(tokens, [tokens[0], *tokens[:0:-1]], strict=True):
        forth.push(token)
        back.push(other)
    assert forth.read() == back.read()


def test_an_answer_without_tokens_or_without_signals_has_none():
    trail = SignalTrail()
    with pytest.raises(ValueError, match="without tokens"):
        trail.read()
    trail.push(emitted(-1.0))
    trail.push(Emitted(7, " x"))
    with pytest.raises(ValueError, match="signals=True"):
        trail.read()


def test_a_short_answer_is_known_again_and_a_long_one_is_not():
    def told(*texts):
        trail = SignalTrail()
        for text in texts:
            trail.push(Emitted(7, text, -1.0, logprob_margin=1.0, prob_margin=0.5, entropy=1.0))
        return trail.read().answer

    assert told(" positive", "") == told("Positive\n") == digest_answer("positive", 1)
    assert told(" positive") != told(" negative")
    assert "positive" not in told(" positive")
    assert told(*["a"] * SHORT) != ""
    assert told(*["a"] * (SHORT + 1)) == ""
