"""Symptom: "initializers with external data location are not currently supported", and the node runs on the CPU.

This is NNAPI's provider; CoreML's failed with an error up to onnxruntime 1.24 (microsoft/onnxruntime#28005).
Cure: store every weight in the graph's own file, which limits it to 2 GiB.
Exactness: nothing is computed differently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.types import INSIDE

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

    from edgekit.types import Target

FIXES = frozenset({"weights:external"})


def apply(model: ir.Model, _: Target) -> ir.Model:
    """Mark every initializer for the writer."""
    for value in model.graph.initializers.values():
        value.metadata_props[INSIDE] = "1"
    return model


def remains(model: ir.Model, _: Target) -> Iterator[str]:
    """Weights that would be written to the data file."""
    return (str(v.name) for v in model.graph.initializers.values() if INSIDE not in v.metadata_props)
