"""What a token costs on an NPU: arithmetic on the compiler's bytes and the device file's numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.config.recipe import load_target
from edgekit.estimate.npu_cost import estimate_build
from edgekit.types.npu import CompiledGraph, NpuBuild, Traffic

TARGET = replace(load_target("galaxy-s24"), bandwidth_bytes_per_s=50e9)
TARGET = replace(TARGET, npu=replace(TARGET.npu, efficiency=(0.2, 0.5)))


def graph(role, traffic, part=0):
    return CompiledGraph(
        role=role, part=part, tokens=64 if role == "prefill" else 1, source="", context="", binary="", shared=False,
        executed=False, nodes=1, compatibility="", traffic=traffic, seconds=1.0, peak_rss_bytes=1,
    )  # fmt: skip


def build(*graphs, target=TARGET):
    return NpuBuild(target, "float16", (), (), "host.onnx", 1024, graphs, "placement.json")


def test_bytes_floor_and_range_follow_from_the_compilers_bytes():
    prefill, decode = estimate_build(
        build(
            graph("prefill", Traffic(600, 30, 6, 4)),
            graph("decode", Traffic(80_000_000, 15_000_000, 3_000_000, 2_000_000)),
        )
    )
    assert decode.bytes_per_token == 100e6
    assert decode.floor_ms == pytest.approx(2.0)
    assert decode.tokens_per_s == pytest.approx((100, 250))
    assert decode.context == 1024
    assert decode.formula == "floor = 100,000,000 B / 50 GB/s; tok/s = 0.2 to 0.5 of 50 GB/s / 100,000,000 B"
    assert prefill.bytes_per_token == 10
    assert prefill.floor_ms == pytest.approx(10 / 50e9 * 1e3)
    assert prefill.formula == "floor = 640 B / 64 tokens / 50 GB/s"
    # A prompt is bounded by arithmetic too: nothing is known of its speed but the floor.
    assert (prefill.tokens_per_s, prefill.efficiency) == (None, None)


def test_parts_of_a_split_model_add_up_and_shared_binaries_count_once():
    one, two = Traffic(100, 20, 0, 1), Traffic(300, 40, 5, 0)
    apart = (graph("decode", one), graph("decode", two, part=1))
    (decode,) = estimate_build(build(*apart, *(replace(g, shared=True) for g in apart)))
    assert decode.traffic == Traffic(400, 60, 5, 1)
    assert decode.bytes_per_token == 466


def test_nothing_is_estimated_from_what_is_not_known():
    silent = build(graph("decode", Traffic(1, 1, 1, 1)), graph("decode", None, part=1))
    assert estimate_build(silent) == ()
    (decode,) = estimate_build(
        build(graph("decode", Traffic(9, 1, 0, 0)), target=replace(TARGET, bandwidth_bytes_per_s=None))
    )
    assert decode.bytes_per_token == 10
    assert (decode.floor_ms, decode.tokens_per_s) == (None, None)
    assert "unknown" in decode.formula
