"""Symptom: "A must be 2D": NNAPI's and XNNPACK's providers multiply a matrix with a weight, not a batch of matrices.

Cure: reshaped to two dimensions before the matmul and back behind it. Batch 1: for static graphs.
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
    """Rewrite every matmul [1,S,K] with a stored weight [K,N]; those that read one input share its reshaping."""
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
    """Matmuls with a stored weight whose other factor was not reshaped."""
    for node in nodes_of(model, "MatMul"):
        x, weight = node.inputs
        maker = None if x is None else x.producer()
        if _stored(weight) is not None and (maker is None or maker.op_type != "Reshape"):
            yield str(node.name)


def _stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor that a weight is made of; None where it is computed."""
    while value is not None and (producer := value.producer()) is not None:
        value = producer.inputs[0] if producer.op_type in ("Cast", "DequantizeLinear") else None
    return None if value is None else value.const_value
