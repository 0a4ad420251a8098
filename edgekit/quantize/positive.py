"""Like ``search``, but with positive scales, for symmetric grids on runtimes that ignore the sign.

QNN's per-channel and block encodings silently drop the sign of a scale. So the largest weight gets the code
2**(bits-1) - 1 whatever its sign, and code 0 is unused at the full span. Needs no data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import QuantizeError
from edgekit.quantize.grid import middle, storable
from edgekit.quantize.search import best_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from edgekit.types import Grid

SPANS = {2: (1.0, 0.8, 0.6), 4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.7), 8: (1.0, 0.95)}
"""Fractions of the full span to try: long blocks, such as per-channel ones, gain from clipping outliers."""


def fit(x: NDArray[np.float32], grid: Grid) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scales and zero points [n] for the blocks [block, n].

    Raises:
        QuantizeError: a grid with zero points.
    """
    if not grid.symmetric:
        raise QuantizeError(
            "method 'positive' needs symmetric grids", "set symmetric = true in the recipe, or another method"
        )
    scale, zero = best_of(x, grid, _starts(x, grid))
    return np.abs(scale), zero


def _starts(x: NDArray[np.float32], grid: Grid) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    largest = np.abs(x).max(axis=0)
    for span in SPANS[grid.bits]:
        scale = storable(largest * np.float32(span / (middle(grid) - 1)), grid)
        yield scale, np.full_like(scale, middle(grid))
