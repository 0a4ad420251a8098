"""The arithmetic of a Grid, shared by all methods, the packer and the reader.

Blocks are columns here: arrays are [block, n] float32, so that NumPy's inner loop runs along n, however short a block
is. A scale is always representable in its storage type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import QuantizeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.types import Grid


SMALLEST_NORMAL, LARGEST_ROUNDED = np.float32(2**-14), np.float32(65504)
"""The range in which float16 is float32 with 13 fewer bits."""


def levels(grid: Grid) -> int:
    """The largest code, 2**bits - 1."""
    return int(2**grid.bits - 1)


def middle(grid: Grid) -> np.float32:
    """The zero point of a symmetric grid, 2**(bits - 1)."""
    return np.float32(2 ** (grid.bits - 1))


def storable(scale: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
    """Round scales to the grid's storage type; those that round to 0 become 1, which makes their blocks zero.

    Raises:
        QuantizeError: a scale is too large for float16.
    """
    if grid.scale == "float16":
        scale = _half(scale)
    if not np.isfinite(scale).all():
        raise unstorable()
    return scale if scale.all() else np.where(scale == 0, np.float32(1), scale)


def unstorable() -> QuantizeError:
    """The error for a scale that float16 cannot hold."""
    return QuantizeError("a block's scale is too large for float16", 'put scale = "float32" into the recipe\'s grid')


def _half(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round scales to float16. NumPy's own conversion would take as long as the search for the scales."""
    size = np.abs(scale)
    if size.size and size.min() >= SMALLEST_NORMAL and size.max() < LARGEST_ROUNDED:
        # Round the 13 bits that float16 lacks to nearest, ties to even.
        bits = scale.view(np.uint32)
        rounded = bits >> 13
        rounded &= 1
        rounded += 0xFFF
        rounded += bits
        rounded &= 0xFFFFE000
        return rounded.view(np.float32)
    with np.errstate(over="ignore"):
        return scale.astype(np.float16).astype(np.float32)


def encode(
    x: NDArray[np.float32],
    scale: NDArray[np.float32],
    zero: NDArray[np.float32],
    grid: Grid,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """The nearest codes, 0 .. 2**bits - 1, as float32 [block, n].

    Args:
        x: weights [block, n].
        scale: storable scales [n].
        zero: zero points [n], integers.
        grid: the grid.
        out: the output array, by default a new one. Allocating costs more than the arithmetic.
    """
    codes: NDArray[np.float32] = np.multiply(x, np.float32(1) / scale, out=out)
    codes += zero
    np.rint(codes, out=codes)
    np.clip(codes, 0, levels(grid), out=codes)
    return codes


def decode(
    codes: NDArray[np.float32],
    scale: NDArray[np.float32],
    zero: NDArray[np.float32],
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Dequantize codes [block, n]: ``(code - zero) * scale``, as ONNX Runtime does."""
    weights: NDArray[np.float32] = np.subtract(codes, zero, out=out)
    weights *= scale
    return weights


def spans(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The minimum and maximum of each block, including zero (which must stay exact): two arrays [n]."""
    return np.minimum(x.min(axis=0), 0), np.maximum(x.max(axis=0), 0)
