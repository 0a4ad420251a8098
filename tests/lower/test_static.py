"""Static graphs for an NPU, on the CPU, against the graph they come from: every kind of model, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgekit.config.recipe import builtin_recipe, load_recipe, load_target
from edgekit.errors import LowerError, RunError
from edgekit.lower import lower
from edgekit.lower.static import _bytes_by_layer
from edgekit.quantize import quantize
from edgekit.run.npu import StaticRunner
from edgekit.source import open_model
from edgekit.testing import tiny_checkpoint
from edgekit.types import Recipe
from tests.graph.pairs import CONFIGS, Decoder, Pair, distance, make_pair
from tests.statics import SLOTS, WIDTH, Exact, float_graph, lowered, open_graph, open_runner, route_of

LIMIT = 1e-4


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    return cache(lambda name: make_pair(CONFIGS[name](), tmp_path_factory.mktemp("pair")))


def run_pieces(decoder: Decoder, ids: np.ndarray, pieces: Sequence[int]) -> list[np.ndarray]:
    """Logits of each piece on the graph with a cache of its own."""
    decoder.start()
    return [decoder.feed(ids[:, a:b])[0] for a, b in pairwise(np.cumsum([0, *pieces]))]


PROMPTS = (19, 1, 1, 2, 10, 1, 1, 4, 1)
PIECES = (8, 8, 3, 1, 1, 2, 8, 2, 1, 1, 4, 1)
"""Prompts and single tokens, and the pieces that they are cut into. The fillers behind 2 tokens reach beyond place 24,
where longrope switches; the tokens do not."""


def feed_in_pieces(runner: StaticRunner, ids: list[int]) -> None:
    for start, stop in pairwise(np.cumsum([0, *PROMPTS]).tolist()):
        last = runner.step(ids[start]) if stop - start == 1 else runner.prefill(ids[start:stop])
        assert last.shape == (runner.vocab_size,)


@pytest.mark.parametrize("activations", ["float16", "uint16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_graph_with_a_cache(name: str, activations: str, pair: Callable[[str], Pair]) -> None:
    """Up to the last slot; 40 tokens reach beyond every window (at most 9) and every original context (24)."""
    tiny = pair(name)
    ids = tiny.ids(SLOTS)
    rows: list[np.ndarray] = []
    runner = open_runner(lowered(float_graph(tiny.checkpoint), route_of(activations)), rows)
    feed_in_pieces(runner, ids[0].tolist())
    expected = run_pieces(tiny.decoder("portable"), ids, PIECES)
    assert [len(row) for row in rows] == [WIDTH if len(e) > 1 else 1 for e in expected]
    for found, reference in zip(rows, expected, strict=True):
        assert distance(found[: len(reference)], reference) < LIMIT


def test_the_cache_s_end_and_the_way_back(pair: Callable[[str], Pair]) -> None:
    tiny = pair("mistral window")
    ids = tiny.ids(SLOTS)[0].tolist()
    runner = open_runner(lowered(float_graph(tiny.checkpoint), route_of()))
    feed_in_pieces(runner, ids)
    assert (runner.length, runner.context_length) == (SLOTS, SLOTS)
    for feed in (lambda: runner.step(5), lambda: runner.prefill([5])):
        with pytest.raises(
            RunError, match=rf"{SLOTS} tokens in the cache and 1 new ones .* more than the context of {SLOTS}"
        ):
            feed()
    runner.rewind(20)
    again = runner.prefill(ids[20:33])
    runner.reset()
    np.testing.assert_allclose(again, runner.prefill(ids[:33]), rtol=0, atol=1e-4)
    with pytest.raises(RunError, match="41 new ones"):
        runner.logits(range(41))


def test_fillers_need_no_place_of_their_own(tmp_path: Path) -> None:
    """A cache as long as the model's context: there is no angle for what stands behind it."""
    folder = tiny_checkpoint(tmp_path / "tiny", max_position_embeddings=SLOTS)
    model = open_model(str(folder))
    runner = open_runner(lowered(float_graph(model), route_of()))
    assert np.isfinite(runner.prefill(list(range(SLOTS - 1)))).all()
    assert np.isfinite(runner.prefill([7])).all()


@pytest.mark.parametrize("half", [False, True])
def test_only_the_new_keys_and_values_are_returned(half: bool, pair: Callable[[str], Pair]) -> None:
    tiny = pair("llama")
    spec = tiny.checkpoint.spec
    graphs = lowered(float_graph(tiny.checkpoint), route_of(half=half))
    names = [f"{i}.{kind}" for i in range(spec.layers) for kind in ("key", "value")]
    dtype = ir.DataType.FLOAT16 if half else ir.DataType.FLOAT
    for (model,), tokens in ((graphs.prefill, WIDTH), (graphs.decode, 1)):
        outputs = {str(v.name): (list(v.shape), v.dtype) for v in model.graph.outputs}
        new = {f"new.{n}": ([1, spec.kv_heads, tokens, spec.head_dim], dtype) for n in names}
        assert outputs == new | {"logits": ([1, tokens, spec.vocab_size], ir.DataType.FLOAT)}
        inputs = {str(v.name): (list(v.shape), v.dtype) for v in model.graph.inputs}
        past = {f"past_key_values.{n}": ([1, spec.kv_heads, SLOTS, spec.head_dim], dtype) for n in names}
        assert inputs.items() >= past.items()
        assert not {"input_ids", "attention_mask", "position_ids"} & inputs.keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shape_is_of_numbers_and_of_rank_four_at_most(name: str, pair: Callable[[str], Pair]) -> None:
    graphs = lowered(float_graph(pair(name).checkpoint), route_of(half=True))
    for model in (*graphs.prefill, *graphs.decode):
        graph = model.graph
        known = set(graph.outputs)
        graph.outputs.extend(v for node in graph for v in node.outputs if v.name and v not in known)
        session = open_graph(model)
        assert len(session.get_outputs()) > 100
        for value in (*session.get_inputs(), *session.get_outputs()):
            assert all(isinstance(d, int) and d > 0 for d in value.shape), (value.name, value.shape)
            assert len(value.shape) <= 4, value.name


def test_half_a_cache_loses_little(pair: Callable[[str], Pair]) -> None:
    tiny = pair("llama")
    ids = tiny.ids(SLOTS)[0].tolist()
    exact, half = (open_runner(lowered(float_graph(tiny.checkpoint), route_of(half=h))).logits(ids) for h in (0, 1))
    assert 0 < distance(half, exact) < 1e-2


@pytest.mark.parametrize(
    ("recipe", "activations"), [("npu-int4", "float16"), ("npu-int8", "float16"), ("npu-a16w8", "uint16")]
)
def test_quantized_weights_stay_what_they_are(recipe: str, activations: str, tmp_path: Path) -> None:
    checkpoint = open_model(str(tiny_checkpoint(tmp_path / "tiny", hidden_size=128, tie_word_embeddings=False)))
    plan = replace(load_recipe(recipe), accuracy_level=1)
    small = quantize(float_graph(checkpoint), checkpoint.weights, plan).model
    graphs = lowered(small, route_of(activations))
    kinds = {node.op_type for node in graphs.decode[0].graph}
    assert ("MatMulNBits" in kinds) == (activations == "float16")
    ids = np.random.default_rng(1).integers(0, 384, (1, 21))
    decoder = Exact(checkpoint.spec, lower(small, load_target("portable")))
    decoder.start()
    found = open_runner(graphs).logits(ids[0].tolist())
    assert distance(found, decoder.feed(ids)[0]) < LIMIT


@pytest.mark.parametrize("name", ["llama", "qwen2 windows above", "smollm3", "phi3"])
def test_parts_give_the_whole_s_bits(name: str, pair: Callable[[str], Pair]) -> None:
    tiny = pair(name)
    model = float_graph(tiny.checkpoint)
    ids = tiny.ids(19)[0].tolist()
    whole = lowered(model, route_of(half=True))
    parts = lowered(model, route_of(half=True), largest=_layer_bytes(whole.prefill[0]))
    assert len(parts.prefill) == len(parts.decode) >= 2
    for chain in (parts.prefill, parts.decode):
        caches = [_caches(part) for part in chain]
        assert all(caches), "each part holds its own layers' cache"
        assert [name for part in caches for name in part] == _caches(whole.prefill[0])
        first = [str(part.graph.outputs[0].name) for part in chain]
        assert first[-1] == "logits"
        assert all(name.startswith("hidden.") for name in first[:-1]), "what is handed on stands before the cache"
    one, many = open_runner(whole), open_runner(parts)
    np.testing.assert_array_equal(one.logits(ids), many.logits(ids))
    np.testing.assert_array_equal(one.step(7), many.step(7))


def test_what_fits_into_one_graph_to_the_byte_is_one(pair: Callable[[str], Pair]) -> None:
    model = float_graph(pair("llama").checkpoint)
    largest = sum(_bytes_by_layer(lowered(model, route_of()).prefill[0]))
    assert len(lowered(model, route_of(), largest).prefill) == 1
    assert len(lowered(model, route_of(), largest - 1).prefill) == 2


def _caches(model: ir.Model) -> list[str]:
    return [str(v.name) for v in model.graph.inputs if str(v.name).startswith("past_key_values.")]


def _layer_bytes(model: ir.Model) -> int:
    """The largest part there has to be: a layer, the last one with the head."""
    return max(_bytes_by_layer(model))


def test_a_layer_larger_than_the_npu_takes(pair: Callable[[str], Pair]) -> None:
    model = float_graph(pair("llama").checkpoint)
    limit = _layer_bytes(lowered(model, route_of()).prefill[0]) - 1
    with pytest.raises(LowerError, match=rf"layer 1 has [\d,]+ bytes of weights, more than the {limit:,}") as caught:
        lowered(model, route_of(), limit)
    assert "fewer bits" in caught.value.hint


def _asymmetric(bits: str) -> Recipe:
    recipe = builtin_recipe("int4" if bits == "int4" else "int8")
    assert recipe.linear is not None
    return replace(recipe, linear=replace(recipe.linear, symmetric=False), overrides=())


@pytest.mark.parametrize("bits", ["int4", "int8"])
def test_zero_points_are_refused_with_the_recipe_s_word(bits: str, tmp_path: Path) -> None:
    checkpoint = open_model(str(tiny_checkpoint(tmp_path / "tiny")))
    small = quantize(float_graph(checkpoint), checkpoint.weights, _asymmetric(bits)).model
    with pytest.raises(LowerError, match=r"q_proj.*: its grid has zero points, which Samsung Galaxy S24") as caught:
        lowered(small, route_of())
    assert "symmetric = true" in caught.value.hint
