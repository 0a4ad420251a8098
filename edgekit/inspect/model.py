"""What a checkpoint or a bundle is: parameters, true bits per weight, precision of every tensor, size by part."""

from __future__ import annotations

import os
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.estimate.sizes import bundle_parts, tensor_parts
from edgekit.types import Inspection, TensorEntry, silent

if TYPE_CHECKING:
    from edgekit.types import Bundle, Checkpoint, Progress

_MANIFEST = "edgekit.json"


def inspect_model(
    path_or_model: str | Path,
    *,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress = silent,
) -> Inspection:
    """Inspect a bundle (a directory with edgekit.json) or a checkpoint (whatever open_model accepts).

    Nothing is computed from the weights: a checkpoint's tensors are listed as stored, a bundle's as in its manifest.
    The files of a bundle are not hashed; ``verify`` does that.

    Raises:
        BundleError: the manifest is damaged or newer than this edgekit.
        SourceError: the checkpoint's format is not supported.
    """
    if os.path.lexists(Path(path_or_model) / _MANIFEST):
        from edgekit.bundle import open_bundle, signed_by

        bundle = open_bundle(Path(path_or_model), check=False)
        return replace(inspect_bundle(bundle), signed_by=signed_by(bundle))
    from edgekit.source import open_model

    checkpoint = open_model(str(path_or_model), revision=revision, offline=offline, data_only=True, progress=progress)
    return inspect_checkpoint(checkpoint)


def inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    """Inspect an open checkpoint."""
    weights = checkpoint.weights
    tensors = tuple(
        TensorEntry(name, weights.shape(name), None, weights.stored(name), weights.nbytes(name))
        for name in weights.names()
    )
    parameters = sum(prod(t.shape) for t in tensors)
    total = sum(t.bytes for t in tensors)
    return Inspection(
        path=checkpoint.provenance.location or checkpoint.provenance.id,
        kind="checkpoint",
        spec=checkpoint.spec,
        provenance=checkpoint.provenance,
        parameters=parameters,
        bytes=total,
        bits_per_weight=8 * total / parameters,
        tensors=tensors,
        parts=tensor_parts(tensors),
        left_aside=checkpoint.left_aside,
    )


def inspect_bundle(bundle: Bundle) -> Inspection:
    """Inspect an open bundle by its manifest."""
    manifest = bundle.manifest
    return Inspection(
        path=str(bundle.path),
        kind="bundle",
        spec=manifest.spec,
        provenance=manifest.provenance,
        parameters=manifest.parameters,
        bytes=manifest.bytes,
        bits_per_weight=manifest.bits_per_weight,
        tensors=manifest.tensors,
        parts=bundle_parts(manifest),
        files=manifest.files,
        tunings=manifest.tunings,
        arm=manifest.arm,
        npus=manifest.npus,
        calibration=manifest.calibration,
    )
