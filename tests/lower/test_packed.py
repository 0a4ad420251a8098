"""Packed weights: what ONNX Runtime's operators compute of them, numpy computes, and the standard operators do."""

from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir import tape

from edgekit.config import load_target
from edgekit.errors import LowerError
from edgekit.lower import lower

PORTABLE = load_target("portable")
CONTRIB = "com.microsoft"


@dataclass
class Packed:
    """A random weight [rows, columns] on a grid, in the layout of MatMulNBits."""

    rows: int
    columns: int
    bits: int
    block: int
    symmetric: bool
    per_channel: bool = False

    def __post_init__(self) -> None:
        random = np.random.default_rng(0)
        self.blocks = ceil(self.columns / self.block)
        self.codes = random.integers(0, 2**self.bits, (self.rows, self.blocks * self.block), dtype=np.uint8)
        self.scales = random.uniform(0.01, 0.1, (self.rows, self.blocks)).astype(np.float16)
        self.zeros = random.integers(0, 2**self.bits, (self.rows, self.blocks), dtype=np.uint8)
        if self.per_channel:
            self.scales[:], self.zeros[:] = self.scales[:, :1], self.zeros[:, :1]
        if self.symmetric:
            self.zeros[:] = 2 ** (self.bits - 1)

    @property
    def values(self) -> np.ndarray:
        wide = [
            np.repeat(x, self.block, axis=1)[:, : self.columns].astype(np.float32) for x in (self.zeros, self.scales)
        ]
        return (self.codes[:, : self.columns] - wide[0]) * wide[1]

    def pack(self, codes: np.ndarray) -> np.ndarray:
        """Along the rows, low nibble first, the last byte padded."""
        if self.bits == 8:
            return codes
        if codes.shape[1] % 2:
            codes = np.pad(codes, ((0, 0), (0, 1)))
        return codes[:, 0::2] | codes[:, 1::2] << 4

    def stored(self, build: tape.Tape, name: str) -> list[ir.Value]:
        """Float16 scales behind a Cast, and zero points if there are any; one a row is stored once and repeated."""
        tables = {"scales": self.scales, "zeros": self.pack(self.zeros)}
        values = []
        for part, table in tables.items() if not self.symmetric else [("scales", self.scales)]:
            narrow = table[:, :1] if self.per_channel else table
            value = build.initializer(ir.tensor(narrow, name=f"{name}.{part}"))
            if part == "scales":
                value = build.op("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{name}.cast")
            if self.per_channel:
                shape = build.initializer(ir.tensor(np.array(table.shape), name=f"{name}.{part}.shape"))
                value = build.op("Expand", [value, shape], name=f"{name}.{part}.expand")
            values.append(value)
        return values

    def codes_of(self, build: tape.Tape, name: str, *shape: int) -> ir.Value:
        return build.initializer(ir.tensor(self.pack(self.codes).reshape(self.rows, *shape), name=name))

    def matmul(self, build: tape.Tape, x: ir.Value, grid: list[ir.Value]) -> ir.Value:
        codes = self.codes_of(build, "head.codes", self.blocks, self.block * self.bits // 8)
        attributes = {"K": self.columns, "N": self.rows, "bits": self.bits, "block_size": self.block}
        return build.op("MatMulNBits", [x, codes, *grid], attributes, domain=CONTRIB, name="head")

    def gather(self, build: tape.Tape, ids: ir.Value, grid: list[ir.Value]) -> ir.Value:
        codes = self.codes_of(build, "embedding.codes", -1)
        attributes = {"bits": self.bits, "block_size": self.block, "gather_axis": 0, "quantize_axis": 1}
        return build.op("GatherBlockQuantized", [codes, ids, *grid], attributes, domain=CONTRIB, name="embedding")


def model_of(build: tape.Tape, inputs: list[ir.Value], output: ir.Value) -> ir.Model:
    output.name, output.type, output.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["B", "S", "N"])
    opsets = {"": 21, CONTRIB: 1}
    graph = ir.Graph(
        inputs, [output], nodes=build.nodes, initializers=build.initializers, name="packed", opset_imports=opsets
    )
    return ir.Model(graph, ir_version=10)


def multiplication(weight: Packed) -> ir.Model:
    build = tape.Tape()
    x = ir.val("x", ir.DataType.FLOAT, ("B", "S", weight.columns))
    return model_of(build, [x], weight.matmul(build, x, weight.stored(build, "head")))


def lookup(weight: Packed) -> ir.Model:
    build = tape.Tape()
    ids = ir.val("ids", ir.DataType.INT64, ("B", "S"))
    return model_of(build, [ids], weight.gather(build, ids, weight.stored(build, "embedding")))


def tied(weight: Packed) -> ir.Model:
    """Embedding, then a head with the same codes in another shape and the same scales."""
    build = tape.Tape()
    ids = ir.val("ids", ir.DataType.INT64, ("B", "S"))
    grid = weight.stored(build, "embedding")
    logits = weight.matmul(build, weight.gather(build, ids, grid), grid)
    model = model_of(build, [ids], logits)
    model.graph.initializers["head.codes"].metadata_props["edgekit.shared_with"] = "embedding.codes"
    return model


def run(model: ir.Model, *, optimize: bool = True, **inputs: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    # Without it, what is fused back multiplies with activations rounded to 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def checked(model: ir.Model) -> ir.Model:
    """Lowered for portable, and standard ONNX."""
    lowered = lower(model, PORTABLE)
    assert {node.domain for node in lowered.graph} == {""}
    onnx.checker.check_model(ir.to_proto(lowered), full_check=True)
    return lowered


SHAPES = [
    pytest.param(24, 64, 16, id="block 16"),
    pytest.param(24, 64, 32, id="block 32"),
    pytest.param(7, 256, 128, id="block 128, odd rows"),
    pytest.param(24, 512, 256, id="block 256"),
    pytest.param(24, 72, 32, id="padded block"),
    pytest.param(24, 96, 128, id="one block"),
]
GRIDS = pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True), (8, False)])


@GRIDS
@pytest.mark.parametrize(("rows", "columns", "block"), SHAPES)
def test_matmul_nbits(rows: int, columns: int, block: int, bits: int, symmetric: bool) -> None:
    weight = Packed(rows, columns, bits, block, symmetric)
    x = np.random.default_rng(1).standard_normal((2, 3, columns)).astype(np.float32)
    expected = x @ weight.values.T
    limit = 2e-6 * np.abs(expected).max()
    assert np.abs(run(multiplication(weight), x=x) - expected).max() < limit
    for optimize in (True, False):
        assert np.abs(run(checked(multiplication(weight)), optimize=optimize, x=x) - expected).max() < limit


@GRIDS
@pytest.mark.parametrize(("rows", "columns", "block"), [(50, 64, 16), (51, 96, 32), (50, 64, 64), (50, 160, 32)])
def test_gather_block_quantized(rows: int, columns: int, block: int, bits: int, symmetric: bool) -> None:
    weight = Packed(rows, columns, bits, block, symmetric)
    ids = np.array([[0, rows - 1, 7], [3, 3, 11]])
    expected = weight.values[ids]
    assert np.array_equal(run(lookup(weight), ids=ids), expected)
    assert np.array_equal(run(checked(lookup(weight)), ids=ids), expected)


@GRIDS
@pytest.mark.parametrize("per_channel", [False, True])
def test_tied_weights_are_stored_once_at_8_bits(bits: int, symmetric: bool, per_channel: bool) -> None:
    weight = Packed(50, 64, bits, 32, symmetric, per_channel)
    ids = np.array([[0, 49, 7], [3, 3, 11]])
    expected = weight.values[ids] @ weight.values.T
    assert np.abs(run(tied(weight), ids=ids) - expected).max() < 2e-6 * np.abs(expected).max()
    lowered = checked(tied(weight))
    for optimize in (True, False):
        assert np.abs(run(lowered, optimize=optimize, ids=ids) - expected).max() < 2e-6 * np.abs(expected).max()
    names = sorted(name for name in lowered.graph.initializers if name.startswith(("embedding", "head")))
    turned = [f"embedding.{part}.columns" for part in ("codes", "scales", "zeros")[: 2 if symmetric else 3]]
    rows = [] if bits == 8 else [name.removesuffix(".columns") for name in turned]
    assert names == sorted(turned + rows)


@GRIDS
def test_per_channel_scales_are_not_repeated(bits: int, symmetric: bool) -> None:
    weight = Packed(24, 96, bits, 32, symmetric, per_channel=True)
    x = np.random.default_rng(1).standard_normal((2, 3, 96)).astype(np.float32)
    expected = x @ weight.values.T
    lowered = checked(multiplication(weight))
    assert lowered.graph.initializers["head.scales.columns"].shape == [24]
    for model in (multiplication(weight), lowered):
        assert np.abs(run(model, x=x) - expected).max() < 2e-6 * np.abs(expected).max()
    ids = np.array([[0, 23, 7], [3, 3, 11]])
    assert np.array_equal(run(checked(lookup(weight)), ids=ids), weight.values[ids])


def test_codes_stay_lazy() -> None:
    model = multiplication(Packed(24, 64, 4, 32, symmetric=False))

    def refuse() -> ir.TensorProtocol:
        raise AssertionError("read")

    for value in model.graph.initializers.values():
        value.const_value = ir.LazyTensor(refuse, value.dtype, value.shape, name=value.name)
    for value in lower(model, PORTABLE).graph.initializers.values():
        assert isinstance(value.const_value, ir.LazyTensor)


def test_onnxruntime_fuses_the_standard_form_back(tmp_path) -> None:
    """Otherwise it would dequantize the whole matrix for each token."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    for bits in (4, 8):
        model = checked(multiplication(Packed(24, 64, bits, 32, symmetric=True)))
        onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        optimized = onnx.load(options.optimized_model_filepath)
        assert [node.op_type for node in optimized.graph.node] == ["MatMulNBits"]


def test_a_packing_that_is_not_ours_is_refused() -> None:
    model = multiplication(replace(Packed(24, 64, 4, 32, symmetric=True)))
    model.graph[-1].attributes["bits"] = ir.AttrInt64("bits", 2)
    with pytest.raises(LowerError, match="MatMulNBits 'head': 2 bits"):
        lower(model, PORTABLE)
