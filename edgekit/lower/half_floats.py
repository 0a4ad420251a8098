"""Symptom: an NPU, such as Apple's, computes only in half precision and leaves float32 graphs to another unit.

Cure: every float32 weight and value becomes float16, including the cache and the logits. Inputs computed by the host
stay float32 and are rounded on entry.
Exactness: rounds to float16 after every operator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.lower.patch import lazy, nodes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from edgekit.types import Target

FIXES = frozenset({"floats:float32"})
HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def apply(model: ir.Model, _: Target) -> ir.Model:
    """Round the initializers, drop casts to float32, and change the types of inputs and outputs."""
    graph = model.graph
    for node in nodes_of(model, "Cast"):
        value = node.inputs[0]
        if value is not None and node.attributes["to"].as_int() == FLOAT:
            ir.convenience.replace_all_uses_with(node.outputs[0], value)
            graph.remove(node, safe=True)
    for value in graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == FLOAT:
            value.const_value, value.type = _half(value.const_value), ir.TensorType(HALF)
    for value in graph.inputs:
        if value.dtype == FLOAT and not str(value.name).startswith("past_key_values."):
            _round_input(graph, value)
    for value in (*graph.inputs, *graph.outputs):
        if value in graph.outputs or str(value.name).startswith("past_key_values."):
            value.type = ir.TensorType(HALF)
    return model


def remains(model: ir.Model, _: Target) -> Iterator[str]:
    """Weights, outputs and cache inputs in float32, and casts to it."""
    graph = model.graph
    yield from (str(v.name) for v in graph.initializers.values() if v.const_value and v.const_value.dtype == FLOAT)
    yield from (str(v.name) for v in graph.outputs if v.dtype == FLOAT)
    yield from (str(v.name) for v in graph.inputs if v.dtype == FLOAT and str(v.name).startswith("past_key_values."))
    yield from (str(n.name) for n in nodes_of(model, "Cast") if n.attributes["to"].as_int() == FLOAT)


def _half(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    def compute() -> NDArray[np.float16]:
        return np.asarray(tensor.numpy(), np.float16)

    return lazy(str(tensor.name), HALF, tensor.shape.numpy(), compute)


def _round_input(graph: ir.Graph, value: ir.Value) -> None:
    """Round a float32 input of the host to float16 before its first use."""
    made = ir.Value(name=f"{value.name}.half")
    ir.convenience.replace_all_uses_with(value, made)
    graph.insert_before(graph[0], ir.node("Cast", [value], {"to": HALF}, name=f"{value.name}.half", outputs=[made]))
