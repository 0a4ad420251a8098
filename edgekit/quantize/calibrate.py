"""Linear weights put on their grids in the order of the graph, each for the inputs that it will see.

The float graph reads a calibration text, one matmul at a time. Before each, GPTQ (gptq.py) rounds its weight for the
inputs that have come so far, and from there on the graph computes with what was rounded: every layer makes up for the
error of those before it, and the first for that of the token table. The table and the head keep their data-free fit.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from math import sqrt
from threading import Lock
from typing import TYPE_CHECKING
from weakref import ref

import numpy as np

from edgekit.errors import QuantizeError
from edgekit.numerics.nibbles import pack_bits
from edgekit.quantize.evaluate import feeds_of_windows, pause_at_matmuls, single_blas
from edgekit.quantize.gptq import Curvature, curvature, fit_weighted, gram, round_columns
from edgekit.quantize.model import load_method
from edgekit.quantize.pack import Packed, unpack
from edgekit.quantize.tensor import cores, nearest_rows, pack_zeros, pad_columns
from edgekit.types.layout import Layout
from edgekit.types.tensor_names import EMBEDDING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import onnx_ir as ir
    from numpy.typing import NDArray

    from edgekit.quantize.kept import Kept
    from edgekit.types import Grid, GridPolicy, Progress, Weights

LAYERS = "model.layers."
"""What the names of the weights begin with that the walk rounds."""

BAND = 1 << 20
"""Weights that a core rounds at once, in whole rows; fixed, so that results do not depend on the number of cores."""


class Calibration:
    """Rounds weights as far as somebody has asked for: a build writes the first layers while the last are to come.

    Any number of threads may ask; the first one works, the others wait. To the walk it is the ``Weights`` of the model.
    """

    def __init__(
        self,
        model: ir.Model,
        weights: Weights,
        policy: GridPolicy,
        windows: NDArray[np.int64],
        *,
        method: str,
        kept: Kept,
        progress: Progress,
    ) -> None:
        """Start a walk; nothing is computed yet.

        Args:
            model: the float graph.
            weights: its weights.
            policy: their grids.
            windows: the text, token ids [n, tokens].
            method: what the table is rounded with; ``positive`` keeps the scales of all weights above zero.
            kept: what a killed build has rounded.
            progress: called with the weights rounded.
        """
        self._weights, self._policy, self._kept, self._progress = weights, policy, kept, progress
        self._fit, self._positive = load_method(method), method == "positive"
        self.names, self.shape = weights.names, weights.shape
        self.stored, self.nbytes = weights.stored, weights.nbytes
        self._found: dict[str, Packed] = {}
        self._current: tuple[str, NDArray[np.float32]] = ("", np.empty(0, np.float32))
        self._input: tuple[Callable[[], object], Curvature | None] = (lambda: None, None)
        self._lock = Lock()
        self._steps = self._walk(model, windows)
        self._error: BaseException | None = None

    def rounds(self, name: str) -> bool:
        """Whether the walk rounds this weight."""
        return name.startswith(LAYERS)

    def take(self, name: str) -> Packed:
        """A weight on its grid, given away once."""
        with self._lock:
            while name not in self._found:
                if self._error is not None:
                    raise self._error
                try:
                    next(self._steps)
                except StopIteration:
                    break
                except BaseException as error:
                    # A generator that has raised looks as if it had ended: whoever asks next must not go on.
                    self._error = error
                    raise
            return self._found.pop(name)

    # --- weights, as the walk reads them --------------------------------------------------------

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) of a weight: as rounded, if it is the one at hand or the token table."""
        if name == self._current[0]:
            return self._current[1][start:stop]
        rows = self._weights.read(name, start, stop)
        grid = self._policy(name, self.shape(name)) if name == EMBEDDING else None
        return rows if grid is None else nearest_rows(rows, grid, self._fit)

    # --- the walk -------------------------------------------------------------------------------

    def _walk(self, model: ir.Model, windows: NDArray[np.int64]) -> Iterator[None]:
        linear = [n for n in self.names() if n.startswith(LAYERS) and self._policy(n, self.shape(n)) is not None]

        def observe(name: str, x: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
            grid = self._policy(name, self.shape(name))
            if grid is not None:
                self._progress("calibrating", len(done), len(linear), "weights")
                self._found[name] = self._recall(name, grid) or self._round(name, grid, x)
                done.append(name)
            return iter(())

        done: list[str] = []
        feeds = feeds_of_windows(model, self, windows)
        yield from pause_at_matmuls(model, self, feeds, observe, "logits")
        self._progress("calibrating", len(linear), len(linear), "weights")

    def _recall(self, name: str, grid: Grid) -> Packed | None:
        """What a killed build has rounded."""
        packed = self._kept.recall(name, Layout.of(self.shape(name), grid), grid)
        if packed is not None:
            self._current = name, unpack(packed, self.shape(name), grid)
        return packed

    def _round(self, name: str, grid: Grid, x: NDArray[np.float32]) -> Packed:
        curve = self._curve(name, x)
        layout = Layout.of(self.shape(name), grid)
        rounded = np.empty(self.shape(name), np.float32)
        self._current = "", rounded
        rows = max(1, BAND // layout.columns)

        def work(start: int) -> tuple[Packed, float, float]:
            weight = self._weights.read(name, start, min(start + rows, layout.rows))
            packed, ours = round_rows(weight, curve, grid, positive=self._positive)
            rounded[start : start + rows] = ours
            ours -= weight
            lost, total = (float(np.einsum("ij,ij", a, a, dtype=np.float64)) for a in (ours, weight))
            return packed, lost, total

        with single_blas(), ThreadPoolExecutor(cores()) as pool:
            bands, lost, total = zip(*pool.map(work, range(0, layout.rows, rows)), strict=True)
        self._current = name, rounded
        packed = _join(bands, sqrt(sum(lost) / max(sum(total), 1e-30)))
        self._kept.keep(name, packed)
        return packed

    def _curve(self, name: str, x: NDArray[np.float32]) -> Curvature:
        """Of an input; q, k and v read one, and so do gate and up."""
        last, curve = self._input
        if last() is not x or curve is None:
            del curve
            self._input = lambda: None, None
            try:
                curve = curvature(gram(x.reshape(-1, x.shape[-1])))
            except QuantizeError as refused:
                raise QuantizeError(f"{name}: {refused.message}", refused.hint) from refused
            self._input = ref(x), curve
        return curve


def round_rows(
    weight: NDArray[np.float32], curve: Curvature, grid: Grid, *, positive: bool
) -> tuple[Packed, NDArray[np.float32]]:
    """Rows [rows, columns] of a weight on a grid, and what they are worth there."""
    layout = Layout.of(weight.shape, grid)
    padded = pad_columns(weight, layout)
    importance = np.pad(curve.diagonal, (0, padded.shape[1] - weight.shape[1]))
    scale, zero = fit_weighted(padded, importance, layout, grid, positive=positive)
    size = padded.shape[1] if layout.per_channel else layout.block_size
    scales, zeros = (np.repeat(a, size, axis=1)[:, : weight.shape[1]] for a in (scale, zero))
    codes = round_columns(weight, scales, zeros, curve, grid)
    rounded = codes - zeros
    rounded *= scales
    return _pack(codes, scale, zero, layout, grid), rounded


def _pack(
    codes: NDArray[np.float32], scale: NDArray[np.float32], zero: NDArray[np.float32], layout: Layout, grid: Grid
) -> Packed:
    """Codes [rows, columns], scales and zero points [rows, blocks] or [rows, 1], as the operators read them."""
    padding = layout.blocks * layout.block_size - layout.columns
    if padding:
        codes = np.concatenate([codes, np.repeat(zero[:, -1:], padding, axis=1)], axis=1)
    whole = codes.astype(np.uint8).reshape(layout.rows, layout.blocks, layout.block_size)
    zeros = None if grid.symmetric else pack_zeros(zero, layout, grid)
    half = grid.scale == "float16"
    return Packed(pack_bits(whole, grid.bits), scale.astype(np.float16) if half else scale, zeros, 0.0)


def _join(bands: tuple[Packed, ...], error: float) -> Packed:
    zeros = [band.zeros for band in bands if band.zeros is not None]
    return Packed(
        np.concatenate([band.codes for band in bands]),
        np.concatenate([band.scales for band in bands]),
        np.concatenate(zeros) if zeros else None,
        error,
    )
