"""Cut a model to a shape: first whole layers, then heads and channels of those that are left. Needs no torch.

Layers go by what they cost (depth.py), channels and heads by what they carry (width.py), both observed on text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.learn.depth import DepthChoice, choose_layers
from edgekit.learn.layers import Layers
from edgekit.learn.width import narrow
from edgekit.source import CutWeights, keep_layers
from edgekit.types import Progress, silent

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgekit.learn.shapes import Shape
    from edgekit.types import Checkpoint, ModelSpec, Weights

DEPTH_WINDOWS = 2
"""Windows on which layers are weighed, the first of the text; as many judge the choices."""


@dataclass(frozen=True)
class Pruned:
    """A smaller model: its spec and weights, and how its ``depth.kept`` layers were chosen."""

    spec: ModelSpec
    weights: Weights
    depth: DepthChoice


def prune(
    teacher: Checkpoint,
    shape: Shape,
    windows: NDArray[np.int64],
    held_out: NDArray[np.int64],
    *,
    folder: Path | None = None,
    progress: Progress = silent,
) -> Pruned:
    """Cut a model to a shape.

    Args:
        teacher: the model.
        shape: no larger than the teacher's, see shapes.py.
        windows: text [n,S] to observe the model on.
        held_out: other text [m,S], by which the best choice of layers is taken.
        folder: see ``narrow``.
        progress: called with the layers done.

    Raises:
        QuantizeError: an operator that graph/ never emits.
    """
    whole = Layers(teacher.spec, teacher.weights)
    depth = choose_layers(whole, shape.layers, windows[:DEPTH_WINDOWS], held_out[:DEPTH_WINDOWS], progress=progress)
    model = Layers(keep_layers(teacher.spec, depth.kept), CutWeights(teacher.weights, depth.kept))
    if (shape.ffn, shape.kv_heads) != (teacher.spec.intermediate_size, teacher.spec.kv_heads):
        model = narrow(model, shape.ffn, shape.kv_heads, windows, folder=folder, progress=progress)
    return Pruned(model.spec, model.weights, depth)
