"""Round to nearest: each block's scale spans its largest weights. No search, no data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit.quantize.grid import levels, middle, spans, storable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.types import Grid


def fit(x: NDArray[np.float32], grid: Grid) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scales and zero points [n] for the blocks [block, n].

    A symmetric grid has one more code below zero than above, so the scale is signed: the extreme weight, whatever its
    sign, gets exactly code 0 (as in onnxruntime-genai's builder).
    """
    low, high = spans(x)
    if grid.symmetric:
        extreme = np.where(-low > high, low, high).astype(np.float32)
        scale = storable(extreme / -middle(grid), grid)
        return scale, np.full_like(scale, middle(grid))
    scale = storable((high - low) / np.float32(levels(grid)), grid)
    return scale, np.clip(np.rint(-low / scale), 0, levels(grid)).astype(np.float32)
