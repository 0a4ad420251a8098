"""What the quantize room writes, in both dialects, against NumPy's reading of the stored bytes, over all grids."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir import tape

from edgekit.config.recipe import load_target
from edgekit.errors import LowerError
from edgekit.lower import lower
from edgekit.quantize import Packed, quantize, unpack
from edgekit.run.runtime import onnxruntime
from edgekit.types import Grid, Recipe
from edgekit.types.layout import Layout

EMBEDDING, LINEAR = "model.embed_tokens.weight", "linear.weight"
PORTABLE = load_target("portable")
OPTIMIZED = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
OPTIMIZATIONS = (OPTIMIZED, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
IDS = np.array([[0, 50, 7], [3, 3, 11]])
ROWS = 51


class Random:
    """Weights from memory."""

    def __init__(self, **shapes: tuple[int, int]) -> None:
        random = np.random.default_rng(0)
        # Rows off centre, so that zero points reach from one end to the other.
        self._arrays = {
            n: (random.standard_normal(s) + random.uniform(-3, 3, (s[0], 1))).astype(np.float32)
            for n, s in shapes.items()
        }

    def names(self) -> tuple[str, ...]:
        return tuple(self._arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._arrays[name].shape

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self._arrays[name][start:stop]


def value_of(build: tape.Tape, weights: Random, name: str, *, transposed: bool = False) -> ir.Value:
    array = weights.read(name)
    return build.initializer(ir.tensor(array.T.copy() if transposed else array, name=name))


def model_of(build: tape.Tape, inputs: list[ir.Value], outputs: list[ir.Value]) -> ir.Model:
    for output, name in zip(outputs, "yz", strict=False):
        output.name, output.type, output.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(["B", "S", None])
    opsets = {"": 21, "com.microsoft": 1}
    graph = ir.Graph(
        inputs, outputs, nodes=build.nodes, initializers=build.initializers, name="made", opset_imports=opsets
    )
    return ir.Model(graph, ir_version=10)


def linear(weights: Random) -> ir.Model:
    """y = x W + b, as the graph room writes it."""
    build = tape.Tape()
    rows, columns = weights.shape(LINEAR)
    x = ir.val("x", ir.DataType.FLOAT, ("B", "S", columns))
    multiplied = build.op("MatMul", [x, value_of(build, weights, LINEAR, transposed=True)], name="linear")
    bias = build.initializer(ir.tensor(np.arange(rows, dtype=np.float32), name="bias"))
    return model_of(build, [x], [build.op("Add", [multiplied, bias], name="add")])


def embedding(weights: Random, *, tied: bool) -> ir.Model:
    """y, the tokens' rows, and z, their products with all rows."""
    build = tape.Tape()
    ids = ir.val("ids", ir.DataType.INT64, ("B", "S"))
    table = value_of(build, weights, EMBEDDING)
    rows = build.op("Gather", [table, ids], name="embedding")
    if not tied:
        return model_of(build, [ids], [rows])
    logits = build.op("FusedMatMul", [rows, table], {"transB": 1}, domain="com.microsoft", name="head")
    return model_of(build, [ids], [rows, logits])


def quantized(model: ir.Model, weights: Random, grid: Grid) -> ir.Model:
    recipe = Recipe("test", "int4", "rtn", linear=grid, embedding=grid, accuracy_level=1)
    return quantize(model, weights, recipe).model


def stored(model: ir.Model, name: str, shape: tuple[int, ...], grid: Grid) -> np.ndarray:
    """The weight as NumPy reads it from the initializers."""

    def find(kind: str) -> np.ndarray | None:
        value = model.graph.initializers.get(f"{name}.{kind}")
        return None if value is None else value.const_value.numpy()

    codes = find("codes") if f"{name}.codes" in model.graph.initializers else find("table")
    blocks = Layout.of(shape, grid).blocks
    return unpack(Packed(codes.reshape(shape[0], blocks, -1), find("scales"), find("zeros"), 0.0), shape, grid)


def run(model: ir.Model, level: onnxruntime.GraphOptimizationLevel, **inputs: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = level
    # Without it, what is fused back multiplies with activations rounded to 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    data = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"]).run(None, inputs)


def standard(model: ir.Model) -> ir.Model:
    """Lowered for portable, and checked."""
    lowered = lower(model, PORTABLE)
    assert {node.domain for node in lowered.graph} == {""}
    onnx.checker.check_model(ir.to_proto(lowered), full_check=True)
    return lowered


def near(found: np.ndarray, expected: np.ndarray) -> bool:
    return np.abs(found - expected).max() < 2e-6 * np.abs(expected).max()


def grids(blocks: tuple[int, ...]) -> list[Grid]:
    every = [Grid(bits, block, symmetric) for bits, block, symmetric in product((4, 8), blocks, (True, False))]
    return [*every, replace(every[0], scale="float32"), replace(every[1], scale="float32")]


def named(grid: Grid) -> str:
    return f"{grid.bits} bits by {grid.block_size}, {'symmetric' if grid.symmetric else 'asymmetric'}, {grid.scale}"


@pytest.mark.parametrize("columns", [64, 72, 96, 200])
@pytest.mark.parametrize("grid", grids((0, 16, 32, 128)), ids=named)
def test_products(grid: Grid, columns: int) -> None:
    """Blocks that divide the row and blocks that do not, one that is longer, and one scale a row."""
    weights = Random(**{LINEAR: (ROWS, columns)})
    x = np.random.default_rng(1).standard_normal((2, 3, columns)).astype(np.float32)
    fused = quantized(linear(weights), weights, grid)
    weight = stored(fused, LINEAR, (ROWS, columns), grid)
    expected = x @ weight.T + np.arange(ROWS, dtype=np.float32)
    assert near(run(fused, OPTIMIZED, x=x)[0], expected)
    portable = standard(fused)
    for level in OPTIMIZATIONS:
        assert near(run(portable, level, x=x)[0], expected)


@pytest.mark.parametrize("columns", [64, 96])
@pytest.mark.parametrize("grid", grids((0, 16, 32)), ids=named)
def test_the_rows_of_an_embedding(grid: Grid, columns: int) -> None:
    weights = Random(**{EMBEDDING: (ROWS, columns)})
    model = quantized(embedding(weights, tied=False), weights, grid)
    expected = stored(model, EMBEDDING, (ROWS, columns), grid)[IDS]
    assert np.array_equal(run(model, OPTIMIZED, ids=IDS)[0], expected)
    portable = standard(model)
    for level in OPTIMIZATIONS:
        assert np.array_equal(run(portable, level, ids=IDS)[0], expected)


@pytest.mark.parametrize("columns", [64, 96])
@pytest.mark.parametrize("grid", grids((0, 16, 32)), ids=named)
def test_a_tied_embedding(grid: Grid, columns: int) -> None:
    """In standard operators too, nothing of it is stored twice when it has 8 bits."""
    weights = Random(**{EMBEDDING: (ROWS, columns)})
    model = quantized(embedding(weights, tied=True), weights, grid)
    weight = stored(model, EMBEDDING, (ROWS, columns), grid)

    def check(level: onnxruntime.GraphOptimizationLevel) -> None:
        rows, logits = run(model, level, ids=IDS)
        assert np.array_equal(rows, weight[IDS])
        assert near(logits, weight[IDS] @ weight.T)

    check(OPTIMIZED)
    parts = ["table", "scales", *([] if grid.symmetric else ["zeros"])]
    model = standard(model)
    for level in OPTIMIZATIONS:
        check(level)
    transposed = [f"{EMBEDDING}.{part}.columns" for part in parts]
    rows = [] if grid.bits == 8 else [name.removesuffix(".columns") for name in transposed]
    assert sorted(n for n in model.graph.initializers if n.startswith(EMBEDDING)) == sorted(transposed + rows)


@pytest.mark.parametrize("grid", grids((0,)), ids=named)
def test_one_scale_a_row_is_not_repeated(grid: Grid) -> None:
    weights = Random(**{LINEAR: (ROWS, 96)})
    initializers = standard(quantized(linear(weights), weights, grid)).graph.initializers
    parts = ("scales",) if grid.symmetric else ("scales", "zeros")
    assert all(initializers[f"{LINEAR}.{part}.columns"].shape == [ROWS] for part in parts)


def test_codes_stay_lazy() -> None:
    class Unread(Random):
        def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
            raise AssertionError("read")

    shapes = {LINEAR: (ROWS, 96)}
    model = lower(quantized(linear(Random(**shapes)), Unread(**shapes), Grid(4, 32, symmetric=False)), PORTABLE)
    for part in ("codes", "scales", "zeros"):
        with pytest.raises(AssertionError, match="read"):
            model.graph.initializers[f"{LINEAR}.{part}.columns"].const_value.numpy()


def test_onnxruntime_fuses_the_standard_form_back(tmp_path: Path) -> None:
    """Otherwise it would dequantize the whole matrix for each token."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    weights = Random(**{LINEAR: (ROWS, 96)})
    for grid in grids((32,)):
        data = ir.to_proto(standard(quantized(linear(weights), weights, grid))).SerializeToString()
        onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"])
        optimized = onnx.load(options.optimized_model_filepath)
        assert "MatMulNBits" in [node.op_type for node in optimized.graph.node]
        assert not {"DequantizeLinear", "MatMul"} & {node.op_type for node in optimized.graph.node}


def test_a_packing_that_is_not_ours_is_refused() -> None:
    weights = Random(**{LINEAR: (ROWS, 96)})
    model = quantized(linear(weights), weights, Grid(4, 32, symmetric=True))
    next(node for node in model.graph if node.name == "linear").attributes["bits"] = ir.AttrInt64("bits", 3)
    with pytest.raises(LowerError, match="MatMulNBits 'linear': 3 bits"):
        lower(model, PORTABLE)
