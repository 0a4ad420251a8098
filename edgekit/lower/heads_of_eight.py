"""Symptom: "head_size must be a multiple of 8", from GroupQueryAttention when the session runs.

Cure: none that keeps the cache's shape, so the build stops and suggests another target.
Exactness: nothing is rewritten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.errors import LowerError
from edgekit.lower.patch import fixed_size, nodes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

    from edgekit.types import Target

FIXES = frozenset({"GroupQueryAttention:heads-of-eight"})


def apply(model: ir.Model, target: Target) -> ir.Model:
    """Reject a model whose head size the operator does not support."""
    for node in nodes_of(model, "GroupQueryAttention"):
        size = fixed_size(node.inputs[3], 3)
        if size % 8:
            raise LowerError(
                f"head_dim is {size}, but GroupQueryAttention of target '{target.name}' needs a multiple of 8",
                "build with `target=portable`",
            )
    return model


def remains(model: ir.Model, _: Target) -> Iterator[str]:
    """Attention with an unsupported head size."""
    return (str(n.name) for n in nodes_of(model, "GroupQueryAttention") if fixed_size(n.inputs[3], 3) % 8)
