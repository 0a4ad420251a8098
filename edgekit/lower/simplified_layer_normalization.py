"""Symptom: "no kernel for SimplifiedLayerNormalization", a contrib operator of ONNX Runtime.

Cure: its definition in standard operators, x / sqrt(mean(x**2) + epsilon) * weight, in the order of nodes that
ONNX Runtime's SimplifiedLayerNormFusion recognises. (RMSNormalization is standard from opset 23.)
Exactness: the same formula; differs by rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit.lower.patch import Patch, nodes_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.types import Target

FIXES = frozenset({"op:SimplifiedLayerNormalization"})


def apply(model: ir.Model, _: Target) -> ir.Model:
    """Decompose every node; the norm is over the last axis."""
    for node in nodes_of(model, "SimplifiedLayerNormalization"):
        patch = Patch(model, node)
        x, weight = patch.input(0), patch.input(1)
        epsilon = node.attributes["epsilon"].as_float()
        square = patch.op("Pow", [x, patch.constant("two", 2.0, np.float32)], "square")
        mean = patch.op("ReduceMean", [square, patch.constant("axis.last", [-1])], "mean", keepdims=1)
        shifted = patch.op("Add", [mean, patch.constant(f"epsilon.{epsilon:g}", epsilon, np.float32)], "shifted")
        root = patch.op("Sqrt", [shifted], "root")
        patch.replace(patch.op("Mul", [patch.op("Div", [x, root], "normed"), weight], "scaled"))
    return model
