"""Symptom: "A must be 2D": the NNAPI and XNNPACK providers multiply only matrices, not batches, with a weight.

Cure: reshape to two dimensions before the matmul and back after it. For static graphs with batch 1.
Exactness: bit-exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.lower.patch import Patch, nodes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

    from edgekit.types import Target

FIXES = frozenset({"MatMul:three-dimensions"})


def apply(model: ir.Model, _: Target) -> ir.Model:
    """Rewrite every matmul of [1,S,K] with a constant weight [K,N]; matmuls with the same input share its Reshape."""
    flats: dict[ir.Value, ir.Value] = {}
    for node in nodes_of(model, "MatMul"):
        patch = Patch(model, node)
        x, weight = patch.input(0), patch.input(1)
        tensor = _stored(weight)
        if x is None or tensor is None:
            continue
        columns, rows = tensor.shape.numpy()
        if x not in flats:
            shape = patch.constant(f"shape.flat.{columns}", [-1, columns])
            flats[x] = patch.op("Reshape", [x, shape], "flat")
        matmul = patch.op("MatMul", [flats[x], weight], "matmul")
        shape = patch.constant(f"shape.batch.{rows}", [1, -1, rows])
        patch.replace(patch.op("Reshape", [matmul, shape], "batch"))
    return model


def remains(model: ir.Model, _: Target) -> Iterator[str]:
    """Matmuls with a constant weight whose input was not reshaped."""
    for node in nodes_of(model, "MatMul"):
        x, weight = node.inputs
        maker = None if x is None else x.producer()
        if _stored(weight) is not None and (maker is None or maker.op_type != "Reshape"):
            yield str(node.name)


def _stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The stored tensor of a weight; None if it is computed."""
    while value is not None and (producer := value.producer()) is not None:
        value = producer.inputs[0] if producer.op_type in ("Cast", "DequantizeLinear") else None
    return None if value is None else value.const_value
