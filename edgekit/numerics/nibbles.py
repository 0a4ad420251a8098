"""Pack codes into bytes: two of 4 bits or four of 2 bits a byte, the first in the low bits, as MatMulNBits does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def pack_bits(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack codes [..., n] into bytes [..., ceil(n * bits / 8)]."""
    if bits == 8:
        return codes
    each = 8 // bits
    if missing := -codes.shape[-1] % each:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], missing), np.uint8)], axis=-1)
    packed: NDArray[np.uint8] = codes[..., 0::each].copy()
    for place in range(1, each):
        packed |= codes[..., place::each] << np.uint8(bits * place)
    return packed


def unpack_bits(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Inverse of pack_bits: unpack bytes [..., m] to the first ``count`` codes."""
    if bits == 8:
        return packed[..., :count]
    codes = np.stack([packed >> np.uint8(place) & np.uint8(2**bits - 1) for place in range(0, 8, bits)], axis=-1)
    return codes.reshape(*packed.shape[:-1], -1)[..., :count]
