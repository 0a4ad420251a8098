"""Quantize one weight lazily, when its bytes are needed; its rows are distributed over the cores."""

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
"""Packed codes [rows, blocks, n], and the scale, zero point, squared error and squared norm of each block."""

Quantizer: TypeAlias = "Callable[[NDArray[np.float32], Layout, Grid], Rows]"
Part = Literal["codes", "scales", "zeros"]

PIECE = 1 << 19
"""Weights per piece of work, a few arrays of 2 MB per core. Threads hand over the interpreter after every NumPy call,
and waking one costs as much as 100 000 weights, so pieces are not smaller."""

LARGE = 500_000_000
"""The number of weights in a model from which loading a compiled method pays off."""

LONG = 512
"""The block length from which blocks stay rows: NumPy's inner loop runs along them."""


def cores() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quantize_weight(weights: Weights, name: str, grid: Grid, fit: Fit, pool: Executor) -> Packed:
    """Read and quantize a weight in pieces.

    Args:
        weights: source of ``name`` [rows, columns].
        name: the weight.
        grid: its grid.
        fit: a method's ``fit``.
        pool: threads for the pieces; memory holds the result and one piece per thread.

    Raises:
        QuantizeError: the grid cannot store a scale; names the weight.
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

    # The pieces do not depend on the number of cores, so the sums below are reproducible.
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
    """Free one block of 31 MB, after which glibc keeps as much for later arrays. Has no effect with other C libraries.

    Fresh pages from the kernel cost more than the arithmetic on them.
    """
    np.empty(31 << 20, np.uint8)


def _is_worth_compiling(weights: Weights, layout: Layout) -> bool:
    if layout.per_channel or layout.block_size >= LONG:
        return False
    return sum(prod(weights.shape(name)) for name in weights.names()) >= LARGE


@cache
def _compiled(fit: Fit) -> Quantizer | None:
    """The compiled equivalent of ``fit``; None without numba, or if its results differ from NumPy's.

    On some processors NumPy uses fused multiply-add, so that the compiled sums differ.
    """
    method = fit.__module__.rpartition(".")[2]
    try:
        quantize_rows = import_module(f"edgekit.quantize.jit.{method}").quantize_rows
    except ImportError:
        return None
    w = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    for grid in (Grid(2, 32, False), Grid(4, 32, False), Grid(8, 32, True)):
        layout = Layout.of(w.shape, grid)
        ours, theirs = quantize_rows(w, layout, grid), _quantize_rows(w, layout, grid, fit)
        if not all(np.array_equal(ours[i], theirs[i]) for i in range(len(ours))):
            return None
    found: Quantizer = quantize_rows
    return found


def nearest_rows(w: NDArray[np.float32], grid: Grid, fit: Fit) -> NDArray[np.float32]:
    """What rows [rows, columns] are worth on a grid, as ``quantize_weight`` rounds them."""
    layout = Layout.of(w.shape, grid)
    padded = pad_columns(w, layout)
    x = padded.reshape(-1, padded.shape[1] if layout.per_channel else layout.block_size).T
    x = np.ascontiguousarray(x)
    scale, zero = fit(x, grid)
    return decode(encode(x, scale, zero, grid), scale, zero).T.reshape(padded.shape)[:, : w.shape[1]]


def pad_columns(w: NDArray[np.float32], layout: Layout) -> NDArray[np.float32]:
    """Rows filled up with zeros to whole blocks."""
    padding = layout.blocks * layout.block_size - layout.columns
    return np.pad(w, ((0, 0), (0, padding))) if padding else w


def _quantize_rows(w: NDArray[np.float32], layout: Layout, grid: Grid, fit: Fit) -> Rows:
    """Fit and encode padded rows with NumPy."""
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
        return zeros * np.uint8(255 // (2**grid.bits - 1))
    return pack_bits(zeros, grid.bits)


_NEAR = 1 << 13
"""Number of float32 weights in a first-level cache of 32 KB."""


def _columns(blocks: NDArray[np.float32]) -> NDArray[np.float32]:
    """The transposed blocks [block, n] in C order, copied in parts that fit the cache."""
    out = np.empty(blocks.shape, np.float32)
    step = max(64, _NEAR // len(blocks))
    for start in range(0, blocks.shape[1], step):
        out[:, start : start + step] = blocks[:, start : start + step]
    return out


class LazyWeight:
    """Quantizes a weight when the first of its parts is taken, and drops each part once taken."""

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
