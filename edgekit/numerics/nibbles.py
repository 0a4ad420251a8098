"""Pack codes into bytes: two 4-bit codes per byte, low nibble first, as in ONNX and MatMulNBits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def pack_bits(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack codes [..., n] into bytes [..., ceil(n * bits / 8)]."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), np.uint8)], axis=-1)
    packed: NDArray[np.uint8] = codes[..., 1::2] << np.uint8(4)
    packed |= codes[..., 0::2]
    return packed


def unpack_bits(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Inverse of pack_bits: unpack bytes [..., m] to the first ``count`` codes."""
    if bits == 8:
        return packed[..., :count]
    codes = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)
    return codes.reshape(*packed.shape[:-1], -1)[..., :count]
