"""Cures of units that compute in half precision, evaluated by ONNX's own evaluator, which rounds every result."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from edgekit.config.recipe import load_target
from edgekit.graph import build_graph
from edgekit.lower import lower
from edgekit.source import open_model
from edgekit.testing import tiny_checkpoint
from edgekit.types import Checkpoint
from edgekit.types.device import NpuScheme, Window

NORM = {"op:SkipSimplifiedLayerNormalization", "op:SimplifiedLayerNormalization"}
QUIRKS = {"inputs:token-ids", "attention:fused", "shapes:dynamic", "floats:float32"}
HIDDEN = 64


def lowered(checkpoint: Checkpoint, *quirks: str, tokens: int = 4) -> ir.Model:
    scheme = NpuScheme(
        "float16", ("fp16",), frozenset({*NORM, "op:FusedMatMul"}), frozenset(QUIRKS | {*quirks}), (), (), (), -1e4
    )
    model = build_graph(checkpoint.spec, checkpoint.weights, opset=21, name="tiny")
    return lower(model, load_target("cpu").compiled(scheme, Window(tokens, 8)))


def evaluate(model: ir.Model, embeds: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs for token rows [1,S,H], with an empty mask, a cache of zeros and no turn."""
    given = {}
    for value in model.graph.inputs:
        dtype = np.float16 if value.dtype == ir.DataType.FLOAT16 else np.float32
        given[value.name] = np.zeros(value.shape.numpy(), dtype)
    given["inputs_embeds"] = embeds.astype(np.float32)
    given["rope.cos.rows"][:] = 1
    with np.errstate(over="ignore", invalid="ignore"):
        found = ReferenceEvaluator(ir.to_proto(model)).run(None, given)
    return {str(v.name): array for v, array in zip(model.graph.outputs, found, strict=True)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    return open_model(str(tiny_checkpoint(Path(tmp_path_factory.mktemp("half")) / "tiny")))


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 4, HIDDEN))


def check_norm(checkpoint: Checkpoint, embeds: np.ndarray) -> None:
    """The first norm of a lowered model in half precision, against its formula in double precision."""
    model = lowered(checkpoint, "norm:overflow")
    norm = next(v for v in model.graph.all_nodes() if v.name == "model.layers.0.input_layernorm/scaled").outputs[0]
    norm.type, norm.shape = ir.TensorType(ir.DataType.FLOAT16), ir.Shape((1, 4, HIDDEN))
    model.graph.outputs.append(norm)
    found = evaluate(model, embeds)[norm.name]
    x, weight = (
        embeds.astype(np.float16).astype(float),
        checkpoint.weights.read("model.layers.0.input_layernorm.weight"),
    )
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + checkpoint.spec.norm_eps) * weight
    assert found.dtype == np.float16
    assert np.abs(found - expected).max() < 0.004 * np.abs(expected).max()


@pytest.mark.parametrize("size", [1e-6, 1e-4, 0.1, 9000.0])
def test_a_norm_holds_whatever_the_size_of_its_input(checkpoint, rows, size):
    """Outliers as those of the residual stream, whose squares half precision cannot hold, and elements near zero."""
    check_norm(checkpoint, size * rows / np.abs(rows).max())


@pytest.mark.parametrize("outlier", [-9000.0, 9000.0, -65504.0])
@pytest.mark.parametrize("rest", [0.01, 1.0])
def test_a_norm_holds_with_one_large_channel_of_either_sign(checkpoint, rows, outlier, rest):
    """A channel is as large as its absolute value: against the largest signed element, -9000 would be infinite."""
    embeds = rest * rows / np.abs(rows).max()
    embeds[:, :, 7] = outlier
    check_norm(checkpoint, embeds)


def test_a_token_of_zeros_stays_zero(checkpoint, rows):
    check_norm(checkpoint, rows * np.array([1, 0, 1, 1])[None, :, None])


def test_without_the_cure_large_squares_are_infinite(checkpoint, rows):
    embeds = 9000 * rows / np.abs(rows).max()
    plain, cured = (evaluate(lowered(checkpoint, *quirks), embeds)["new.0.key"] for quirks in ((), ("norm:overflow",)))
    assert not np.abs(plain).max() > 0, "x / infinity"
    assert np.abs(cured).max() > 0.1


def test_half_precision_is_near_single(checkpoint, rows):
    half = lowered(checkpoint, "norm:overflow")
    assert {v.dtype for v in half.graph.outputs} == {ir.DataType.FLOAT16}
    found = evaluate(half, rows)["logits"]
    route_of_single = QUIRKS - {"floats:float32"}
    scheme = NpuScheme(
        "float16", ("fp16",), frozenset({*NORM, "op:FusedMatMul"}), frozenset(route_of_single), (), (), (), 0
    )
    model = build_graph(checkpoint.spec, checkpoint.weights, opset=21, name="tiny")
    single = evaluate(lower(model, load_target("cpu").compiled(scheme, Window(4, 8))), rows)["logits"]
    assert single.dtype == np.float32
    assert np.abs(found - single).max() < 0.01 * np.abs(single).max()


def test_flat_products_give_the_same_bits(checkpoint, rows):
    flat, deep = (
        evaluate(lowered(checkpoint, "norm:overflow", *quirks), rows) for quirks in (("MatMul:three-dimensions",), ())
    )
    assert all(np.array_equal(flat[name], deep[name]) for name in deep)
