"""Products joined, the head on the last positions, and the graph for prompts: what they compute and what they store."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

from edgekit import build_bundle
from edgekit.bundle.reading import read_initializers
from edgekit.config.recipe import builtin_recipe, load_recipe, load_target
from edgekit.graph import build_graph
from edgekit.lower import lower, prefill_graph
from edgekit.quantize import quantize
from edgekit.run.first_logit import open_first_logit
from edgekit.run.runtime import onnxruntime
from edgekit.source import open_model
from edgekit.testing import tiny_checkpoint
from edgekit.types import EXPANDED, FIRST_LOGIT, Checkpoint, Grid, Recipe, Target

CPU = load_target("cpu")
IDS = np.random.default_rng(0).integers(0, 384, (1, 9))


def with_quirks(*quirks: str) -> Target:
    return replace(CPU, quirks=frozenset(quirks))


def lowered(checkpoint: Checkpoint, target: Target, recipe: str | Recipe = "small") -> ir.Model:
    model = build_graph(checkpoint.spec, checkpoint.weights, opset=21, name="tiny")
    chosen = load_recipe(recipe) if isinstance(recipe, str) else recipe
    return lower(quantize(model, checkpoint.weights, chosen).model, target)


def logits(model: ir.Model, checkpoint: Checkpoint, **extra: np.ndarray) -> np.ndarray:
    data = open_first_logit(ir.to_proto(model).SerializeToString())
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    spec, count = checkpoint.spec, IDS.shape[1]
    feeds = {
        "input_ids": IDS,
        "attention_mask": np.ones((1, count), np.int64),
        "position_ids": np.arange(count)[None],
        **{
            f"past_key_values.{i}.{kind}": np.zeros((1, spec.kv_heads, 0, spec.head_dim), np.float32)
            for i in range(spec.layers)
            for kind in ("key", "value")
        },
    }
    return session.run(["logits"], feeds | extra)[0]


def with_extras(folder: Path, architecture: str) -> Checkpoint:
    """A tiny model with the biases or the norms of heads that its architecture has."""
    folder = tiny_checkpoint(folder, architecture)
    file, random = folder / "model.safetensors", np.random.default_rng(1)
    weights = load_file(file)
    for i in range(2):
        layer = f"model.layers.{i}.self_attn."
        if architecture == "qwen2":
            for name, rows in (("q", 64), ("k", 32), ("v", 32)):
                weights[f"{layer}{name}_proj.bias"] = random.standard_normal(rows).astype(np.float32)
        if architecture == "qwen3":
            weights |= {f"{layer}{n}_norm.weight": 1 + random.random(16, np.float32) for n in "qk"}
    save_file(weights, file, metadata={"format": "pt"})
    return open_model(str(folder))


@pytest.fixture(params=["llama", "qwen2", "qwen3"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    """Plain, with biases, with norms of the heads: between product and attention stand no nodes, adds, norms."""
    return with_extras(tmp_path / "tiny", request.param)


@pytest.mark.parametrize(
    "grid", [Grid(4, 64, symmetric=False), Grid(8, 0, symmetric=True), Grid(2, 32, symmetric=False)], ids=str
)
def test_joined_products_compute_the_same(checkpoint: Checkpoint, grid: Grid) -> None:
    """In blocks with zero points, and with one scale a row, which a node repeats for every block of the kernel."""
    recipe = replace(load_recipe("small"), linear=grid)
    joined, apart = (lowered(checkpoint, with_quirks(*quirk), recipe) for quirk in (["MatMulNBits:narrow"], []))
    count = [sum(n.op_type == "MatMulNBits" for n in m.graph) for m in (joined, apart)]
    assert count == [4 * 2 + 1, 7 * 2 + 1]
    # ONNX Runtime adds a bias inside a product of its own, which rounds once less.
    tolerance = 1e-4 if checkpoint.spec.qkv_bias else 0
    np.testing.assert_allclose(logits(joined, checkpoint), logits(apart, checkpoint), atol=tolerance, rtol=0)


def test_query_key_and_value_go_packed_into_attention_where_nothing_stands_between(tmp_path: Path) -> None:
    plain, normed = (lowered(with_extras(tmp_path / name, name), CPU) for name in ("llama", "qwen3"))
    for model, packed in ((plain, True), (normed, False)):
        attention = [n for n in model.graph if n.op_type == "GroupQueryAttention"]
        assert len(attention) == 2
        assert all((n.inputs[1] is None and n.inputs[2] is None) == packed for n in attention)


def test_products_on_different_grids_stay_apart(tmp_path: Path) -> None:
    checkpoint = open_model(str(tiny_checkpoint(tmp_path / "tiny")))
    model = lowered(checkpoint, CPU, "int4")
    names = {n.name for n in model.graph if n.op_type == "MatMulNBits"}
    assert "model.layers.0.self_attn.q_proj+k_proj" in names
    assert "model.layers.0.self_attn.v_proj" in names
    np.testing.assert_array_equal(
        logits(model, checkpoint), logits(lowered(checkpoint, with_quirks(), "int4"), checkpoint)
    )


def test_joined_weights_are_read_back_by_their_own_names(tmp_path: Path) -> None:
    folder = str(tiny_checkpoint(tmp_path / "tiny"))
    joined = read_initializers(build_bundle(folder, recipe="small", out=tmp_path / "joined"))
    apart = read_initializers(build_bundle(folder, recipe="small", target=with_quirks(), out=tmp_path / "apart"))
    names = [
        f"model.layers.1.{n}_proj.weight.{kind}" for n in ("self_attn.v", "mlp.up") for kind in ("codes", "scales")
    ]
    for name in names:
        np.testing.assert_array_equal(joined[name].numpy(), apart[name].numpy())


@pytest.mark.parametrize("target", ["cpu", "portable"])
@pytest.mark.parametrize("recipe", ["fp32", "int4"])
def test_logits_from_a_position_on(tmp_path: Path, target: str, recipe: str) -> None:
    checkpoint = open_model(str(tiny_checkpoint(tmp_path / "tiny")))
    model = lowered(checkpoint, load_target(target), recipe)
    every = logits(model, checkpoint)
    assert every.shape == (1, 9, 384)
    last = logits(model, checkpoint, **{FIRST_LOGIT: np.asarray([8])})
    assert last.shape == (1, 1, 384)
    np.testing.assert_allclose(last, every[:, 8:], atol=0.2 if recipe == "int4" else 1e-4)  # one row, another kernel


def test_the_graph_for_prompts_stores_no_weight_twice(tmp_path: Path) -> None:
    folder = str(tiny_checkpoint(tmp_path / "tiny"))
    bundle = build_bundle(folder, recipe="fast", out=tmp_path / "fast")
    prefill = bundle.manifest.prefill
    assert prefill is not None
    assert not (bundle.path / f"{prefill.graph}_data").exists()
    locations = {
        v.const_value.location
        for v in ir.load(bundle.path / prefill.graph).graph.initializers.values()
        if isinstance(v.const_value, ir.ExternalTensor)
    }
    assert locations == {EXPANDED, f"{bundle.graph.name}_data"}
    assert len(prefill.expansions) == 5 * 2


def test_the_graph_for_prompts_needs_a_written_one(tmp_path: Path) -> None:
    from edgekit.errors import LowerError

    with pytest.raises(LowerError, match="is not external data"):
        prefill_graph(lowered(open_model(str(tiny_checkpoint(tmp_path / "tiny"))), CPU))


def test_a_dialect_without_the_product_has_no_graph_for_prompts(tmp_path: Path) -> None:
    folder = str(tiny_checkpoint(tmp_path / "tiny"))
    assert build_bundle(folder, recipe="fast", target="portable", out=tmp_path / "out").manifest.prefill is None
    assert not builtin_recipe("int4").w8a8_prefill
