"""``Patch``: new nodes that replace one old node. Every pass uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.errors import LowerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


# Nodes between a stored scale and its reader: to float32, and one scale per row repeated for every block.
FOLDED = ("Cast", "Expand")


def nodes_of(model: ir.Model, kind: str) -> list[ir.Node]:
    """All nodes of an operator, in order."""
    return [node for node in model.graph if node.op_type == kind]


def initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a tensor as an initializer under its name."""
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def fixed_size(value: ir.Value | None, axis: int) -> int:
    """A dimension that must be a number; LowerError if it is not."""
    size = None if value is None or value.shape is None else value.shape[axis]
    if not isinstance(size, int):
        raise LowerError(
            f"'{value and value.name}': dimension {axis} is not a number", "export the model with a fixed head size"
        )
    return size


def lazy(
    name: str, dtype: ir.DataType, shape: Sequence[int], compute: Callable[[], NDArray[np.generic]]
) -> ir.LazyTensor:
    """A tensor that is computed when it is written, and not kept. ``compute`` returns 4-bit types packed in bytes."""

    def evaluate() -> ir.TensorProtocol:
        if dtype.bitwidth < 8:
            return ir.PackedTensor(compute(), dtype, shape=shape, name=name)
        return ir.tensor(compute(), dtype=dtype, name=name)

    return ir.LazyTensor(evaluate, dtype, ir.Shape(shape), name=name, cache=False)


class Patch:
    """Collects the nodes that replace ``node`` and names them after it."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self.node = node
        self.graph = model.graph
        self._nodes: list[ir.Node] = []

    def op(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        *,
        domain: str = "",
        outputs: int = 1,
        **attributes: int | float | str | Sequence[int],
    ) -> ir.Value:
        """Add a node named ``<node>/<name>``, or ``name`` if it starts with "/"; return its first output."""
        full = name[1:] if name.startswith("/") else f"{self.node.name}/{name}"
        names = [full, *(f"{full}.{i}" for i in range(1, outputs))]
        made = ir.node(
            kind, inputs, attributes, domain=domain, name=full, outputs=[ir.Value(name=output) for output in names]
        )
        self._nodes.append(made)
        return made.outputs[0]

    def constant(self, name: str, value: float | Sequence[int], dtype: type[np.generic] = np.int64) -> ir.Value:
        """A small initializer, shared by all users of the same name in the graph."""
        known = self.graph.initializers.get(name)
        return initializer(self.graph, ir.tensor(np.asarray(value, dtype), name=name)) if known is None else known

    def attribute(self, name: str, default: int) -> int:
        """An integer attribute of the old node."""
        found = self.node.attributes.get(name)
        return default if found is None else found.as_int()

    def input(self, index: int) -> ir.Value | None:
        """An input of the old node, None if it is omitted."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def stored(self, index: int) -> tuple[ir.Value, ir.TensorProtocol]:
        """The initializer that an input of the old node comes from, before Cast and Expand, and its tensor."""
        value = self.input(index)
        while value is not None and (producer := value.producer()) is not None and producer.op_type in FOLDED:
            value = producer.inputs[0]
        if value is None or value.const_value is None:
            raise self.refuse(f"its input {index} is not an initializer")
        return value, value.const_value

    def replace(self, *values: ir.Value) -> None:
        """Replace the old node by the new ones and its outputs by ``values``, in order."""
        ir.convenience.replace_nodes_and_values(
            self.graph, self.node, [self.node], self._nodes, self.node.outputs[: len(values)], values
        )

    def append(self) -> None:
        """Append the new nodes to the graph; the old one stays."""
        self.graph.extend(self._nodes)

    def refuse(self, why: str) -> LowerError:
        """The error for a node that cannot be rewritten."""
        return LowerError(f"{self.node.op_type} '{self.node.name}': {why}", "build for a target that has the operator")
