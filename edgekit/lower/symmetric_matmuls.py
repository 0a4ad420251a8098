"""Symptom: an NPU's MatMulNBits does not support zero points, or computes them on another unit.

Cure: none that keeps the weights, so the build stops and suggests another grid.
Exactness: nothing is rewritten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.errors import LowerError
from edgekit.lower.patch import Patch, nodes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

    from edgekit.types import Target

FIXES = frozenset({"MatMulNBits:zero-points"})


def apply(model: ir.Model, target: Target) -> ir.Model:
    """Reject matmuls on a grid with zero points."""
    for node in nodes_of(model, "MatMulNBits"):
        if Patch(model, node).input(3) is not None:
            raise LowerError(
                f"{node.name}: its grid has zero points, which {target.title} does not support",
                "set symmetric = true in every grid of the recipe, or omit `recipe`",
            )
    return model


def remains(model: ir.Model, _: Target) -> Iterator[str]:
    """Matmuls with zero points."""
    return (str(n.name) for n in nodes_of(model, "MatMulNBits") if Patch(model, n).input(3) is not None)
