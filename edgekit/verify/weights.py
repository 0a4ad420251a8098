"""Compare weights read back from a shipped graph, in any of the dialects' layouts, with the source's."""

from __future__ import annotations

from math import prod, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.quantize import Packed, unpack
from edgekit.types.layout import Layout
from edgekit.types.tensor_names import EMBEDDING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx_ir as ir
    from numpy.typing import NDArray

    from edgekit.types import Grid, TensorEntry, Weights

    Rows = Callable[[int, int], NDArray[np.float32]]

_BAND = 1 << 22
"""Most weights compared at once, to bound the memory of large tables."""


def expected_error(entry: TensorEntry) -> float:
    """The allowed weight_error: as recorded for a grid, rounding for float16 (half a unit of 11 bits), otherwise 0."""
    if entry.error is not None:
        return entry.error
    return 2.0**-12 if entry.stored == "float16" else 0.0


def weight_error(stored: Mapping[str, ir.TensorProtocol], entry: TensorEntry, weights: Weights) -> float | None:
    """||W - stored|| / ||W|| of one weight, computed in bands of rows.

    Args:
        stored: the graph's initializers.
        entry: the weight in the manifest.
        weights: the source's weights.

    Returns:
        The error, or None if the graph does not hold the weight.
    """
    read = _find_rows(stored, entry)
    if read is None:
        return None
    lost = total = 0.0
    rows = entry.shape[0]
    step = max(1, _BAND * rows // prod(entry.shape))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        wanted = weights.read(entry.name, start, stop).astype(np.float64)
        lost += float(((read(start, stop) - wanted) ** 2).sum())
        total += float((wanted**2).sum())
    return sqrt(lost / total) if total else sqrt(lost)


def _find_rows(stored: Mapping[str, ir.TensorProtocol], entry: TensorEntry) -> Rows | None:
    """Return a function from rows [start, stop) to their stored weights in float32."""

    def find(*kinds: str) -> NDArray[Any] | None:
        return next((stored[entry.name + k].numpy() for k in kinds if entry.name + k in stored), None)

    if entry.grid is None:
        return _float_rows(find(""), entry)
    codes, scales, zeros = find(".codes", ".table"), find(".scales"), find(".zeros")
    if codes is not None and scales is not None:
        return _packed_rows(codes, scales, zeros, entry.shape, entry.grid)
    codes, scales, zeros = find(".codes.columns", ".table.columns"), find(".scales.columns"), find(".zeros.columns")
    return None if codes is None or scales is None else _column_rows(codes, scales, zeros)


def _float_rows(whole: NDArray[Any] | None, entry: TensorEntry) -> Rows | None:
    """Rows of float weights: matmuls store them as [inputs, outputs], tables and vectors as in the source."""
    if whole is None or whole.shape not in (entry.shape, entry.shape[::-1]):
        return None
    as_is = whole.ndim == 1 or entry.name == EMBEDDING or whole.shape != entry.shape[::-1]
    rows = whole if as_is else whole.T
    return lambda start, stop: rows[start:stop].astype(np.float32)


def _packed_rows(
    codes: NDArray[Any], scales: NDArray[Any], zeros: NDArray[Any] | None, shape: tuple[int, ...], grid: Grid
) -> Rows:
    """Rows in the layout of MatMulNBits, or of GatherBlockQuantized, whose codes are flat."""
    blocks = codes.reshape(shape[0], Layout.of(shape, grid).blocks, -1)

    def read(start: int, stop: int) -> NDArray[np.float32]:
        some = slice(start, stop)
        packed = Packed(blocks[some], scales[some], None if zeros is None else zeros[some], 0.0)
        return unpack(packed, (stop - start, shape[1]), grid)

    return read


def _column_rows(codes: NDArray[Any], scales: NDArray[Any], zeros: NDArray[Any] | None) -> Rows:
    """Rows in DequantizeLinear's layout: codes [columns, rows], scales and zeros [blocks, rows], or [rows] for one."""
    scale = np.atleast_2d(scales)
    zero = np.zeros_like(scale) if zeros is None else np.atleast_2d(zeros)
    columns = len(codes)
    block = -(-columns // len(scale))

    def read(start: int, stop: int) -> NDArray[np.float32]:
        q, s, z = (a[:, start:stop].astype(np.float32) for a in (codes, scale, zero))
        wide = [a.repeat(block, axis=0)[:columns] for a in (s, z)]
        return np.asarray(((q - wide[1]) * wide[0]).T)

    return read
