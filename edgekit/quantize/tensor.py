"""One weight, quantized when its bytes are asked for: rows are spread over the cores, nothing is held afterwards."""

from __future__ import annotations

import os
from math import ceil, sqrt
from threading import Lock
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from edgekit.errors import QuantizeError
from edgekit.quantize.grid import decode, encode
from edgekit.quantize.pack import Layout, Packed, pack_bits

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from edgekit.types import Grid, Weights

Fit: TypeAlias = "Callable[[NDArray[np.float32], Grid], tuple[NDArray[np.float32], NDArray[np.float32]]]"
Part = Literal["codes", "scales", "zeros"]

CHUNK = 1 << 19
"""Weights in one piece of work. Threads pass the interpreter on after every NumPy call, and to wake one takes as long
as a hundred thousand weights: pieces are long, although they leave the nearest cache."""

BAND = 1 << 23
"""Weights read at once: bounds the memory of a large table, whatever its height."""


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quantize_weight(weights: Weights, name: str, grid: Grid, fit: Fit, pool: Executor) -> Packed:
    """Read a weight band by band and put it on the grid.

    Args:
        weights: where ``name`` [rows, columns] is read from.
        name: the weight.
        grid: its grid.
        fit: a method's ``fit``.
        pool: threads for pieces of a band.

    Raises:
        QuantizeError: a scale that the grid cannot store, naming the weight.
    """
    layout = Layout.of(weights.shape(name), grid)
    rows = layout.rows
    scale_type = np.float16 if grid.scale == "float16" else np.float32
    codes = np.empty((rows, layout.blocks, layout.code_bytes(grid)), np.uint8)
    scales = np.empty((rows, layout.scale_columns), scale_type)
    zeros = None if grid.symmetric else np.empty((rows, layout.zero_bytes(grid)), np.uint8)

    def work(band: NDArray[np.float32], at: int, start: int, stop: int) -> tuple[float, float]:
        piece = slice(at + start, at + stop)
        c, s, z, lost, total = _quantize_rows(band[start:stop], layout, grid, fit)
        codes[piece], scales[piece] = c, s
        if zeros is not None:
            zeros[piece] = z
        return lost, total

    band_rows = max(1, BAND // layout.columns)
    lost = total = 0.0
    try:
        for at in range(0, rows, band_rows):
            band = weights.read(name, at, min(rows, at + band_rows))
            # Equal pieces, one for each core at least: the last one must not be waited for alone.
            step = ceil(len(band) / max(cores(), ceil(band.size / CHUNK)))
            pieces = [(band, at, i, min(len(band), i + step)) for i in range(0, len(band), step)]
            for a, b in pool.map(lambda piece: work(*piece), pieces):
                lost, total = lost + a, total + b
    except QuantizeError as error:
        raise QuantizeError(f"{name}: {error.message}", error.hint) from error
    return Packed(codes, scales, zeros, sqrt(lost / total) if total else 0.0)


def _quantize_rows(
    w: NDArray[np.float32], layout: Layout, grid: Grid, fit: Fit
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8], float, float]:
    """Codes, scales, packed zero points of some rows, squared error and squared norm."""
    rows, padding = len(w), layout.blocks * layout.block - layout.columns
    if padding:
        w = np.pad(w, ((0, 0), (0, padding)))
    shape = (rows, layout.blocks, layout.block)
    size = w.shape[1] if layout.per_channel else layout.block
    x = np.ascontiguousarray(w.reshape(-1, size).T)
    scale, zero = fit(x, grid)
    codes = encode(x, scale, zero, grid)
    packed = pack_bits(np.ascontiguousarray(codes.astype(np.uint8).T).reshape(shape), grid.bits)
    difference = decode(codes, scale, zero, out=codes)
    difference -= x
    lost, total = float(np.vdot(difference, difference)), float(np.vdot(x, x))
    zeros = zero.astype(np.uint8).reshape(rows, -1)
    if layout.per_channel and grid.bits < 8:
        zeros = zeros | zeros << np.uint8(grid.bits)
    else:
        zeros = pack_bits(zeros, grid.bits)
    return packed, scale.reshape(rows, -1), zeros, lost, total


class LazyWeight:
    """Quantizes a weight the first time one of its parts is taken, and forgets each part as it is taken."""

    def __init__(self, compute: Callable[[], Packed]) -> None:
        self._compute = compute
        self._parts: dict[str, NDArray[np.generic]] = {}
        self._lock = Lock()
        self.error: float | None = None

    def take(self, part: Part) -> NDArray[np.generic]:
        """One part of the packed weight. Taking a part twice quantizes the weight twice."""
        with self._lock:
            if part not in self._parts:
                packed = self._compute()
                self.error = packed.error
                self._parts = {"codes": packed.codes, "scales": packed.scales}
                if packed.zeros is not None:
                    self._parts["zeros"] = packed.zeros
            return self._parts.pop(part)
