"""Replace float nodes by quantized ones: MatMulNBits for matmuls, GatherBlockQuantized for the token table.

Scales are stored in the grid's type and cast to float32 by a node that ONNX Runtime folds when it creates the session;
per-channel scales are repeated in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.errors import QuantizeError
from edgekit.types import SHARED_WITH

if TYPE_CHECKING:
    from edgekit.quantize.tensor import LazyWeight, Part
    from edgekit.types import Grid
    from edgekit.types.layout import Layout

MATMULS = ("MatMul", "FusedMatMul")
CONTRIB = "com.microsoft"

NARROWEST, LEAST_NARROW_BLOCK, ROUNDED_ACTIVATIONS = 2, 32, 4
"""Bits, the smallest block and the accuracy level of MatMulNBits' kernels for the fewest bits."""


@dataclass
class QuantizedTensor:
    """The initializers of one weight, created once and shared by all its nodes."""

    name: str
    grid: Grid
    layout: Layout
    lazy: LazyWeight
    accuracy_level: int
    _values: dict[str, ir.Value] = field(default_factory=dict)
    _folded: dict[str, ir.Value] = field(default_factory=dict)

    def replace(self, graph: ir.Graph, node: ir.Node) -> None:
        """Replace a node that uses the float weight by a quantized one."""
        made = self._scale_nodes(graph)
        made.append(self._gather(graph, node) if node.op_type == "Gather" else self._matmul(graph, node))
        ir.convenience.replace_nodes_and_values(graph, node, [node], made, [node.outputs[0]], [made[-1].outputs[0]])

    def _matmul(self, graph: ir.Graph, node: ir.Node) -> ir.Node:
        attributes = {"K": self.layout.columns, "N": self.layout.rows, "accuracy_level": self.accuracy_level}
        return self._node("MatMulNBits", node, [node.inputs[0], self._codes(graph, flat=False)], attributes)

    def _gather(self, graph: ir.Graph, node: ir.Node) -> ir.Node:
        attributes = {"gather_axis": 0, "quantize_axis": 1}
        return self._node("GatherBlockQuantized", node, [self._codes(graph, flat=True), node.inputs[1]], attributes)

    def _node(self, kind: str, node: ir.Node, inputs: list[ir.Value | None], attributes: dict[str, int]) -> ir.Node:
        """A node on this weight's grid; scales and zero points are added to the inputs."""
        inputs += [self._folded[part] for part in ("scales", "zeros") if part in self._folded]
        attributes |= {"bits": self.grid.bits, "block_size": self.layout.block_size}
        output = ir.Value(name=f"{node.name}.quantized")
        return ir.node(kind, inputs, attributes, domain=CONTRIB, name=node.name, outputs=[output])

    def _codes(self, graph: ir.Graph, *, flat: bool) -> ir.Value:
        """The codes [rows, blocks, bytes], or flat [rows, blocks * bytes] for the gather; both share their bytes."""
        kind = "table" if flat else "codes"
        if kind not in self._values:
            size = self.layout.code_bytes(self.grid)
            rows, blocks = self.layout.rows, self.layout.blocks
            shape = (rows, blocks * size) if flat else (rows, blocks, size)
            owner = self._values.get("codes" if flat else "table")
            value = self._initializer(graph, kind, "codes", ir.DataType.UINT8, shape)
            if owner is not None:
                value.metadata_props[SHARED_WITH] = str(owner.name)
        return self._values[kind]

    def _scale_nodes(self, graph: ir.Graph) -> list[ir.Node]:
        """The nodes that convert stored scales and zero points to the operators' inputs; created once."""
        if self._folded:
            return []
        rows, blocks, columns = self.layout.rows, self.layout.blocks, self.layout.scale_columns
        half = self.grid.scale == "float16"
        stored = ir.DataType.FLOAT16 if half else ir.DataType.FLOAT
        nodes: list[ir.Node] = []
        value = self._initializer(graph, "scales", "scales", stored, (rows, columns))
        if half:
            nodes.append(self._fold("Cast", [value], "scales.float", {"to": ir.DataType.FLOAT}))
            value = nodes[-1].outputs[0]
        if self.layout.per_channel:
            nodes.append(self._repeat(graph, value, "scales", rows, blocks))
            value = nodes[-1].outputs[0]
        self._folded["scales"] = value
        if not self.grid.symmetric:
            value = self._initializer(
                graph, "zeros", "zeros", ir.DataType.UINT8, (rows, self.layout.zero_bytes(self.grid))
            )
            if self.layout.per_channel:
                nodes.append(self._repeat(graph, value, "zeros", rows, -(-blocks * self.grid.bits // 8)))
                value = nodes[-1].outputs[0]
            self._folded["zeros"] = value
        return nodes

    def _repeat(self, graph: ir.Graph, value: ir.Value, part: str, rows: int, times: int) -> ir.Node:
        shape = f"{self.name}.{part}.shape"
        constant = ir.Value(
            name=shape,
            type=ir.TensorType(ir.DataType.INT64),
            shape=ir.Shape([2]),
            const_value=ir.tensor(np.asarray([rows, times], np.int64), name=shape),
        )
        graph.register_initializer(constant)
        return self._fold("Expand", [value, constant], f"{part}.blocks", {})

    def _fold(self, kind: str, inputs: list[ir.Value], part: str, attributes: dict[str, ir.DataType]) -> ir.Node:
        name = f"{self.name}.{part}"
        return ir.node(kind, inputs, attributes, name=name, outputs=[ir.Value(name=name)])

    def _initializer(
        self, graph: ir.Graph, kind: str, part: Part, dtype: ir.DataType, shape: tuple[int, ...]
    ) -> ir.Value:
        name = f"{self.name}.{kind}"
        tensor = ir.LazyTensor(
            lambda: ir.tensor(self.lazy.take(part).reshape(shape), name=name),
            dtype,
            ir.Shape(shape),
            name=name,
            cache=False,
        )
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape), const_value=tensor)
        graph.register_initializer(value)
        self._values[kind] = value
        return value


def check_layout(name: str, grid: Grid, layout: Layout, *, gathered: bool) -> None:
    """Raise QuantizeError for a token table whose rows are not a multiple of the block: no kernel supports that."""
    if gathered and layout.blocks * layout.block_size != layout.columns:
        fitting = [b for b in (256, 128, 64, 32, 16) if layout.columns % b == 0]
        raise QuantizeError(
            f"{name}: blocks of {grid.block_size} do not divide its rows of {layout.columns}",
            f"set block_size of [embedding] to one of {', '.join(map(str, fitting))}"
            if fitting
            else "keep the embedding in float",
        )


def check_kernel(name: str, grid: Grid, layout: Layout, level: int, *, multiplied: bool) -> None:
    """Raise QuantizeError for 2 bits where ONNX Runtime has no kernel: it would unpack the matrix in every run."""
    if grid.bits != NARROWEST or not multiplied:
        return
    if layout.block_size < LEAST_NARROW_BLOCK:
        raise QuantizeError(
            f"{name}: there is no kernel for {grid.bits} bits in blocks of {layout.block_size}",
            "set block_size to 32, 64 or 128",
        )
    if level != ROUNDED_ACTIVATIONS:
        raise QuantizeError(
            f"{name}: there is no kernel for {grid.bits} bits at accuracy level {level}",
            f"set accuracy_level = {ROUNDED_ACTIVATIONS} in the recipe",
        )


def store_half(graph: ir.Graph, value: ir.Value) -> None:
    """Store a float32 initializer as float16 with a cast back for its users; ONNX Runtime folds the cast."""
    name, tensor = str(value.name), value.const_value
    assert tensor is not None
    half = ir.LazyTensor(
        lambda: ir.tensor(_to_half(name, tensor), name=name),
        ir.DataType.FLOAT16,
        ir.Shape(tensor.shape.numpy()),
        name=name,
        cache=False,
    )
    users = list(value.uses())
    cast = ir.node(
        "Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{name}.float", outputs=[ir.Value(name=f"{name}.float")]
    )
    for node, index in users:
        node.replace_input_with(index, cast.outputs[0])
    value.const_value, value.type = half, ir.TensorType(ir.DataType.FLOAT16)
    readers = {user for user, _ in users}
    # Finding the first of several readers takes a pass over the whole graph.
    graph.insert_before(next(iter(readers)) if len(readers) == 1 else next(n for n in graph if n in readers), cast)


def _to_half(name: str, tensor: ir.TensorProtocol) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    with np.errstate(over="ignore"):
        half = tensor.numpy().astype(np.float16)
    if not np.isfinite(half).all():
        raise QuantizeError(f"{name}: a weight is too large for float16", "use `precision=fp32` or `precision=int8`")
    return half
