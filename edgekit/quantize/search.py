"""Search each block's scale for the least squared weight error. Needs no data.

Tries a few spans from the full one inwards. For the codes of a span, the best scale and its error have a closed form:
with d = code - zero,

    scale* = sum(x d) / sum(d d),    error = sum(x x) - 2 scale sum(x d) + scale**2 sum(d d)

where sum(x x) is the same for all spans. This is the alternating least squares of k-quants (llama.cpp's make_qkx) with
integer zero points.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit.quantize.grid import encode, levels, middle, spans, storable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from edgekit.types import Grid

SPANS = {2: (1.0, 0.8, 0.6), 4: (1.0, 0.95), 8: (1.0,)}
"""Fractions of the full span to try. More of them, or neighbouring zero points, reduce the error at 4 bits by less than
3 %; at 8 bits a narrower span never helps, and at 2 bits three spans come within 1 % of thirteen."""


def fit(x: NDArray[np.float32], grid: Grid) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scales and zero points [n] for the blocks [block, n], never worse than round-to-nearest."""
    return best_of(x, grid, _starts(x, grid))


def best_of(
    x: NDArray[np.float32], grid: Grid, starts: Iterable[tuple[NDArray[np.float32], NDArray[np.float32]]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """For each block, the refined scale and zero point [n] of the start with the smallest error."""
    d = np.empty_like(x)
    best: tuple[NDArray[np.float32], ...] = ()
    for first, zero in starts:
        encode(x, first, zero, grid, out=d)
        d -= zero
        along, length = np.einsum("ij,ij->j", x, d), np.einsum("ij,ij->j", d, d)
        if length.all():
            scale = storable(along / length, grid)
        else:
            scale = np.where(length > 0, storable(along / np.maximum(length, np.float32(1e-30)), grid), first)
        error = scale * (scale * length - 2 * along)
        best = _better(best, (error, scale, zero)) if best else (error, scale, zero)
    return best[1], best[2]


def _better(
    old: tuple[NDArray[np.float32], ...], new: tuple[NDArray[np.float32], ...]
) -> tuple[NDArray[np.float32], ...]:
    """For each block, the choice with the smaller error (element 0). Bitwise, since np.where mispredicts branches."""
    mask = np.negative((new[0] < old[0]).view(np.int8), dtype=np.int32)
    return tuple((a ^ ((a ^ b) & mask)).view(np.float32) for a, b in zip(*_bits(old, new), strict=True))


def _bits(*choices: tuple[NDArray[np.float32], ...]) -> Iterator[tuple[NDArray[np.int32], ...]]:
    return (tuple(array.view(np.int32) for array in choice) for choice in choices)


def _starts(x: NDArray[np.float32], grid: Grid) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Yield scales and zero points to start from."""
    low, high = spans(x)
    for span in SPANS[grid.bits]:
        part = np.float32(span)
        if grid.symmetric:
            extreme = np.where(-low > high, low, high)
            scale = storable(extreme * (part / -middle(grid)), grid)
            yield scale, np.full_like(scale, middle(grid))
        else:
            scale = storable((high - low) * (part / levels(grid)), grid)
            yield scale, np.clip(np.rint(-low * part / scale), 0, levels(grid)).astype(np.float32)
