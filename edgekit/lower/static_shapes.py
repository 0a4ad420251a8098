"""Symptom: "dynamic shape is not supported": an NPU compiles for fixed shapes.

Cure: batch 1, and the numbers of tokens and cache slots from the target.
Exactness: nothing is computed differently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from edgekit.errors import LowerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekit.types import Target

FIXES = frozenset({"shapes:dynamic"})


def apply(model: ir.Model, target: Target) -> ir.Model:
    """Replace symbolic dimensions of inputs and outputs by numbers."""
    if target.window is None:
        raise LowerError(
            f"target {target.name}: a static graph needs a number of tokens",
            "lower it for target.compiled(scheme, window)",
        )
    tokens, past = target.window.tokens, target.window.past
    sizes = {
        "batch_size": 1,
        "sequence_length": tokens,
        "past_sequence_length": past,
        "total_sequence_length": past + tokens,
        "slots": past + tokens,
    }
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([d if isinstance(d, int) else sizes.get(str(d.value), d) for d in value.shape])
    return model


def remains(model: ir.Model, _: Target) -> Iterator[str]:
    """Inputs and outputs with a dimension that is not a number."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None and not all(isinstance(size, int) for size in value.shape):
            yield str(value.name)
