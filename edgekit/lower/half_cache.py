"""Symptom: a float32 cache costs the NPU twice the bytes of a float16 one, although it computes in float16 anyway.

Cure: past and new keys and values are float16 at the graph's inputs and outputs.
Exactness: keys and values are rounded to float16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekit.types import Target

FIXES = frozenset({"cache:float32"})
HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def apply(model: ir.Model, _: Target) -> ir.Model:
    """Cast each ``past_key_values.*`` input to float32 and each ``new.*`` output to float16."""
    graph = model.graph
    first = graph[0]
    for value in graph.inputs:
        if str(value.name).startswith("past_key_values."):
            wide = ir.node(
                "Cast",
                [value],
                {"to": FLOAT},
                name=f"{value.name}.float",
                outputs=[ir.Value(name=f"{value.name}.float")],
            )
            ir.convenience.replace_all_uses_with(value, wide.outputs[0])
            wide.replace_input_with(0, value)
            graph.insert_before(first, wide)
            value.type = ir.TensorType(HALF)
    for i, value in enumerate(graph.outputs):
        if str(value.name).startswith("new."):
            name = value.name
            value.name = f"{name}.float"
            half = ir.node(
                "Cast",
                [value],
                {"to": HALF},
                name=f"{name}.half",
                outputs=[ir.Value(name=name, type=ir.TensorType(HALF), shape=value.shape)],
            )
            graph.append(half)
            graph.outputs[i] = half.outputs[0]
    return model


def remains(model: ir.Model, _: Target) -> Iterator[str]:
    """Inputs and outputs with keys and values in float32."""
    for values, start in ((model.graph.inputs, "past_key_values."), (model.graph.outputs, "new.")):
        yield from (str(v.name) for v in values if str(v.name).startswith(start) and v.dtype != HALF)
