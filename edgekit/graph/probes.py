"""Probes: small graphs of matmuls with known sums, to check that a runtime is exact on the processor it runs on.

    python -m edgekit.graph.probes        writes edgekit/run/probes/*.onnx, which ``run/exactness.py`` opens

Kernels differ by processor. On x86 without VNNI, the kernel for unsigned by signed 8-bit integers adds pairs of
products in 16 bits and saturates at 32,767. Sums of random numbers hardly show that; sums of extreme codes are halved.

Each output is the difference between results and known sums, named after the matmul, its weights and rows; the allowed
differences are in the model's metadata under ``limits``. Activations are 0 and plus or minus one magnitude, which every
8-bit quantization represents exactly. They are inputs with defaults, so that no optimizer folds the matmul and a
session runs without feeds. Matmuls do not share weights, because ONNX Runtime's pass that makes signed weights unsigned
fails on a weight that is read twice.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from numpy.typing import NDArray

FOLDER = Path(__file__).parents[1] / "run" / "probes"

OPSET, IR_VERSION = 21, 10
"""As in edgekit's own graphs, readable by every supported ONNX Runtime."""

COLUMNS, INNER, ROWS = 16, 256, 16
"""N, K and a prompt's M of the smallest matmuls that use the kernels' main loops. A token's M is 1."""

MAGNITUDE = 127
SCALE = 2.0**-10
"""Scale of the weight codes: a sum of 256 products of 127 by 255 stays below float16's 65,504."""

TOLERANCE = 1e-3
"""Fraction of the largest sum: scales are multiplied in float32. A saturated sum of extreme codes is off by half."""

HALF_TOLERANCE = INNER * 2.0**-12
"""Fraction of the largest sum if it is in float16: each addition rounds by up to 2**-12 of it."""

BLOCKS = (16, 32, 64, 128, 256)
FOLDED_BLOCKS = (32, 64, 128)
LEVELS = (0, 1, 2, 3, 4)
WIDTHS = (4, 8)
"""Bits of a weight's code. 2 bits have probes of their own, since not every supported ONNX Runtime reads them."""

NARROW_LEVELS, LOOKED_UP = (0, 4), 128
"""The levels of 2-bit matmuls in bundles, and N of the smallest that the kernel with look-up tables computes."""


@dataclass
class Probe:
    """A builder of one probe graph: matmuls over shared activations, each compared with its known sums."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    _inputs: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)
    _values: dict[str, onnx.TensorProto] = field(default_factory=dict)
    _outputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _limits: dict[str, float] = field(default_factory=dict)

    def constant(self, name: str, array: NDArray[Any] | np.generic) -> str:
        """An initializer, stored once per name."""
        self._values.setdefault(name, numpy_helper.from_array(np.asarray(array), name))
        return name

    def activations(
        self, rows: int, dtype: type[np.generic], low: float = -MAGNITUDE, high: float = MAGNITUDE
    ) -> tuple[str, NDArray[np.float64]]:
        """An input [rows, INNER] and its values: rows of ``high``, of 0 and ``high``, then the same of ``low``."""
        odd = np.arange(INNER) % 2
        patterns = [value * mask for value in (high, low) for mask in (np.ones(INNER), odd)]
        values = np.stack([patterns[i % len(patterns)] for i in range(rows)])
        name = f"activations.{np.dtype(dtype).name}.{rows}.{low:g}..{high:g}"
        self.default_input(name, values.astype(dtype))
        return name, values

    def codes(self, name: str, codes: NDArray[np.int64], bits: int) -> str:
        """An initializer of uint8 (8 bits) or uint4."""
        if bits == 8:
            return self.constant(name, codes.astype(np.uint8))
        packed = _pack(codes.reshape(1, -1), 4).tobytes()
        self._values[name] = helper.make_tensor(name, TensorProto.UINT4, codes.shape, packed, raw=True)
        return name

    def indices(self) -> str:
        """An input with all row numbers of a table in reverse order."""
        self.default_input("indices", np.arange(COLUMNS, dtype=np.int64)[::-1].copy())
        return "indices"

    def node(self, op_type: str, inputs: list[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        """Add a node and return its output."""
        self.nodes.append(helper.make_node(op_type, inputs, [output], domain=domain, **attributes))
        return output

    def judge(self, name: str, result: str, known: NDArray[np.float64], tolerance: float = TOLERANCE) -> None:
        """Add an output ``result - known``, allowed to differ by ``tolerance`` times the largest sum."""
        sums = known.astype(np.float32)
        known_name = self.constant(f"known.{sha256(sums.tobytes()).hexdigest()[:8]}", sums)
        found = self.node("Cast", [result], f"{name}.float", to=TensorProto.FLOAT)
        self._outputs[self.node("Sub", [found, known_name], name)] = sums.shape
        self._limits[name] = float(tolerance * np.abs(known).max())

    def model(self) -> onnx.ModelProto:
        """The graph as a model."""
        outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in self._outputs.items()]
        graph = helper.make_graph(
            self.nodes, "probe", list(self._inputs.values()), outputs, initializer=list(self._values.values())
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="edgekit")
        helper.set_model_props(model, {"limits": json.dumps(self._limits)})
        return model

    def default_input(self, name: str, values: NDArray[Any]) -> None:
        """Add an input with the default ``values``."""
        element = helper.np_dtype_to_tensor_dtype(values.dtype)
        self._inputs.setdefault(name, helper.make_tensor_value_info(name, element, list(values.shape)))
        self.constant(name, values)


def make_probes() -> dict[str, onnx.ModelProto]:
    """All probes by file name, in separate files so that a missing operator does not affect the others."""
    return {
        "prompt_matmul": _prompt_matmul(),
        "integer_matmul": _integer_matmul(),
        "dynamic_quantize_matmul": _dynamic_quantize_matmul(),
        "qdq_matmul": _qdq_matmul(),
        **{f"matmul_nbits_level_{level}": _matmul_nbits(np.float32, level) for level in LEVELS},
        **{
            f"matmul_2_bits_level_{level}": _matmul_nbits(np.float32, level, (2,), LOOKED_UP) for level in NARROW_LEVELS
        },
        "matmul_nbits_float16": _matmul_nbits(np.float16, 0),
        "dequantize_matmul": _dequantize_matmul(),
        "gather_block_quantized": _gather_block_quantized(WIDTHS),
        "gather_2_bits": _gather_block_quantized((2,)),
        "int8_cache": _int8_cache(),
    }


def _prompt_matmul() -> onnx.ModelProto:
    """MatMulIntegerToFloat as in the prompt graph: codes 1 to 255 around 128, pairs of weights within 128."""
    probe = Probe()
    pairs = np.array([(127, 1), (1, 127), (64, 64), (127, -127)])
    columns = np.concatenate([pairs, -pairs])[np.arange(COLUMNS) % (2 * len(pairs))]
    weights = np.tile(columns.T, (INNER // 2, 1)).astype(np.int8)
    scales = [probe.constant("one", np.float32(1)), probe.constant("ones", np.ones(COLUMNS, np.float32))]
    middle = probe.constant("middle", np.uint8(128))
    for rows in (1, ROWS):
        x, values = probe.activations(rows, np.uint8, 1, 255)
        name = f"MatMulIntegerToFloat, {_rows(rows)}"
        w = probe.constant(f"{name}.weights", weights)
        matmul = probe.node("MatMulIntegerToFloat", [x, w, *scales, middle], f"{name}.sum", domain="com.microsoft")
        probe.judge(name, matmul, (values - 128) @ weights)
    return probe.model()


def _integer_matmul() -> onnx.ModelProto:
    """MatMulInteger with both types on both sides, over their full range."""
    probe = Probe()
    for activation in (np.uint8, np.int8):
        for weight in (np.int8, np.uint8):
            weights = _extreme_columns(weight)
            for rows in (1, ROWS):
                info = np.iinfo(activation)
                x, values = probe.activations(rows, activation, info.min, info.max)
                name = _name("MatMulInteger", activation, weight, rows)
                w = probe.constant(f"{name}.weights", weights)
                probe.judge(name, probe.node("MatMulInteger", [x, w], f"{name}.sum"), values @ weights)
    return probe.model()


def _dynamic_quantize_matmul() -> onnx.ModelProto:
    """DynamicQuantizeMatMul, which quantizes activations to 8 bits inside."""
    probe = Probe()
    scales = probe.constant("scales", np.full(COLUMNS, SCALE, np.float32))
    for weight in (np.int8, np.uint8):
        weights = _extreme_columns(weight)
        x, values = probe.activations(ROWS, np.float32, 0)
        name = _name("DynamicQuantizeMatMul", np.float32, weight, ROWS)
        w = probe.constant(f"{name}.weights", weights)
        matmul = probe.node("DynamicQuantizeMatMul", [x, w, scales], f"{name}.sum", domain="com.microsoft")
        probe.judge(name, matmul, SCALE * (values @ weights))
    return probe.model()


def _qdq_matmul() -> onnx.ModelProto:
    """MatMul on quantized and dequantized inputs, which the runtime fuses to an integer matmul."""
    probe = Probe()
    one = probe.constant("one", np.float32(1))
    for activation in (np.uint8, np.int8):
        for weight in (np.int8, np.uint8):
            weights = _extreme_columns(weight)
            x, values = probe.activations(ROWS, np.float32)
            largest = float(np.iinfo(activation).max)
            step = probe.constant(f"step.{activation.__name__}", np.float32(MAGNITUDE / largest))
            values = np.clip(values, 0 if activation == np.uint8 else None, None)
            name = _name("QDQ MatMul", activation, weight, ROWS)
            zero, nothing = probe.constant(f"{name}.x.zero", activation(0)), probe.constant(f"{name}.w.zero", weight(0))
            codes = probe.node("QuantizeLinear", [x, step, zero], f"{name}.codes")
            real = probe.node("DequantizeLinear", [codes, step, zero], f"{name}.x")
            w = probe.constant(f"{name}.weights", weights)
            w = probe.node("DequantizeLinear", [w, one, nothing], f"{name}.w")
            probe.judge(name, probe.node("MatMul", [real, w], f"{name}.sum"), values @ weights)
    return probe.model()


def _matmul_nbits(
    dtype: type[np.floating[Any]], level: int, widths: tuple[int, ...] = WIDTHS, columns: int = COLUMNS
) -> onnx.ModelProto:
    """MatMulNBits at an accuracy level: each bit width, block size and kind of zero point, for a token and a prompt."""
    probe = Probe()
    element = np.dtype(dtype).name
    for bits, symmetric, block in product(widths, (True, False), BLOCKS):
        codes, weights = _extreme_codes(bits, symmetric)
        codes, weights = np.tile(codes, (columns // COLUMNS, 1)), np.tile(weights, (columns // COLUMNS, 1))
        blocks = INNER // block
        kind = _kind(bits, block, symmetric)
        tensors = [
            probe.constant(f"codes.{kind}", _pack(codes, bits).reshape(columns, blocks, -1)),
            probe.constant(f"scales.{blocks}", np.full((columns, blocks), SCALE, dtype)),
        ]
        if not symmetric:
            tensors.append(probe.constant(f"zeros.{kind}", _zero_points(codes, bits, blocks)))
        shape = {"K": INNER, "N": columns, "bits": bits, "block_size": block, "accuracy_level": level}
        for rows in (1, ROWS):
            x, values = probe.activations(rows, dtype)
            name = f"MatMulNBits, {kind}, {element}, level {level}, {_rows(rows)}"
            result = probe.node("MatMulNBits", [x, *tensors], f"{name}.sum", domain="com.microsoft", **shape)
            tolerance = HALF_TOLERANCE if dtype == np.float16 else TOLERANCE
            probe.judge(name, result, SCALE * (values @ weights.T), tolerance)
    return probe.model()


def _dequantize_matmul() -> onnx.ModelProto:
    """Blocked DequantizeLinear before MatMul, which the runtime fuses to MatMulNBits at the session's level."""
    probe = Probe()
    for bits, block in product(WIDTHS, FOLDED_BLOCKS):
        codes, weights = _extreme_codes(bits, symmetric=True)
        kind = f"{bits} bits, block {block}"
        stored = probe.codes(f"codes.{kind}", codes.T, bits)
        zeros = probe.codes(f"zeros.{kind}", np.full((INNER // block, COLUMNS), 2 ** (bits - 1)), bits)
        scales = probe.constant(f"scales.{block}", np.full((INNER // block, COLUMNS), SCALE, np.float32))
        name = f"DequantizeLinear + MatMul, {kind}"
        real = probe.node("DequantizeLinear", [stored, scales, zeros], f"{name}.w", axis=0, block_size=block)
        x, values = probe.activations(ROWS, np.float32)
        probe.judge(name, probe.node("MatMul", [x, real], f"{name}.sum"), SCALE * (values @ weights.T))
    return probe.model()


def _gather_block_quantized(widths: tuple[int, ...]) -> onnx.ModelProto:
    """GatherBlockQuantized, which reads rows from a table of codes."""
    probe = Probe()
    indices = probe.indices()
    for bits, symmetric, block in product(widths, (True, False), BLOCKS):
        codes, weights = _extreme_codes(bits, symmetric)
        blocks = INNER // block
        kind = _kind(bits, block, symmetric)
        table = probe.constant(f"codes.{bits}.{symmetric}", _pack(codes, bits))
        scales = probe.constant(f"scales.{blocks}", np.full((COLUMNS, blocks), SCALE, np.float32))
        zeros = [] if symmetric else [probe.constant(f"zeros.{kind}", _zero_points(codes, bits, blocks))]
        name = f"GatherBlockQuantized, {kind}"
        shape = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
        rows = probe.node(
            "GatherBlockQuantized", [table, indices, scales, *zeros], f"{name}.rows", domain="com.microsoft", **shape
        )
        probe.judge(name, rows, SCALE * weights[::-1])
    return probe.model()


def _int8_cache() -> onnx.ModelProto:
    """GroupQueryAttention over an int8 cache: keys and values alternate between the extremes, scaled to 1 and -1.

    The query's scores are plus or minus one number, so each result follows from a softmax of two values.
    """
    probe = Probe()
    heads, size, past, query = 2, 64, 16, 0.05
    signs = np.where(np.arange(past) % 2, -1, 1)
    cache = (signs[:, None] * np.full((1, heads, past, size), 127)).astype(np.int8)
    score = query * size / np.sqrt(size)
    for mode, rows in product(("PER_TENSOR", "PER_CHANNEL"), (1, ROWS)):
        name = f"GroupQueryAttention, int8 cache {mode.lower().replace('_', ' ')}, {_rows(rows)}"
        ones = np.ones((1, rows, heads * size), np.float32)
        new = {f"query.{rows}": np.float32(query) * ones, f"key.{rows}": ones, f"value.{rows}": ones}
        for input_name, values in (*new.items(), ("past.key", cache), ("past.value", cache)):
            probe.default_input(input_name, values)
        step = np.full(1 if mode == "PER_TENSOR" else heads * size, 1 / 127, np.float32)
        scales = [probe.constant(f"{name}.{of}.scale", step) for of in ("key", "value")]
        places = [
            probe.constant(f"last.{rows}", np.array([past + rows - 1], np.int32)),
            probe.constant(f"total.{rows}", np.array(past + rows, np.int32)),
        ]
        outputs = [f"{name}.sum", f"{name}.present.key", f"{name}.present.value"]
        options: dict[str, Any] = {"num_heads": heads, "kv_num_heads": heads, "kv_cache_bit_width": 8}
        options |= {"k_quant_type": mode, "v_quant_type": mode, "domain": "com.microsoft"}
        inputs = [*new, "past.key", "past.value", *places, *[""] * 5, *scales]
        probe.nodes.append(helper.make_node("GroupQueryAttention", inputs, outputs, **options))
        plus = (signs > 0).sum() + np.arange(1, rows + 1)
        weights = np.exp(score) * plus, np.exp(-score) * (signs < 0).sum()
        known = (weights[0] - weights[1]) / (weights[0] + weights[1])
        probe.judge(name, outputs[0], np.broadcast_to(known[None, :, None], ones.shape))
    return probe.model()


def _extreme_columns(dtype: type[np.integer[Any]]) -> NDArray[Any]:
    """Weights [INNER, COLUMNS]: the largest value in even columns, the smallest in odd ones."""
    info = np.iinfo(dtype)
    return np.where(np.arange(COLUMNS) % 2 == 0, info.max, info.min).astype(dtype) * np.ones((INNER, 1), dtype)


def _extreme_codes(bits: int, symmetric: bool) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Codes [COLUMNS, INNER] of extreme weights, and codes minus zero points (extreme too, unless symmetric)."""
    top, even = 2**bits - 1, (np.arange(COLUMNS) % 2 == 0)[:, None]
    codes = np.where(even, top, 0) * np.ones((1, INNER), np.int64)
    zeros = np.full_like(codes, 2 ** (bits - 1)) if symmetric else top - codes
    return codes, (codes - zeros).astype(np.float64)


def _zero_points(codes: NDArray[np.int64], bits: int, blocks: int) -> NDArray[np.uint8]:
    """Packed zero points [n, blocks] for ``_extreme_codes`` [n, INNER]."""
    return _pack((2**bits - 1 - codes)[:, :blocks], bits)


def _pack(codes: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    """Pack codes along the last axis into bytes, the first in the low bits; the last byte is padded with 0."""
    each = 8 // bits
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % each))).astype(np.uint8)
    places = np.uint8(bits) * np.arange(each, dtype=np.uint8)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(padded.reshape(len(codes), -1, each) << places, axis=-1)
    return packed


def _kind(bits: int, block: int, symmetric: bool) -> str:
    return f"{bits} bits, block {block}, {'symmetric' if symmetric else 'zero points'}"


def _name(op: str, activation: type[np.generic], weight: type[np.generic], rows: int) -> str:
    return f"{op}, {np.dtype(activation).name} x {np.dtype(weight).name}, {_rows(rows)}"


def _rows(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"


def write_probes(folder: Path = FOLDER) -> None:
    """Write the probes' files, and one with the hash of them all, the key of cached results."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = sha256()
    for name, model in sorted(make_probes().items()):
        data = model.SerializeToString(deterministic=True)
        (folder / f"{name}.onnx").write_bytes(data)
        whole.update(data)
    (folder / "sha256").write_text(whole.hexdigest() + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_probes()
