"""Symptom: "no kernel for FusedMatMul", a contrib operator of ONNX Runtime, used for the head with a tied embedding.

Cure: Gemm with transB, between reshapes to two dimensions and back, so that the head and Gather keep sharing one
initializer (a Transpose would be folded into a second copy at load).
Exactness: the same sums; differs by their order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.lower.patch import Patch, nodes_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.types import Target

FIXES = frozenset({"op:FusedMatMul"})


def apply(model: ir.Model, _: Target) -> ir.Model:
    """Rewrite every product of x [B,S,H] with a transposed weight [V,H]."""
    for node in nodes_of(model, "FusedMatMul"):
        patch = Patch(model, node)
        x, weight = patch.input(0), patch.input(1)
        if set(node.attributes) != {"transB"}:
            raise patch.refuse("only a matmul with a transposed matrix can be rewritten")
        rows, columns = patch.stored(1)[1].shape.numpy()
        flat = patch.op("Reshape", [x, patch.constant(f"shape.rows.{columns}", [-1, columns])], "flat")
        matmul = patch.op("Gemm", [flat, weight], "matmul", transB=1)
        batch = patch.op("Shape", [x], "batch", start=0, end=2)
        shape = patch.op("Concat", [batch, patch.constant(f"size.{rows}", [rows])], "shape", axis=0)
        patch.replace(patch.op("Reshape", [matmul, shape], "unflat"))
    return model
