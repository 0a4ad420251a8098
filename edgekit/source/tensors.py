"""Lazy weights in files: where each tensor is, and how its bytes are decoded to float32.

Files are read, not memory-mapped: mapped pages count as resident memory, and a truncated file must be an
error, not a bus error. Each read opens its own file handle, so threads may read at once and nothing stays open.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd, prod
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import SourceError
from edgekit.strangers import open_plain, reading

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray


_PLAIN = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
INTEGERS = frozenset(("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"))
"""Integer types of safetensors: a table, a counter, or weights that are already quantized."""
UNREAD = (
    INTEGERS
    | {"C64", "F4", "F6_E2M3", "F6_E3M2"}
    | {f"F8_{kind}" for kind in ("E4M3", "E5M2", "E8M0", "E4M3FNUZ", "E5M2FNUZ")}
)
"""Types of safetensors that cannot be read as weights."""

_EXPONENTS = {"F16": np.uint16(0x7C00), "BF16": np.uint16(0x7F80)}
# Weights decoded at a time: small enough for the caches, and bounds what a decoder allocates.
_BATCH = 1 << 20


@dataclass(frozen=True)
class Extent:
    """The location of a tensor: ``nbytes`` at ``offset`` in ``file``, row-major, encoded as ``stored``.

    ``interleaved`` is the head size when llama.cpp's converter interleaved the two halves of each head's rows
    (its rope rotates neighbours), 0 when rows are in Hugging Face's order.
    """

    file: Path
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    stored: str
    interleaved: int = 0

    @property
    def columns(self) -> int:
        """Weights per row. A vector is one row, whatever its encoding."""
        return self.shape[-1]

    @property
    def row_bytes(self) -> int:
        """Bytes per row."""
        return row_bytes(self.stored, self.columns)

    def rows(self, start: int, stop: int) -> Extent:
        """The extent of rows [start, stop), used to split fused tensors."""
        return replace(
            self,
            offset=self.offset + start * self.row_bytes,
            nbytes=(stop - start) * self.row_bytes,
            shape=(stop - start, *self.shape[1:]),
        )


def row_bytes(stored: str, columns: int) -> int:
    """Bytes in a row of ``columns`` weights. Raises ValueError when a GGUF block does not divide the row."""
    if stored in _PLAIN:
        return columns * _PLAIN[stored]
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[stored]]
    if columns % block:
        raise ValueError(f"rows of {columns} weights are not a multiple of {stored}'s block of {block}")
    return int(columns // block * size)


class FileWeights:
    """Weights of a checkpoint stored in files, by canonical name in model order."""

    def __init__(
        self, extents: Mapping[str, Extent], files: tuple[Path, ...], left_aside: tuple[str, ...] = ()
    ) -> None:
        self._extents = dict(extents)
        self.files = files
        self.left_aside = left_aside

    def names(self) -> tuple[str, ...]:
        """All tensor names, in model order."""
        return tuple(self._extents)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self.extent(name).shape

    def stored(self, name: str) -> str:
        """The type in the checkpoint: ``F32``, ``BF16``, ``Q4_1`` ..."""
        return self.extent(name).stored

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor in the checkpoint."""
        return self.extent(name).nbytes

    def extent(self, name: str) -> Extent:
        """The location of a tensor. Raises SourceError for an unknown name."""
        if name not in self._extents:
            raise SourceError(f"the checkpoint has no tensor '{name}'", "use Hugging Face's LLaMA tensor names")
        return self._extents[name]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) of the first axis as a new float32 array.

        Raises SourceError when the file is truncated, or a value is NaN, infinite or (F64) too large for float32.
        """
        extent = self.extent(name)
        count = extent.shape[0]
        start, stop, _ = slice(start, stop).indices(count)
        stop = max(start, stop)
        # Interleaved rows are read as whole heads: both halves are needed.
        head = extent.interleaved or 1
        first, last = start // head * head, -(-stop // head) * head
        if len(extent.shape) == 1:
            rows = _decode(name, replace(extent, shape=(1, count)), 0, 1)[0, first:last]
        else:
            rows = _decode(name, extent, first, last)
        rows = rows.reshape(last - first, *extent.shape[1:])
        if extent.interleaved:
            # Stored row 2i + j of a head is its row j * head / 2 + i.
            rows = rows.reshape(-1, head // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
        return rows if len(rows) == stop - start else rows[start - first : stop - first].copy()


def _decode(name: str, extent: Extent, start: int, stop: int) -> NDArray[np.float32]:
    """Rows [start, stop) as [stop - start, columns] float32, in the order of the file."""
    columns = prod(extent.shape[1:])
    out = np.empty((stop - start, columns), np.float32)
    width = row_bytes(extent.stored, columns)
    batch = max(1, _BATCH // max(columns, 1))
    batch -= batch % 64 if batch > 64 else 0  # round numbers of blocks decode fastest
    raw = np.empty(0 if extent.stored == "F32" else min(batch, stop - start) * width, np.uint8)
    with open_plain(extent.file, error=SourceError) as file, reading(extent.file, error=SourceError):
        file.seek(extent.offset + start * width)
        for at in range(0, stop - start, batch):
            part = out[at : at + batch]
            into = part.view(np.uint8).reshape(-1) if extent.stored == "F32" else raw[: len(part) * width]
            _fill(file, into, extent, name)
            _convert(extent.stored, into, part)
            if not _is_finite(extent.stored, into, part):
                raise _not_finite(extent, name, into)
    return out


def _fill(file: object, into: NDArray[np.uint8], extent: Extent, name: str) -> None:
    view = into.data
    done = 0
    while done < len(view):
        n = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not n:
            raise SourceError(f"{extent.file} is truncated: it ends inside tensor '{name}'", "download the file again")
        done += n


def _is_finite(stored: str, raw: NDArray[np.uint8], values: NDArray[np.float32]) -> bool:
    exponent = _EXPONENTS.get(stored)
    if exponent is not None:
        # NaN and infinity have all exponent bits set; checking the raw bytes reads half as much.
        return bool((raw.view(np.uint16) & exponent).max(initial=0) < exponent)
    # A sum is cheap, and not finite if any value is not; each value is checked only then.
    with np.errstate(all="ignore"):
        total = values.sum()
    return bool(np.isfinite(total) or np.isfinite(values).all())


def _not_finite(extent: Extent, name: str, raw: NDArray[np.uint8]) -> SourceError:
    too_large = extent.stored == "F64" and np.isfinite(raw.view(np.float64)).all()
    return SourceError(
        f"{extent.file}: tensor '{name}' holds {'values beyond float32' if too_large else 'NaN or infinite values'}",
        "the checkpoint is damaged or its training diverged; download it again or choose another",
    )


def _convert(stored: str, raw: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    if stored == "F32":
        return
    if stored == "F64":
        with np.errstate(over="ignore"):  # told by the check for infinities
            out[...] = raw.view(np.float64).reshape(out.shape)
    elif stored == "F16":
        out[...] = raw.view(np.float16).reshape(out.shape)
    elif stored == "BF16":
        np.left_shift(raw.view(np.uint16).reshape(out.shape), 16, out=out.view(np.uint32), dtype=np.uint32)
    else:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        # Half-precision scales that overflow are caught by the check for infinities.
        kind = GGMLQuantizationType[stored]
        width = GGML_QUANT_SIZES[kind][1]
        # gguf decodes 16 rows at a time; blocks are independent of rows, and longer rows are up to 4x faster.
        rows = raw.reshape(-1, gcd(raw.size // width, 128) * width)
        with np.errstate(all="ignore"):
            out[...] = dequantize(rows, kind).reshape(out.shape)
