"""GPTQ: round one input column at a time and let the columns still to come make up for its error (arXiv 2210.17323).

With X [tokens, K] the inputs of a linear layer on calibration text, the error that counts is not ||W - Q||^2 but
||X (W - Q)^T||^2 = tr((W - Q) H (W - Q)^T), H = X^T X. Columns are taken in the order of their weight in H (act-order);
scales and zero points are searched first, under the diagonal of H, and stay (static groups), so any grid and any layout
can be had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import QuantizeError
from edgekit.quantize.grid import levels, middle, storable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from edgekit.types import Grid
    from edgekit.types.layout import Layout

DAMPING = 0.01
"""Of H's mean diagonal, added to it: the paper's."""

PANEL = 64
"""Columns rounded before their errors are spread over all the later ones in one matmul."""

LEAF = 128
"""Size from which down a triangle is inverted in one call."""

BAND = 1024
"""Rows of a product that is computed in place."""

SPANS = {2: (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4), 4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7), 8: (1.0,)}
"""Fractions of the full span that are tried."""

TOKEN_CAP = 10.0
"""A token whose input has more than this times the median energy counts as if it had this much: a few first tokens
would outweigh all others."""


@dataclass(frozen=True)
class Curvature:
    """H of one linear layer's input, ready for use.

    ``diagonal`` [K]: of H, before damping. ``order`` [K]: columns, the heaviest first. ``factor`` [K,K] float32: upper
    triangular U with U^T U = inv(H + damping), rows and columns in that order.
    """

    diagonal: NDArray[np.float32]
    order: NDArray[np.intp]
    factor: NDArray[np.float32]


def gram(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """H [K,K] of inputs x [tokens, K]; loud tokens are capped (see TOKEN_CAP). ``x`` is changed and put back."""
    energy = np.einsum("ij,ij->i", x, x)
    loudest = TOKEN_CAP * np.median(energy)
    loud = np.flatnonzero(energy > loudest)
    kept = x[loud]
    x[loud] *= np.sqrt(loudest / energy[loud])[:, None]
    h: NDArray[np.float32] = x.T @ x
    x[loud] = kept
    return h


def curvature(h: NDArray[np.float32], damping: float = DAMPING) -> Curvature:
    """Factor H in one float64 matrix of its size, whose memory the result then has. H is freed if nobody else holds it.

    Raises:
        QuantizeError: H is not finite: the model overflows on the calibration text.
    """
    diagonal = h.diagonal().copy()
    if not np.isfinite(diagonal).all():
        raise QuantizeError("the calibration text overflows the model", "calibrate on another text")
    order = np.argsort(-diagonal, kind="stable")
    columns = len(h)
    flat = np.empty(columns * columns, np.float64)
    factor = flat.reshape(columns, columns)
    for start in range(0, columns, LEAF):
        rows = order[start : start + LEAF]
        factor[start : start + LEAF] = h[rows][:, order]
    del h  # the memory of a wide layer is that of this function
    factor[np.diag_indices_from(factor)] += damping * diagonal.mean(dtype=np.float64) + 1e-12
    _factor_upper(factor)
    _invert_upper(factor)
    del factor
    return Curvature(diagonal, order, _narrow(flat).reshape(columns, columns))


def _narrow(flat: NDArray[np.float64]) -> NDArray[np.float32]:
    """The same numbers in float32, in the first half of their memory; the other half is given back."""
    count, narrow = len(flat), flat.view(np.float32)
    for start in range(0, count, LEAF * LEAF):
        part = flat[start : start + LEAF * LEAF].astype(np.float32)
        narrow[start : start + len(part)] = part
    del narrow, part
    flat.resize((count + 1) // 2, refcheck=False)
    return flat.view(np.float32)[:count]


def _factor_upper(h: NDArray[np.float64]) -> None:
    """Replace a positive definite H by the upper triangle R with R R^T = H, a band of columns at a time."""
    for stop in range(len(h), 0, -LEAF):
        start = max(0, stop - LEAF)
        # NumPy's factor is the lower one, of columns in the opposite order.
        corner = np.linalg.cholesky(h[start:stop, start:stop][::-1, ::-1])[::-1, ::-1]
        h[start:stop, start:stop] = corner
        h[start:stop, :start] = 0
        above = h[:start, start:stop]
        above[:] = above @ np.linalg.inv(corner).T
        for row in range(0, start, BAND):
            # Only the part above the diagonal is read again.
            h[:start][row : row + BAND, row:start] -= above[row : row + BAND] @ above[row:].T


def _invert_upper(u: NDArray[np.float64]) -> None:
    """Replace an upper triangle by its inverse, by halves: inv([[A, B], [0, D]]) = [[A', -A' B D'], [0, D']]."""
    n = len(u)
    if n <= LEAF:
        u[:] = np.triu(np.linalg.inv(u))
        return
    half = n // 2
    _invert_upper(u[:half, :half])
    _invert_upper(u[half:, half:])
    corner, left = u[:half, half:], u[:half, :half]
    for row in range(0, half, BAND):
        # A' is a triangle too: the rows of B above the band do not count, and are the next to be overwritten.
        corner[row : row + BAND] = -(left[row : row + BAND, row:] @ corner[row:]) @ u[half:, half:]


def fit_weighted(
    w: NDArray[np.float32], importance: NDArray[np.float32], layout: Layout, grid: Grid, *, positive: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scales and zero points [rows, blocks] (or [rows, 1] per channel) with the least squared error under weights.

    For the codes that a span gives, scale* = sum(h x d) / sum(h d d), d = code - zero; see search.py for h = 1.

    Args:
        w: rows [rows, columns], padded to whole blocks.
        importance: h [columns], padded likewise.
        layout: how rows are cut.
        grid: the grid.
        positive: scales stay above zero, as an NPU's compiler wants them on a symmetric grid.
    """
    size = w.shape[1] if layout.per_channel else layout.block_size
    x = w.reshape(len(w), -1, size)
    h = (importance / max(float(importance.mean()), 1e-30) + np.float32(1e-3)).reshape(1, -1, size)
    best: list[NDArray[np.float32]] = []
    for start, zero in _starts(x, grid, positive):
        d = np.rint(x / start[..., None] + zero[..., None])
        np.clip(d, 0, levels(grid), out=d)
        d -= zero[..., None]
        hd = h * d
        along, length = np.einsum("ijk,ijk->ij", hd, x), np.einsum("ijk,ijk->ij", hd, d)
        scale = np.where(length > 0, storable(along / np.maximum(length, np.float32(1e-30)), grid), start)
        error = scale * (scale * length - 2 * along)
        found = [error, scale, zero]
        if best:
            better = error < best[0]
            found = [np.where(better, new, old) for new, old in zip(found, best, strict=True)]
        best = found
    return best[1], best[2]


def _starts(
    x: NDArray[np.float32], grid: Grid, positive: bool
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    low, high = np.minimum(x.min(axis=-1), 0), np.maximum(x.max(axis=-1), 0)
    for span in SPANS[grid.bits]:
        part = np.float32(span)
        if grid.symmetric:
            if positive:
                scale = storable(np.maximum(-low, high) * (part / (middle(grid) - 1)), grid)
            else:
                scale = storable(np.where(-low > high, low, high) * (part / -middle(grid)), grid)
            yield scale, np.full_like(scale, middle(grid))
        else:
            scale = storable((high - low) * (part / levels(grid)), grid)
            for shift in (-0.5, 0.5) if grid.bits < 8 else (0.0,):
                zero = np.rint(-low * part / scale + np.float32(shift))
                yield scale, np.clip(zero, 0, levels(grid)).astype(np.float32)


def round_columns(
    w: NDArray[np.float32],
    scale: NDArray[np.float32],
    zero: NDArray[np.float32],
    curve: Curvature,
    grid: Grid,
) -> NDArray[np.float32]:
    """Codes [rows, K] as float32 whole numbers.

    Args:
        w: rows [rows, K].
        scale: of every weight, [rows, K] or what broadcasts to it.
        zero: likewise.
        curve: of the layer's input.
        grid: the grid.
    """
    order, u, top = curve.order, curve.factor, levels(grid)
    columns = len(order)
    left = np.ascontiguousarray(w.T[order])
    scales, zeros = (np.ascontiguousarray(np.broadcast_to(a, w.shape).T[order]) for a in (scale, zero))
    inverse = np.float32(1) / scales
    codes = np.empty_like(left)
    for start in range(0, columns, PANEL):
        stop = min(start + PANEL, columns)
        errors = np.empty((stop - start, left.shape[1]), np.float32)
        for j in range(start, stop):
            code = codes[j]
            np.multiply(left[j], inverse[j], out=code)
            code += zeros[j]
            np.rint(code, out=code)
            np.clip(code, 0, top, out=code)
            error = errors[j - start]
            np.subtract(code, zeros[j], out=error)
            error *= scales[j]
            np.subtract(left[j], error, out=error)
            error /= u[j, j]
            if j + 1 < stop:
                left[j + 1 : stop] -= u[j, j + 1 : stop, None] * error
        if stop < columns:
            left[stop:] -= u[start:stop, stop:].T @ errors
    out = np.empty_like(codes)
    out[order] = codes
    return np.ascontiguousarray(out.T)
