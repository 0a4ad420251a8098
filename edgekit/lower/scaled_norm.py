"""Symptom: in half precision the squares in a norm overflow, since the residual stream reaches 9000.

Cure: divide each token by its largest element first, and epsilon by its square:
(x/m) / sqrt(mean((x/m)**2) + (sqrt(epsilon)/m)**2) * weight, with m = max(|x|, 2**-10).
Exactness: the same value for any m; differs by rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit.lower.patch import Patch, nodes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

    from edgekit.types import Target

FIXES = frozenset({"norm:overflow"})
SMALLEST = 2.0**-10
"""The smallest divisor: epsilon / SMALLEST**2 stays far below half precision's largest number."""


def apply(model: ir.Model, _: Target) -> ir.Model:
    """Decompose every SimplifiedLayerNormalization; the norm is over the last axis."""
    for node in nodes_of(model, "SimplifiedLayerNormalization"):
        patch = Patch(model, node)
        x, weight = patch.input(0), patch.input(1)
        epsilon = node.attributes["epsilon"].as_float()
        axis = patch.constant("axis.last", [-1])
        negated = patch.op("Mul", [x, patch.constant("minus.one", -1.0, np.float32)], "negated")
        size = patch.op("Max", [x, negated], "size")
        largest = patch.op("ReduceMax", [size, axis], "largest", keepdims=1)
        largest = patch.op("Max", [largest, patch.constant("smallest", SMALLEST, np.float32)], "bounded")
        unit = patch.op("Div", [x, largest], "unit")
        mean = patch.op("ReduceMean", [patch.op("Mul", [unit, unit], "square"), axis], "mean", keepdims=1)
        root = patch.constant(f"root.epsilon.{epsilon:g}", epsilon**0.5, np.float32)
        shift = patch.op("Div", [root, largest], "shift")
        shifted = patch.op("Add", [mean, patch.op("Mul", [shift, shift], "shift.squared")], "shifted")
        normed = patch.op("Div", [unit, patch.op("Sqrt", [shifted], "root")], "normed")
        patch.replace(patch.op("Mul", [normed, weight], "scaled"))
    return model


def remains(model: ir.Model, _: Target) -> Iterator[str]:
    """Norms that square their input unscaled."""
    return (str(node.name) for node in nodes_of(model, "SimplifiedLayerNormalization"))
