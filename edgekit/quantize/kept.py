"""What a calibrated build has rounded so far, in a file: a build that was killed does not round it again.

A record is a line of JSON, a ``_Record``, and the bytes of codes, scales and zero points. Records count up to the first
whose hash does not match. Calibration costs minutes to hours and the file some seconds, so it is never waited for: a
build whose disk is full goes on without it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from edgekit.quantize.pack import Packed
from edgekit.record import from_json, to_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

    from edgekit.types import Grid
    from edgekit.types.layout import Layout


@dataclass(frozen=True)
class _First:
    """The key of all inputs."""

    key: str


@dataclass(frozen=True)
class _Record:
    """A weight, its error, and the size and hash of the bytes that follow."""

    name: str
    error: float
    bytes: int
    sha256: str


class Kept:
    """The records of one build. Without a path nothing is kept."""

    def __init__(self, path: Path | None = None, key: str = "") -> None:
        """``key``: hash of whatever determines the records; those of a file with another key do not count."""
        self._path = path if key else None
        self._places: dict[str, tuple[_Record, int]] = {}
        if self._path is None:
            return
        end = 0
        with suppress(OSError, ValueError), self._path.open("rb") as file:
            if from_json(_First, file.readline().decode()).key == key:
                end = file.tell()
                for record, place in _records(file):
                    self._places[record.name] = record, place
                    end = place + record.bytes
        with suppress(OSError), self._path.open("r+b" if end else "wb") as file:
            file.truncate(end)
            if not end:
                file.write(to_json(_First(key)).encode() + b"\n")

    def recall(self, name: str, layout: Layout, grid: Grid) -> Packed | None:
        """A weight of a killed build; None if it is not there."""
        if self._path is None or name not in self._places:
            return None
        record, place = self._places[name]
        rows, size = layout.rows, layout.code_bytes(grid)
        with self._path.open("rb") as file:
            file.seek(place)
            codes = np.fromfile(file, np.uint8, rows * layout.blocks * size).reshape(rows, layout.blocks, size)
            half, count = grid.scale == "float16", rows * layout.scale_columns
            scales: NDArray[np.float16 | np.float32]
            scales = np.fromfile(file, np.float16, count) if half else np.fromfile(file, np.float32, count)
            zeros = None if grid.symmetric else np.fromfile(file, np.uint8, rows * layout.zero_bytes(grid))
        return Packed(codes, scales.reshape(rows, -1), None if zeros is None else zeros.reshape(rows, -1), record.error)

    def keep(self, name: str, packed: Packed) -> None:
        """Append a weight."""
        if self._path is None:
            return
        parts = [np.ascontiguousarray(p) for p in (packed.codes, packed.scales, packed.zeros) if p is not None]
        digest = sha256()
        for part in parts:
            digest.update(part.data)
        record = _Record(name, packed.error, sum(p.nbytes for p in parts), digest.hexdigest())
        try:
            with self._path.open("ab", buffering=0) as file:
                for data in (memoryview(to_json(record).encode() + b"\n"), *(part.data.cast("B") for part in parts)):
                    rest = data
                    while rest:
                        rest = rest[file.write(rest) :]
        except OSError:
            self._path = None


def _records(file: BinaryIO) -> Iterator[tuple[_Record, int]]:
    """Records and where their bytes begin, up to the first that is damaged."""
    with suppress(ValueError):
        while line := file.readline():
            record, place = from_json(_Record, line.decode()), file.tell()
            digest, left = sha256(), record.bytes
            while left and (chunk := file.read(min(left, 1 << 22))):
                digest.update(chunk)
                left -= len(chunk)
            if left or digest.hexdigest() != record.sha256:
                return
            yield record, place
