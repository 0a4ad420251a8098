"""Pack a quantized weight into the bytes that MatMulNBits and GatherBlockQuantized read, and unpack it.

Both operators need blocks whose size is a power of two of at least 16, so a per-channel grid is split into equal blocks
whose single scale is stored once and repeated when the session is created. Rows are padded with zeros to whole blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.numerics.nibbles import pack_bits, unpack_bits
from edgekit.quantize.grid import decode
from edgekit.types.layout import Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.types import Grid


@dataclass(frozen=True)
class Packed:
    """A weight [rows, columns] on a grid.

    ``codes``: uint8 [rows, blocks, block_size * bits / 8], the first code in the low bits. ``scales``: the grid's scale
    type [rows, blocks], or [rows, 1] per channel. ``zeros``: uint8 [rows, ceil(blocks * bits / 8)], packed like codes,
    or [rows, 1] per channel (a byte of equal codes); None on a symmetric grid. ``error``: ||W - Q(W)|| / ||W||.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float16 | np.float32]
    zeros: NDArray[np.uint8] | None
    error: float


def pack_columns(codes: NDArray[np.float32], bits: int) -> NDArray[np.uint8]:
    """Pack codes [block, n], integers in float32, into bytes [n, block * bits / 8] in the order of pack_bits.

    Eight 2-bit, four 4-bit or two 8-bit codes are combined to 16 bits before the transposition, which is then smaller.
    """
    if codes.flags.f_contiguous:
        return pack_bits(codes.T.astype(np.uint8), bits)
    while bits < 16:
        pairs = codes[1::2] * np.float32(2**bits)
        pairs += codes[0::2]
        codes, bits = pairs, 2 * bits
    transposed: NDArray[np.uint16] = np.ascontiguousarray(codes.astype("<u2").T)
    return transposed.view(np.uint8)


def unpack(packed: Packed, shape: tuple[int, ...], grid: Grid) -> NDArray[np.float32]:
    """Dequantize a packed weight to float32 [rows, columns]."""
    layout = Layout.of(shape, grid)
    codes = unpack_bits(packed.codes, grid.bits, layout.block_size).astype(np.float32)
    scales = np.broadcast_to(packed.scales.astype(np.float32), (layout.rows, layout.blocks))
    if packed.zeros is None:
        zeros = np.full(scales.shape, 2 ** (grid.bits - 1), np.float32)
    else:
        count = 1 if layout.per_channel else layout.blocks
        zeros = np.broadcast_to(unpack_bits(packed.zeros, grid.bits, count), scales.shape).astype(np.float32)
    weight = decode(codes, scales[..., None], zeros[..., None])
    return weight.reshape(layout.rows, -1)[:, : layout.columns]
