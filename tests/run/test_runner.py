"""Tokens in, logits out: chunks, steps and rewinds all agree, within bounded memory."""

import numpy as np
import pytest
from onnxruntime import InferenceSession

from edgekit.errors import RunError
from edgekit.run import load_runner
from edgekit.run.cache import FIRST_POSITIONS
from edgekit.types.generation import PREFILL_CHUNK

DIALECTS = pytest.mark.parametrize("dialect", ["in place", "append"])
TOKENS = np.random.default_rng(1).integers(0, 50, 1100).tolist()


@pytest.fixture
def runner_of(bundle_of):
    runners = []

    def make(dialect, *, threads=1, context=None, **target):
        runners.append(load_runner(bundle_of(dialect, **target), threads=threads, context=context))
        return runners[-1]

    yield make
    for runner in runners:
        runner.close()


@DIALECTS
def test_prefill_chunks_and_steps_agree(runner_of, dialect):
    runner = runner_of(dialect)
    assert len(TOKENS) > 2 * PREFILL_CHUNK
    whole = runner.logits(TOKENS)
    assert whole.shape == (len(TOKENS), runner.vocab_size)
    assert whole.std() > 0.1
    runner.reset()
    np.testing.assert_allclose(runner.prefill(TOKENS), whole[-1], atol=1e-4)
    runner.reset()
    for start, stop in ((0, 7), (7, 8), (8, 300), (300, 301)):
        last = runner.prefill(TOKENS[start:stop])
        np.testing.assert_allclose(last, whole[stop - 1], atol=1e-4)
        assert runner.length == stop
    for i in range(301, 340):
        np.testing.assert_allclose(runner.step(TOKENS[i]), whole[i], atol=1e-4)
    assert runner.length == 340


@DIALECTS
def test_token_by_token_past_the_first_allocation(runner_of, dialect):
    runner = runner_of(dialect)
    whole = runner.logits(TOKENS[: FIRST_POSITIONS + 20])
    runner.reset()
    steps = np.stack([runner.step(t).copy() for t in TOKENS[: FIRST_POSITIONS + 20]])
    np.testing.assert_allclose(steps, whole, atol=1e-4)


@DIALECTS
def test_the_order_of_earlier_tokens_matters(runner_of, dialect):
    """Guards the other tests: logits that ignored the cache would agree with anything."""
    runner = runner_of(dialect)
    first = runner.prefill([3, 4, 5])
    runner.reset()
    assert np.abs(first - runner.prefill([9, 8, 5])).max() > 1e-3


@DIALECTS
def test_rewind_equals_never_having_fed(runner_of, dialect):
    runner = runner_of(dialect)
    runner.prefill(TOKENS[:40])
    runner.rewind(25)
    assert runner.length == 25
    rewound = [runner.step(t).copy() for t in (7, 8, 9)]
    runner.reset()
    np.testing.assert_allclose(rewound[-1], runner.prefill([*TOKENS[:25], 7, 8, 9]), atol=1e-5)
    with pytest.raises(RunError, match="position 99"):
        runner.rewind(99)


@DIALECTS
def test_cache_grows_with_what_is_fed(runner_of, dialect):
    runner = runner_of(dialect)
    runner.prefill(TOKENS[:10])
    small = runner.cache_nbytes
    runner.prefill(TOKENS[:700])
    assert small < runner.cache_nbytes
    position = 2 * 2 * 16 * 4  # key and value, 2 heads of 16 floats
    assert small <= 2 * FIRST_POSITIONS * position + 1024
    assert runner.cache_nbytes <= 2 * 1024 * position + 1024


@DIALECTS
def test_context_is_a_wall_that_names_both_numbers(runner_of, dialect):
    runner = runner_of(dialect, context=20)
    assert runner.context_length == 20
    with pytest.raises(RunError, match=r"21.*context of 20"):
        runner.prefill(TOKENS[:21])
    runner.prefill(TOKENS[:19])
    runner.step(1)
    with pytest.raises(RunError, match=r"20 tokens in the cache and 1 new ones make 21.*20"):
        runner.step(1)
    assert runner.length == 20
    runner.reset()
    assert runner.prefill(TOKENS[:20]).shape == (50,)


def test_target_can_lower_the_context(runner_of, bundle_of):
    assert runner_of("append", max_context=64).context_length == 64
    with pytest.raises(RunError, match="context=65"):
        load_runner(bundle_of("append", max_context=64), context=65)


def test_bad_tokens_are_named(runner_of):
    runner = runner_of("append")
    with pytest.raises(RunError, match="token 50 is outside the vocabulary of 50"):
        runner.prefill([1, 50])
    with pytest.raises(RunError, match="token -1"):
        runner.logits([-1])
    with pytest.raises(RunError, match="no tokens"):
        runner.prefill([])


def test_step_reuses_one_array_and_prefill_does_not(runner_of):
    runner = runner_of("in place")
    first = runner.prefill([1, 2])
    kept = first.copy()
    step = runner.step(3)
    assert np.shares_memory(step, runner.step(4))
    np.testing.assert_array_equal(first, kept)


def test_a_closed_runner_says_so(runner_of):
    runner = runner_of("append")
    runner.close()
    with pytest.raises(RunError, match="closed"):
        runner.step(1)


def test_info_tells_what_runs(runner_of):
    info = runner_of("in place", threads=2).info
    assert info.threads == 2
    assert dict(info.runtime)["onnxruntime"]
    assert "position_ids" in info.inputs and "position_ids" not in runner_of("append").info.inputs
    assert (info.placement is None) != hasattr(InferenceSession, "get_provider_graph_assignment_info")
    if info.placement is not None:
        assert info.nodes_on_cpu == sum(count for _, count in info.placement) > 3
