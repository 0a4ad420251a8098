"""Every family against transformers, in both dialects: whole, step by step, padded, beyond the original context."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from pairs import CONFIGS, TINY, Pair, distance, make_pair
from transformers import LlamaConfig

from edgekit.config.recipe import load_target
from edgekit.errors import GraphError, LowerError
from edgekit.graph import build_graph
from edgekit.lower import lower
from edgekit.quantize.evaluate import run_until
from edgekit.run.runtime import onnxruntime
from edgekit.types import Weights

LIMIT = 1e-4


@pytest.fixture
def pair(tmp_path: Path) -> Callable[[str], Pair]:
    return lambda name: make_pair(CONFIGS[name](), tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(name: str, pair: Callable[[str], Pair]) -> None:
    """60 tokens reach beyond every window (at most 9) and every original context (24)."""
    tiny = pair(name)
    ids = tiny.ids(60)
    reference, short = tiny.reference(ids), tiny.reference(ids[:, :20])
    assert reference.std() > 0.5
    for target in ("cpu", "portable"):
        decoder = tiny.decoder(target)
        assert distance(decoder.whole(ids), reference) < LIMIT
        assert distance(decoder.whole(ids[:, :20]), short) < LIMIT
        assert distance(decoder.stepwise(ids[:, :20]), short) < LIMIT
        if tiny.checkpoint.spec.rope.kind != "longrope":
            assert distance(decoder.stepwise(ids), reference) < LIMIT


# transformers 5.24 calls past_key_values old; those before it know no other name.
@pytest.mark.filterwarnings("ignore:.*past_key_values.*:FutureWarning")
@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_longrope_switches_its_factors_in_mid_sequence_as_transformers_does(
    target: str, pair: Callable[[str], Pair]
) -> None:
    """Keys already in the cache keep the factors they were made with."""
    tiny = pair("phi3 longrope")
    ids = tiny.ids(32)
    decoder, cache = tiny.decoder(target), None
    decoder.start()
    for at in range(32):
        token = ids[:, at : at + 1]
        with torch.no_grad():
            output = tiny.torch(torch.tensor(token), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        assert distance(decoder.feed(token), output.logits.numpy()) < LIMIT


@pytest.mark.parametrize("name", ["llama yarn", "mistral window", "phi3 longrope"])
def test_the_evaluator_of_sensitivities_computes_the_same(name: str, pair: Callable[[str], Pair]) -> None:
    tiny = pair(name)
    ids = tiny.ids(60)
    empty = np.empty((1, 0), np.float32)
    model = build_graph(tiny.checkpoint.spec, tiny.checkpoint.weights, opset=21, name=name)
    feeds = {value.name: empty for value in model.graph.inputs}
    feeds |= {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(60)[None]}
    hidden, head = run_until(model, tiny.checkpoint.weights, feeds, lambda name, weight: iter(()), "logits")
    assert distance(hidden @ head.inputs[1].const_value.numpy(), tiny.reference(ids)) < LIMIT


@pytest.mark.parametrize("name", ["llama", "mistral window", "smollm3", "llama yarn"])
def test_portable_batches_may_be_padded_on_the_left(name: str, pair: Callable[[str], Pair]) -> None:
    tiny = pair(name)
    ids = tiny.ids(26, batch=2)
    mask = np.ones((2, 26), np.int64)
    mask[0, :11] = 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    alone = tiny.reference(ids[:1, 11:])
    decoder = tiny.decoder("portable")
    decoder.start(batch=2)
    logits = [
        decoder.feed(ids[:, a:b], mask[:, :b], positions[:, a:b])
        for a, b in [(0, 20), *((i, i + 1) for i in range(20, 26))]
    ]
    found = np.concatenate(logits, axis=1)
    assert distance(found[:1, 11:], alone) < LIMIT
    assert distance(found[1:], tiny.reference(ids[1:])) < LIMIT
    assert np.isfinite(found).all()


@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_batches_may_be_padded_on_the_right(target: str, pair: Callable[[str], Pair]) -> None:
    tiny = pair("mistral window")
    ids = tiny.ids(20, batch=2)
    mask = np.ones((2, 20), np.int64)
    mask[0, 12:] = 0
    decoder = tiny.decoder(target)
    decoder.start(batch=2)
    found = decoder.feed(ids, mask)
    assert distance(found[:1, :12], tiny.reference(ids[:1, :12])) < LIMIT
    assert distance(found[1:], tiny.reference(ids[1:])) < LIMIT


def test_present_may_be_written_into_the_buffer_of_past(pair: Callable[[str], Pair]) -> None:
    """Fused dialect: one buffer of the longest sequence, bound as past and as present."""
    tiny = pair("mistral window")
    ids = tiny.ids(24)
    decoder = tiny.decoder("cpu")
    spec, binding = decoder.spec, decoder.session.io_binding()
    buffers = {
        f"{i}.{n}": onnxruntime.OrtValue.ortvalue_from_numpy(
            np.zeros((1, spec.kv_heads, 40, spec.head_dim), np.float32)
        )
        for i in range(spec.layers)
        for n in ("key", "value")
    }
    found = []
    for start, stop in [(0, 9), (9, 14), *((i, i + 1) for i in range(14, 24))]:
        binding.bind_cpu_input("input_ids", ids[:, start:stop])
        binding.bind_cpu_input("attention_mask", np.ones((1, stop), np.int64))
        binding.bind_cpu_input("position_ids", np.arange(start, stop)[None])
        for name, buffer in buffers.items():
            binding.bind_ortvalue_input(f"past_key_values.{name}", buffer)
            binding.bind_ortvalue_output(f"present.{name}", buffer)
        binding.bind_output("logits")
        decoder.session.run_with_iobinding(binding)
        found.append(binding.get_outputs()[-1].numpy().copy())
    assert distance(np.concatenate(found, axis=1), tiny.reference(ids)) < LIMIT


def test_the_fused_target_refuses_heads_that_its_operator_cannot_take(tmp_path: Path) -> None:
    """open_llama_3b has heads of 100; ONNX Runtime's kernel takes multiples of 8."""
    tiny = make_pair(LlamaConfig(**{**TINY, "num_attention_heads": 3, "num_key_value_heads": 1}, head_dim=10), tmp_path)
    with pytest.raises(LowerError, match="head_dim is 10") as caught:
        tiny.decoder("cpu")
    assert "portable" in caught.value.hint
    ids = tiny.ids(20)
    assert distance(tiny.decoder("portable").stepwise(ids), tiny.reference(ids)) < LIMIT


class Unread:
    """Weights that may be looked at, not read."""

    def __init__(self, weights: Weights) -> None:
        self.shape = weights.shape

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        raise AssertionError(f"{name} was read")


@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_no_weight_is_read_before_the_graph_is_written(target: str, pair: Callable[[str], Pair]) -> None:
    checkpoint = pair("llama odd heads, one kv head, tied").checkpoint
    model = build_graph(checkpoint.spec, Unread(checkpoint.weights), opset=21, name="tiny")  # type: ignore[arg-type]
    model = lower(model, load_target(target))
    with pytest.raises(AssertionError, match="was read"):
        model.graph.initializers["model.norm.weight"].const_value.numpy()


def test_inputs_outputs_and_initializers_are_the_contract_s(pair: Callable[[str], Pair]) -> None:
    checkpoint = pair("qwen2").checkpoint
    model = build_graph(checkpoint.spec, checkpoint.weights, opset=21, name="tiny")
    graph = model.graph
    shapes = {value.name: [str(d) for d in value.shape] for value in (*graph.inputs, *graph.outputs)}
    assert list(shapes)[:4] == ["input_ids", "attention_mask", "position_ids", "past_key_values.0.key"]
    assert shapes["past_key_values.1.value"] == ["batch_size", "2", "past_sequence_length", "8"]
    assert shapes["logits"] == ["batch_size", "sequence_length", "384"]
    assert shapes["present.1.key"] == ["batch_size", "2", "total_sequence_length", "8"]
    assert [value.name for value in graph.outputs] == ["logits"] + [
        f"present.{i}.{n}" for i in "01" for n in ("key", "value")
    ]
    weights = [name for name in checkpoint.weights.names() if not name.endswith("inv_freq")]
    assert set(weights) <= set(graph.initializers)
    for name in weights:
        value = graph.initializers[name]
        linear = name.endswith("_proj.weight") or name == "lm_head.weight"
        expected = checkpoint.weights.shape(name)[:: -1 if linear else 1]
        assert tuple(value.shape) == expected == tuple(value.const_value.numpy().shape)
    names = [node.name for node in graph]
    assert len(set(names)) == len(names)
    assert "model.layers.1.self_attn.q_proj" in names


def test_the_same_checkpoint_gives_the_same_bytes(pair: Callable[[str], Pair]) -> None:
    tiny = pair("phi3 longrope")
    for target in ("cpu", "portable"):
        first, second = (
            ir.to_proto(tiny.decoder(target).model).SerializeToString(deterministic=True) for _ in range(2)
        )
        assert first == second


def test_a_weight_that_contradicts_the_spec_is_named(pair: Callable[[str], Pair]) -> None:
    checkpoint = pair("llama").checkpoint
    spec = replace(checkpoint.spec, intermediate_size=81)
    with pytest.raises(GraphError, match=r"layers\.0\.mlp\.gate_proj\.weight.*\[80, 48\].*\[81, 48\]"):
        build_graph(spec, checkpoint.weights, opset=21, name="tiny")
