"""Symptom: "Operators of type SkipSimplifiedLayerNormalization are not supported", a contrib operator of ONNX Runtime.

Cure: Add, then SimplifiedLayerNormalization, which has its own pass and is supported by more providers.
Exactness: bit-exact up to the kernel's order of summation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.lower.patch import Patch, nodes_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.types import Target

FIXES = frozenset({"op:SkipSimplifiedLayerNormalization"})


def apply(model: ir.Model, _: Target) -> ir.Model:
    """Split every node into its sum (output 3) and the norm of it (output 0)."""
    for node in nodes_of(model, "SkipSimplifiedLayerNormalization"):
        patch = Patch(model, node)
        total = patch.op("Add", [patch.input(0), patch.input(1)], "sum")
        if patch.input(3) is not None:
            total = patch.op("Add", [total, patch.input(3)], "biased")
        epsilon = node.attributes["epsilon"].as_float()
        normed = patch.op(
            "SimplifiedLayerNormalization", [total, patch.input(2)], "norm", axis=-1, epsilon=epsilon, stash_type=1
        )
        for output in node.outputs[1:3]:
            if output.uses():
                raise patch.refuse("its mean and variance are used")
        patch.replace(*([normed] if len(node.outputs) < 4 else [normed, node.outputs[1], node.outputs[2], total]))
    return model
