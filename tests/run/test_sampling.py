"""Our logits processing against transformers', and drawn frequencies against probabilities."""

import math

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as reference

from edgekit.run import sampling as ours
from edgekit.types import Sampling

RANDOM = np.random.default_rng(7)
LOGITS = (RANDOM.standard_normal((20, 1000)) * 3).astype(np.float32)
NOTHING_SEEN = np.zeros(1000, bool)


def processed(processor, logits, ids=()):
    return processor(torch.tensor([list(ids)], dtype=torch.long), torch.from_numpy(logits.copy())[None])[0].numpy()


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_penalize(penalty):
    for logits in LOGITS:
        ids = RANDOM.integers(0, 1000, 30)
        seen = NOTHING_SEEN.copy()
        seen[ids] = True
        expected = processed(reference.RepetitionPenaltyLogitsProcessor(penalty), logits, ids)
        np.testing.assert_allclose(ours.penalize(logits, seen, penalty), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [(lambda x, k=k: ours.keep_top_k(x, k), reference.TopKLogitsWarper(k)) for k in (1, 5, 2000)]
    + [(lambda x, p=p: ours.keep_top_p(x, p), reference.TopPLogitsWarper(p)) for p in (0.0, 0.1, 0.5, 0.95)]
    + [(lambda x, p=p: ours.keep_min_p(x, p), reference.MinPLogitsWarper(p)) for p in (0.01, 0.2, 1.0)],
)
def test_filters_keep_the_same_tokens(mine, theirs):
    for logits in LOGITS:
        np.testing.assert_array_equal(mine(logits), processed(theirs, logits))


def test_top_k_keeps_ties():
    kept = ours.keep_top_k(np.array([1, 3, 2, 2, 0], np.float32), 2)
    np.testing.assert_array_equal(kept > -np.inf, [False, True, True, True, False])


def test_order_is_transformers_order():
    chain = [
        reference.RepetitionPenaltyLogitsProcessor(1.2),
        reference.TemperatureLogitsWarper(0.7),
        reference.TopKLogitsWarper(50),
        reference.TopPLogitsWarper(0.9),
        reference.MinPLogitsWarper(0.05),
    ]
    sampling = Sampling(temperature=0.7, top_k=50, top_p=0.9, min_p=0.05, repetition_penalty=1.2)
    for logits in LOGITS:
        ids = RANDOM.integers(0, 1000, 30)
        seen = NOTHING_SEEN.copy()
        seen[ids] = True
        expected = logits
        for processor in chain:
            expected = processed(processor, expected, ids)
        got = ours.warp(logits, seen, sampling)
        np.testing.assert_array_equal(got > -np.inf, expected > -np.inf)
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_greedy_takes_the_largest_and_draws_nothing():
    random = np.random.default_rng(3)
    assert ours.choose(LOGITS[0], NOTHING_SEEN, Sampling(top_k=1), random) == LOGITS[0].argmax()
    assert random.random() == np.random.default_rng(3).random()


def test_greedy_obeys_the_repetition_penalty():
    best = int(LOGITS[0].argmax())
    seen = NOTHING_SEEN.copy()
    seen[best] = True
    sampling = Sampling(repetition_penalty=10.0)
    assert ours.choose(LOGITS[0], seen, sampling, np.random.default_rng(0)) != best


def test_drawn_frequencies_are_the_probabilities():
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.07, 0.03], np.float32))
    random = np.random.default_rng(11)
    draws = [ours.choose(logits, np.zeros(5, bool), Sampling(temperature=1.0), random) for _ in range(20_000)]
    frequencies = np.bincount(draws, minlength=5) / 20_000
    np.testing.assert_allclose(frequencies, [0.5, 0.25, 0.15, 0.07, 0.03], atol=0.012)
    draws = [ours.choose(logits, np.zeros(5, bool), Sampling(temperature=0.5, top_k=2), random) for _ in range(20_000)]
    np.testing.assert_allclose(np.bincount(draws, minlength=5) / 20_000, [0.8, 0.2, 0, 0, 0], atol=0.012)


def test_a_seed_repeats():
    def draw(seed):
        random = np.random.default_rng(seed)
        return [ours.choose(x, NOTHING_SEEN, Sampling(temperature=1.0), random) for x in LOGITS]

    assert draw(1) == draw(1) != draw(2)


def reference_signals(logits, token):
    """In float64, from torch's own log-softmax."""
    logs = torch.log_softmax(torch.from_numpy(logits).double(), 0)
    top = logs.topk(2).values
    return logs[token], top[0] - top[1], top[0].exp() - top[1].exp(), -torch.special.xlogy(logs.exp(), logs.exp()).sum()


@pytest.mark.parametrize("vocabulary", [1000, 49_152, 128_256])
@pytest.mark.parametrize("spread", [0.01, 3, 30])
def test_signals_are_of_the_unmodified_distribution(vocabulary, spread):
    logits = (RANDOM.standard_normal(vocabulary) * spread + 50).astype(np.float32)
    before = logits.copy()
    for token in (17, int(logits.argmax())):
        expected = [float(value) for value in reference_signals(logits, token)]
        assert ours.signals(logits, token) == pytest.approx(expected, abs=2e-5, rel=2e-6)
        room = np.full((2, vocabulary), np.nan, np.float32)
        assert ours.signals(logits, token, room) == ours.signals(logits, token, room) == ours.signals(logits, token)
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize(
    ("logits", "token", "logprob", "margin", "lead", "entropy"),
    [
        ([0, 0, 0, 0], 3, -math.log(4), 0, 0, math.log(4)),
        ([200, 0, -200, -200], 1, -200, 200, 1, 0),
        ([5, 7, 7, -1e4], 1, -0.758624, 0, 0, 0.885382),
        ([-np.inf, math.log(3), 0, -np.inf], 2, math.log(0.25), math.log(3), 0.5, 0.56234),
    ],
    ids=["even", "certain", "tie", "impossible"],
)
def test_signals_at_the_edges(logits, token, logprob, margin, lead, entropy):
    found = ours.signals(np.array(logits, np.float32), token)
    assert found == pytest.approx((logprob, margin, lead, entropy), abs=1e-5)


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-300, 5e-324])
def test_the_coldest_sampling_takes_the_likeliest(temperature):
    for logits in LOGITS * 30:
        chances = ours.probabilities(ours.warp(logits, NOTHING_SEEN, Sampling(temperature=temperature)))
        assert chances[logits.argmax()] == 1.0
