"""One weight, quantized when its bytes are asked for: rows are spread over the cores, nothing is held afterwards."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from math import ceil, prod, sqrt
from threading import Lock
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from edgekit.errors import QuantizeError
from edgekit.numerics.nibbles import pack_bits
from edgekit.quantize.grid import decode, encode
from edgekit.quantize.pack import Packed, pack_columns
from edgekit.types import Grid
from edgekit.types.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from edgekit.types import Weights

Fit: TypeAlias = "Callable[[NDArray[np.float32], Grid], tuple[NDArray[np.float32], NDArray[np.float32]]]"
Rows: TypeAlias = (
    "tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]"
)
"""Bytes of the codes [rows, blocks, n]; and of each block its scale, zero point, squared error and squared norm."""

Quantizer: TypeAlias = "Callable[[NDArray[np.float32], Layout, Grid], Rows]"
Part = Literal["codes", "scales", "zeros"]

PIECE = 1 << 19
"""Weights in one piece of work: what a core holds of them, in a few arrays of 2 MB. Threads pass the interpreter on
after every NumPy call, and to wake one takes as long as a hundred thousand weights, so pieces are no shorter."""

LARGE = 500_000_000
"""Weights of a model from which on it pays to load a compiled method."""

LONG = 512
"""Blocks from this length on are left as rows: NumPy's inner loop runs along them."""


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quantize_weight(weights: Weights, name: str, grid: Grid, fit: Fit, pool: Executor) -> Packed:
    """Read a weight piece by piece, each where it is worked on, and put it on the grid.

    Args:
        weights: where ``name`` [rows, columns] is read from.
        name: the weight.
        grid: its grid.
        fit: a method's ``fit``.
        pool: threads for the pieces; memory holds the result and one piece of each.

    Raises:
        QuantizeError: a scale that the grid cannot store, naming the weight.
    """
    layout = Layout.of(weights.shape(name), grid)
    rows = layout.rows
    scale_type = np.float16 if grid.scale == "float16" else np.float32
    codes = np.empty((rows, layout.blocks, layout.code_bytes(grid)), np.uint8)
    scales = np.empty((rows, layout.scale_columns), scale_type)
    zeros = None if grid.symmetric else np.empty((rows, layout.zero_bytes(grid)), np.uint8)

    put = _compiled(fit) if _is_worth_compiling(weights, layout) else None

    def work(start: int) -> tuple[float, float]:
        piece = slice(start, min(rows, start + step))
        w = pad_columns(weights.read(name, piece.start, piece.stop), layout)
        codes[piece], scale, zero, lost, total = put(w, layout, grid) if put else _quantize_rows(w, layout, grid, fit)
        scales[piece] = scale.reshape(-1, layout.scale_columns)
        if zeros is not None:
            zeros[piece] = pack_zeros(zero, layout, grid)
        return float(lost.sum(dtype=np.float64)), float(total.sum(dtype=np.float64))

    # The pieces do not depend on the cores: neither do the sums below, to the last bit.
    step = ceil(rows / ceil(rows * layout.columns / PIECE))
    _keep_memory()
    try:
        losses = list(pool.map(work, range(0, rows, step)))
    except QuantizeError as error:
        raise QuantizeError(f"{name}: {error.message}", error.hint) from error
    lost, total = (sum(column) for column in zip(*losses, strict=True))
    return Packed(codes, scales, zeros, sqrt(lost / total) if total else 0.0)


@cache
def _keep_memory() -> None:
    """Free one block of 31 MB: from then on glibc keeps as much for the next arrays. Elsewhere this does nothing.

    Fresh pages from the kernel cost more than the arithmetic on them.
    """
    np.empty(31 << 20, np.uint8)


def _is_worth_compiling(weights: Weights, layout: Layout) -> bool:
    if layout.per_channel or layout.block_size >= LONG:
        return False
    return sum(prod(weights.shape(name)) for name in weights.names()) >= LARGE


@cache
def _compiled(fit: Fit) -> Quantizer | None:
    """What quantizes rows as ``fit`` does, compiled; None without numba, or where its bytes are not NumPy's.

    Some processors' NumPy multiplies and adds in one rounding: there the compiled sums would be others.
    """
    method = fit.__module__.rpartition(".")[2]
    try:
        quantize_rows = import_module(f"edgekit.quantize.jit.{method}").quantize_rows
    except ImportError:
        return None
    w = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    for grid in (Grid(4, 32, False), Grid(8, 32, True)):
        layout = Layout.of(w.shape, grid)
        ours, theirs = quantize_rows(w, layout, grid), _quantize_rows(w, layout, grid, fit)
        if not all(np.array_equal(ours[i], theirs[i]) for i in range(len(ours))):
            return None
    found: Quantizer = quantize_rows
    return found


def pad_columns(w: NDArray[np.float32], layout: Layout) -> NDArray[np.float32]:
    """Rows filled up with zeros to whole blocks."""
    padding = layout.blocks * layout.block_size - layout.columns
    return np.pad(w, ((0, 0), (0, padding))) if padding else w


def _quantize_rows(w: NDArray[np.float32], layout: Layout, grid: Grid, fit: Fit) -> Rows:
    """Padded rows, fitted and encoded a piece at a time."""
    size = w.shape[1] if layout.per_channel else layout.block_size
    blocks = w.reshape(-1, size).T
    x = blocks if size >= LONG else _columns(blocks)
    scale, zero = fit(x, grid)
    codes = encode(x, scale, zero, grid, out=np.empty_like(x))
    packed = pack_columns(codes, grid.bits).reshape(len(w), layout.blocks, -1)
    difference = decode(codes, scale, zero, out=codes)
    difference -= x
    lost, total = (np.einsum("ij,ij->j", a, a) for a in (difference, x))
    return packed, scale, zero, lost, total


def pack_zeros(zero: NDArray[np.float32], layout: Layout, grid: Grid) -> NDArray[np.uint8]:
    """Zero points, one a block, as the operators read them: see ``Packed``."""
    zeros = zero.astype(np.uint8).reshape(-1, layout.scale_columns)
    if layout.per_channel and grid.bits < 8:
        return zeros | zeros << np.uint8(grid.bits)
    return pack_bits(zeros, grid.bits)


_NEAR = 1 << 13
"""Weights that lie in a first-level cache of 32 KB."""


def _columns(blocks: NDArray[np.float32]) -> NDArray[np.float32]:
    """The transposed blocks [block, n] in C order, a part at a time that stays in the cache."""
    out = np.empty(blocks.shape, np.float32)
    step = max(64, _NEAR // len(blocks))
    for start in range(0, blocks.shape[1], step):
        out[:, start : start + step] = blocks[:, start : start + step]
    return out


class LazyWeight:
    """Quantizes a weight the first time one of its parts is taken, and forgets each part as it is taken."""

    def __init__(self, compute: Callable[[], Packed], tell: Callable[[float], None] = lambda _: None) -> None:
        self._compute, self._tell = compute, tell
        self._parts: dict[str, NDArray[np.generic]] = {}
        self._lock = Lock()

    def take(self, part: Part) -> NDArray[np.generic]:
        """One part of the packed weight. Taking a part twice quantizes the weight twice."""
        with self._lock:
            if part not in self._parts:
                packed = self._compute()
                self._tell(packed.error)
                self._parts = {"codes": packed.codes, "scales": packed.scales}
                if packed.zeros is not None:
                    self._parts["zeros"] = packed.zeros
            return self._parts.pop(part)
