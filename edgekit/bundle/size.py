"""Predict the size of a bundle before anything is computed or written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.bundle.interop import GRAPH_NAMES, GraphFile, runtime_files

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from edgekit.types import ModelSpec, Precision, SideFile, Target


@dataclass(frozen=True)
class BundleSize:
    """Bytes of a bundle's files: the graph, its data file, and all others (0 if unknown)."""

    graph: int
    data: int
    beside: int


def predict_size(
    model: ir.Model, files: Sequence[SideFile], spec: ModelSpec, target: Target, precision: Precision
) -> BundleSize:
    """The size of the bundle that ``write_bundle`` would write; evaluates no tensor and writes nothing.

    Args:
        model: the lowered graph; changed in place and unusable afterwards.
        files: the checkpoint's side files; empty if unknown.
        spec: the decoder's numbers.
        target: the device.
        precision: of the weights.
    """
    from edgekit.bundle.external import predict_bytes  # loads onnx_ir

    name = GRAPH_NAMES[precision]
    graph, data = predict_bytes(model, Path(name))
    file = GraphFile.of(model, name, data > 0)
    beside = sum(len(f.data) for f in runtime_files(files, spec, target, file, precision)) if files else 0
    return BundleSize(graph, data, beside)
