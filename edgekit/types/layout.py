"""The block layout and size of a quantized weight. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.types import Grid


@dataclass(frozen=True)
class Layout:
    """Layout of a quantized weight [rows, columns]: ``blocks`` of ``block_size`` weights per row, including padding."""

    rows: int
    columns: int
    block_size: int
    blocks: int
    per_channel: bool

    @classmethod
    def of(cls, shape: tuple[int, ...], grid: Grid) -> Layout:
        """The layout for a weight's shape. Per channel uses the largest kernel block that divides the row."""
        rows, columns = shape
        block = grid.block_size or next((b for b in (256, 128, 64, 32) if columns % b == 0), 16)
        return cls(rows, columns, block, ceil(columns / block), grid.block_size == 0)

    def code_bytes(self, grid: Grid) -> int:
        """Bytes of one block's codes."""
        return self.block_size * grid.bits // 8

    def zero_bytes(self, grid: Grid) -> int:
        """Bytes of one row's zero points."""
        return 1 if self.per_channel else ceil(self.blocks * grid.bits / 8)

    def nbytes(self, grid: Grid) -> int:
        """Bytes in the file: codes, scales and zero points, including padding."""
        scale = 2 if grid.scale == "float16" else 4
        zeros = 0 if grid.symmetric else self.zero_bytes(grid)
        return self.rows * (self.blocks * self.code_bytes(grid) + self.scale_columns * scale + zeros)

    @property
    def scale_columns(self) -> int:
        """Stored scales of one row."""
        return 1 if self.per_channel else self.blocks
