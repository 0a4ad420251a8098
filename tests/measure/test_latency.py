"""What is measured, in which order, and that raw samples are kept; a clock that the runner moves stands for time."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import MeasureError
from edgekit.measure import latency
from edgekit.measure.latency import measure_latency, measure_load
from edgekit.testing import FakeRunner


class Timed(FakeRunner):
    """Takes 1 ms a prompt token and (10 + depth / 100) ms a decoded one, on its own clock."""

    def __init__(self, clock: list[float], context_length: int = 4096) -> None:
        super().__init__(context_length=context_length)
        self.clock = clock
        self.prompts: list[tuple[int, ...]] = []
        self.steps: list[int] = []
        self.closed = False

    def prefill(self, tokens):
        self.clock[0] += 0.001 * len(tokens)
        self.prompts.append(tuple(tokens))
        return super().prefill(tokens)

    def step(self, token):
        self.clock[0] += 0.010 + self.length * 1e-5
        self.steps.append(self.length)
        return super().step(token)

    def close(self):
        self.closed = True


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(latency, "perf_counter", lambda: now[0])
    return now


def named(got):
    return {s.name: s for s in got.series}


def test_series_names_units_and_numbers(clock):
    runner = Timed(clock)
    got = named(measure_latency(runner, repetitions=3, warmup=1))
    assert set(got) == {"pp512", "ttft512", "tg128@0", "tg128@512", "tg128@2048", "tpot@0", "tpot@512", "tpot@2048"}
    assert got["pp512"].unit == "tok/s"
    assert got["pp512"].samples == pytest.approx([1000.0] * 3)
    assert got["ttft512"].unit == "s"
    assert got["ttft512"].samples == pytest.approx([0.512] * 3)
    assert got["tg128@512"].n == 3
    assert got["tg128@512"].mean == pytest.approx(1 / (0.010 + (512 + 63.5) * 1e-5))
    assert got["tpot@512"].unit == "s"
    assert got["tpot@512"].n == 3 * 128
    assert got["tpot@512"].percentile(0) == pytest.approx(0.010 + 512e-5)
    assert got["tpot@512"].percentile(100) == pytest.approx(0.010 + (512 + 127) * 1e-5)
    assert runner.length == 0


def test_the_choice_of_a_token_counts_for_the_first_token_and_not_for_the_prompt(clock):
    class Logits:
        def argmax(self, axis=None, out=None):
            clock[0] += 0.5
            return 3

    class Choosing(Timed):
        def prefill(self, tokens):
            super().prefill(tokens)
            return Logits()

    got = named(measure_latency(Choosing(clock), pp=(500,), tg=(), repetitions=1, warmup=0))
    assert got["pp500"].samples == pytest.approx([1000.0])
    assert got["ttft500"].samples == pytest.approx([1.0])


def test_percentiles_are_numpys():
    from edgekit.types import Series

    samples = tuple(np.random.default_rng(0).random(37).tolist())
    for p in (0, 5, 50, 95, 99.9, 100):
        assert Series("s", "s", samples).percentile(p) == pytest.approx(np.percentile(samples, p))


def test_warm_up_does_not_count_and_prompts_are_fresh_but_repeatable(clock):
    one, other = Timed(clock), Timed(clock)
    asked = {"pp": (64,), "tg": (8,), "depth": (0, 32), "repetitions": 4}
    got = named(measure_latency(one, warmup=2, **asked))
    measure_latency(other, warmup=2, **asked)
    assert got["pp64"].n == 4
    prompts = [p for p in one.prompts if len(p) == 64]
    assert len(prompts) == 6
    assert len(set(prompts)) == 6
    assert one.prompts == other.prompts
    third = Timed(clock)
    measure_latency(third, warmup=2, seed=1, **asked)
    assert third.prompts != one.prompts


def test_decoding_starts_at_its_depth(clock):
    runner = Timed(clock)
    measure_latency(runner, pp=(), tg=(4, 2), depth=(0, 3, 50), repetitions=1, warmup=0)
    starts = [a for a, b in zip(runner.steps, [None, *runner.steps], strict=False) if b is None or a != b + 1]
    assert starts[0] == 0
    assert runner.steps == [0, 1, 0, 1, 2, 3, 3, 4, 3, 4, 5, 6, 50, 51, 50, 51, 52, 53]


def test_what_does_not_fit_is_left_out_and_said(clock):
    got = measure_latency(Timed(clock, context_length=640), repetitions=1, warmup=0)
    assert set(named(got)) == {"pp512", "ttft512", "tg128@0", "tg128@512", "tpot@0", "tpot@512"}
    assert got.workload == ("pp512, tg128@0, tg128@512; left out: tg128@2048 (the context holds 640 tokens)")
    assert "left out" not in measure_latency(Timed(clock), repetitions=1, warmup=0).workload
    just = measure_latency(Timed(clock, context_length=512), tg=(512,), depth=(0,), repetitions=1, warmup=0)
    assert just.workload == "pp512, tg512@0"


def test_nothing_fits(clock):
    with pytest.raises(
        MeasureError, match=r"context of 16 tokens: smallest prompt 512, smallest decode 128$"
    ) as caught:
        measure_latency(Timed(clock, context_length=16))
    assert "at most 16" in caught.value.hint


@pytest.mark.parametrize("wrong", [{"repetitions": 0}, {"warmup": -1}, {"pp": (0,)}, {"tg": (0,)}, {"depth": (-1,)}])
def test_numbers_that_make_no_sense(clock, wrong):
    with pytest.raises(MeasureError):
        measure_latency(Timed(clock), **wrong)


def test_progress_ends_where_it_said(clock):
    heard = []
    measure_latency(Timed(clock), repetitions=2, warmup=1, progress=lambda *told: heard.append(told))
    assert [done for _, done, _, _ in heard] == list(range(11))  # 2 in the warm-up, 4 in each round
    assert {total for _, _, total, _ in heard} == {10}


def test_load_is_repeated_and_only_the_last_runner_stays_open(clock):
    made = []

    def factory():
        clock[0] += 0.5
        made.append(Timed(clock))
        return made[-1]

    runner, series = measure_load(factory, repetitions=3)
    assert (series.name, series.unit) == ("load", "s")
    assert series.samples == pytest.approx([0.5] * 3)
    assert [m.closed for m in made] == [True, True, False]
    assert runner is made[-1]
