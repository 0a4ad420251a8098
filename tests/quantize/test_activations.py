"""Activations on 16-bit codes: the graph computes what the float one computes, and scales go where they have to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgekit.graph import build_graph
from edgekit.lower import StaticGraphs
from edgekit.measure import agree
from edgekit.quantize import observed, quantize_activations
from edgekit.run.npu import StaticRunner, observe_ranges
from edgekit.types import Range
from tests.graph.pairs import CONFIGS, make_pair
from tests.statics import PHONE, SLOTS, lowered, open_graph, open_runner, route_of

KINDS = ["llama", "qwen2 windows above", "qwen3", "smollm3", "phi3", "llama odd heads, one kv head, tied"]


@dataclass(frozen=True)
class Calibrated:
    """The float graphs, what was observed of them, and the graphs on codes."""

    graphs: StaticGraphs
    coded: StaticGraphs
    ranges: tuple[Range, ...]
    tokens: list[int]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Calibrated]:
    return cache(lambda name: calibrate(name, tmp_path_factory.mktemp("calibrated")))


def calibrate(name: str, folder: Path) -> Calibrated:
    tiny = make_pair(CONFIGS[name](), folder / "model")
    checkpoint = tiny.checkpoint
    model = build_graph(checkpoint.spec, checkpoint.weights, opset=PHONE.opset, name="tiny")
    graphs = lowered(model, route_of("uint16"))
    host, chain = folder / "host.onnx", [folder / "observed.onnx"]
    ir.save(graphs.host, host)
    ir.save(observed(graphs.prefill[0]), chain[0])
    windows = np.random.default_rng(0).integers(0, 384, (16, SLOTS))
    ranges = observe_ranges(host, chain, windows, 1)
    coded = replace(
        graphs,
        prefill=tuple(quantize_activations(m.clone(), ranges) for m in graphs.prefill),
        decode=tuple(quantize_activations(m.clone(), ranges) for m in graphs.decode),
    )
    return Calibrated(graphs, coded, ranges, windows[0].tolist())


@pytest.mark.parametrize("name", KINDS)
def test_logits_are_near_those_of_the_float_graph(name: str, calibrated: Callable[[str], Calibrated]) -> None:
    made = calibrated(name)
    exact, coded = open_runner(made.graphs), open_runner(made.coded)
    unseen = np.random.default_rng(9).integers(0, 384, 21).tolist()
    for tokens, limit in ((made.tokens[:21], 0.9999), (unseen, 0.995)):  # what was not seen may be cut off
        assert agree(exact.logits(tokens), coded.logits(tokens)).cosine > limit
        assert agree(exact.step(5)[None], coded.step(5)[None]).cosine > 0.995


@pytest.mark.parametrize("name", KINDS[:2])
def test_what_runs_stays_in_the_observed_ranges(name: str, calibrated: Callable[[str], Calibrated]) -> None:
    made = calibrated(name)
    graph = made.graphs.prefill[0].graph
    ranges = {r.name: r for r in made.ranges}
    assert all(r.low <= r.high for r in made.ranges)
    assert any(r.low < r.high for r in made.ranges)
    values = {str(v.name) for v in graph.inputs} | {str(v.name) for n in graph for v in n.outputs}
    assert ranges.keys() == values
    seen: dict[str, list[float]] = {}
    copy = made.graphs.prefill[0].clone()
    copy.graph.outputs.extend(v for n in copy.graph for v in n.outputs if v.name and v not in set(copy.graph.outputs))

    def watch(given: dict[str, np.ndarray]) -> None:
        for key, array in given.items():
            seen.setdefault(key, []).extend([float(array.min()), float(array.max())])

    StaticRunner(open_graph(made.graphs.host), [open_graph(copy)], (), watch=watch).logits(made.tokens)
    assert len(seen) > 50
    for key, numbers in seen.items():
        slack = 1e-5 * max(1.0, abs(min(numbers)), abs(max(numbers)))
        assert ranges[key].low - slack <= min(numbers)
        assert max(numbers) <= ranges[key].high + slack


def test_a_value_that_was_not_observed_has_no_scale(calibrated: Callable[[str], Calibrated]) -> None:
    made = calibrated("llama")
    few = [r for r in made.ranges if r.name != "model.layers.1.self_attn/scores"]
    assert len(few) == len(made.ranges) - 1
    with pytest.raises(KeyError, match="scores"):
        quantize_activations(made.graphs.decode[0].clone(), few)


@pytest.mark.parametrize("name", KINDS[:3])
def test_the_cache_goes_in_and_out_as_codes_of_one_scale(name: str, calibrated: Callable[[str], Calibrated]) -> None:
    for model in (*calibrated(name).coded.prefill, *calibrated(name).coded.decode):
        graph = model.graph
        news = {str(v.name): v for v in graph.outputs if str(v.name).startswith("new.")}
        pasts = {str(v.name): v for v in graph.inputs if str(v.name).startswith("past_key_values.")}
        assert len(news) == len(pasts) > 0
        for key, value in pasts.items():
            new = news[key.replace("past_key_values.", "new.")]
            assert value.dtype == new.dtype == ir.DataType.UINT16
            ((reader, _),) = value.uses()
            writer = new.producer()
            assert writer is not None
            assert (reader.op_type, writer.op_type) == ("DequantizeLinear", "QuantizeLinear")
            assert list(reader.inputs[1:]) == list(writer.inputs[1:])
        assert {v.dtype for v in graph.outputs if v.name == "logits"} == {ir.DataType.FLOAT}


@pytest.mark.parametrize("name", KINDS[:3])
def test_movers_keep_the_scale_of_what_they_move(name: str, calibrated: Callable[[str], Calibrated]) -> None:
    moved = 0
    for node in calibrated(name).coded.decode[0].graph:
        if node.op_type in ("Reshape", "Transpose", "Split") and node.inputs[0] is not None:
            before = node.inputs[0].producer()
            assert before is not None
            for output in node.outputs:
                for user, _ in output.uses():
                    assert (before.op_type, user.op_type) == ("DequantizeLinear", "QuantizeLinear")
                    assert list(before.inputs[1:]) == list(user.inputs[1:])
                    moved += 1
    assert moved > 10


def test_every_operator_stands_between_codes(calibrated: Callable[[str], Calibrated]) -> None:
    """No float passes from one operator to another: an NPU would compute it in float, or not at all."""
    graph = calibrated("qwen3").coded.decode[0].graph
    between: Sequence[str] = ("QuantizeLinear", "DequantizeLinear")
    for node in graph:
        if node.op_type in between or all(v is None or v.const_value is not None for v in node.inputs):
            continue
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and any(v is not None and v.producer() for v in producer.inputs):
                assert producer.op_type == "DequantizeLinear", (node.name, producer.name)


def test_scale_and_zero_point_span_the_range_and_zero(calibrated: Callable[[str], Calibrated]) -> None:
    made = calibrated("llama")
    ranges = {r.name: r for r in made.ranges}
    stored = made.coded.decode[0].graph.initializers
    names = [n.removesuffix("/zero") for n in stored if n.endswith("/zero") and n.removesuffix("/zero") in ranges]
    assert len(names) > 40
    for name in names:
        scale, zero = (np.asarray(_numpy(stored[f"{name}/{part}"])) for part in ("scale", "zero"))
        low, high = min(0.0, ranges[name].low), max(0.0, ranges[name].high)
        assert (scale.dtype, zero.dtype) == (np.float32, np.uint16)
        np.testing.assert_allclose(scale, max((high - low) / 65535, 1e-9), rtol=1e-6)
        assert abs(-low / scale - zero) <= 0.51


def _numpy(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()
