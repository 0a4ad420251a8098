"""Bytes and operations a token needs, and the fractions that follow; the probes run small."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from edgekit.errors import MeasureError
from edgekit.estimate.needs import decode_bytes, decode_flop, kv_bytes_per_position, prefill_flop, weight_bytes
from edgekit.measure import ceilings
from edgekit.measure.ceilings import gemm_factor, measure_bandwidth, measure_gemm, roofline
from edgekit.types import Ceilings, ModelSpec, Rope, Series, TensorEntry


def spec(**changes):
    told = {
        "architecture": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "vocab_size": 384,
        "context_length": 512,
        "norm_eps": 1e-5,
        "rope": Rope(1e4, 16),
        "tied": True,
        "windows": (None, None),
        "rotary": (True, True),
    }
    return ModelSpec(**(told | changes))


def made(bandwidth: float, gemm: float) -> Ceilings:
    return Ceilings(Series("read", "B/s", (bandwidth / 2, bandwidth)), Series("gemm", "FLOP/s", (gemm, gemm / 2)))


def test_operations_against_a_count_of_every_product():
    """Multiply real matrices of the model's shapes and count 2 * m * k * n for each product."""
    s, tokens = spec(), 7
    shapes = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)]
    products = sum(2 * tokens * k * n for k, n in shapes) * s.layers
    scores_and_values = sum(2 * 2 * s.heads * s.head_dim * (i + 1) for i in range(tokens)) * s.layers
    assert prefill_flop(s, tokens) == products + scores_and_values + 2 * 64 * 384
    assert prefill_flop(s, 1) == decode_flop(s)
    assert decode_flop(s, 10) - decode_flop(s, 9) == 4 * s.heads * s.head_dim * s.layers


def test_bytes_of_a_decoded_token():
    s = spec()
    assert kv_bytes_per_position(s) == 2 * 2 * 2 * 16 * 4
    # depth 100: the four tokens see 101, 102, 103, 104 positions.
    assert decode_bytes(1000, s, 100, 4) == 1000 + 102.5 * kv_bytes_per_position(s)


def test_a_sliding_window_bounds_what_is_read():
    s = spec(windows=(None, 8))
    half = kv_bytes_per_position(s) / 2
    assert decode_bytes(0, s, 100, 4) == 102.5 * half + 8 * half
    assert decode_flop(s, 100) < decode_flop(spec(), 100)


def test_weights_read_of_a_tied_and_an_untied_model():
    embedding = TensorEntry("model.embed_tokens.weight", (384, 64), None, "F32", 384 * 64 * 4)
    other = TensorEntry("model.norm.weight", (64,), None, "F32", 256)
    shared = TensorEntry("lm_head.weight", (384, 64), None, "F32", 0, shared_with="model.embed_tokens.weight")
    head = TensorEntry("lm_head.weight", (384, 64), None, "F32", 384 * 64 * 4)
    tied = SimpleNamespace(spec=spec(), tensors=(embedding, other, shared))
    untied = SimpleNamespace(spec=spec(tied=False), tensors=(embedding, other, head))
    assert weight_bytes(tied.tensors, tied=True) == 384 * 64 * 4 + 256
    assert weight_bytes(untied.tensors, tied=False) == 64 * 4 + 256 + 384 * 64 * 4


def test_fractions_by_hand():
    s = spec()
    series = (Series("pp8", "tok/s", (90.0, 110.0)), Series("tg4@16", "tok/s", (10.0,)), Series("ttft8", "s", (9.0,)))
    got = dict(roofline(series, made(1e6, 1e9), s, 50_000, 4.0))
    assert got == {
        "pp8": pytest.approx(100.0 * prefill_flop(s, 8) / 8 / 4e9),
        "tg4@16": pytest.approx(10.0 * decode_bytes(50_000, s, 16, 4) / 1e6),
    }


def test_without_a_factor_there_is_no_fraction_of_the_compute_ceiling():
    series = (Series("pp8", "tok/s", (1.0,)), Series("tg4@0", "tok/s", (1.0,)))
    assert [name for name, _ in roofline(series, made(1e9, 1.0), spec(), 10, None)] == ["tg4@0"]


@pytest.mark.parametrize("name", ["tg4@0", "pp8"])
def test_a_fraction_above_one_is_rejected(name):
    with pytest.raises(MeasureError, match=f"{name}: 100.0 tok/s is") as caught:
        roofline((Series(name, "tok/s", (100.0,)),), made(1000, 1000), spec(), 50_000, 1.0)
    assert "idle machine" in caught.value.hint


def test_factor_by_arithmetic_and_processor():
    assert gemm_factor(False, frozenset()) == 1.0
    assert gemm_factor(True, frozenset({"fma", "avx2"})) == 4.0
    assert gemm_factor(True, frozenset({"avx2", "amx_int8"})) == 32.0
    assert gemm_factor(True, frozenset({"asimd", "asimddp"})) == 4.0
    assert gemm_factor(True, frozenset({"asimddp", "i8mm"})) == 8.0
    assert gemm_factor(True, frozenset({"rv64gc"})) is None


@pytest.fixture
def clock(monkeypatch):
    """Time goes by as array elements are read or multiplied: 1 ns per int32, 1 ns per FLOP."""
    now = [0.0]
    monkeypatch.setattr(ceilings, "perf_counter", lambda: now[0])
    return now


def test_bandwidth_is_bytes_of_all_threads_over_wall_seconds(clock, monkeypatch):
    read = []

    def note(part, passes):
        read.append(part.size * passes)
        clock[0] += part.size * passes * 1e-9

    monkeypatch.setattr(ceilings, "_read", note)
    got = measure_bandwidth(3, 6_000_000, repetitions=4)
    assert got.samples == pytest.approx([4e9] * 4)
    assert (got.unit, got.name) == ("B/s", "read of 6 MB on 3 threads")
    assert sum(read[-3:]) * 1e-9 >= 0.19  # a sample lasts long enough to be timed


def test_the_probe_is_as_large_as_the_model_within_bounds(clock, monkeypatch):
    sizes = []
    monkeypatch.setattr(ceilings, "LARGEST", 4 << 20)

    def note(part, passes):
        sizes.append(part.nbytes)
        clock[0] += 1.0

    monkeypatch.setattr(ceilings, "_read", note)
    for working_set in (1, 2 << 20, 1 << 40):
        measure_bandwidth(1, working_set, repetitions=1)
    assert sorted(set(sizes)) == [1 << 20, 2 << 20, 4 << 20]


def test_gemm_is_operations_of_all_threads_over_wall_seconds(clock, monkeypatch):
    products, threads = [], set()

    def note(a, out, times):
        products.append(times)
        threads.update(i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas")
        clock[0] += 2 * a.shape[0] ** 3 * times * 1e-9

    monkeypatch.setattr(ceilings, "_multiply", note)
    got = measure_gemm(2, repetitions=3, seconds=5.0)
    assert got.samples == pytest.approx([1e9] * 3)
    assert min(products[-6:]) > 5, "a sample is as long as it is asked to be"
    assert threads == {1}, "the threads are counted once"
    assert got.unit == "FLOP/s"
    assert "on each of 2 threads" in got.name


def test_the_probes_do_the_work_they_count():
    out = np.zeros((8, 8), np.float32)
    a = np.eye(8, dtype=np.float32) * 2
    ceilings._multiply(a, out, 1)
    assert (out == np.eye(8) * 4).all()
    got = ceilings.measure_ceilings(1, 1, repetitions=1)
    assert got.bandwidth_bytes_per_s.samples[0] > 0
    assert got.gemm_flop_per_s.samples[0] > 0
