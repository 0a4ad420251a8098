"""Expand the 8-bit weights of the prompt graph from the codes in the file when a bundle is opened.

With s the scale of a block, S the scale of its channel and M = round(256 s / S), in 16-bit integers:

    w = ((code - zero) * M + 128) >> 8

S is the smallest scale for which, in every pair (2i, 2i + 1) of a channel, the unrounded weights of one sign sum to at
most 127. On x86 without VNNI, ONNX Runtime's kernel adds the products of a pair in 16 bits: 255 * 128 is the largest
sum that does not saturate. All classes of processor use these weights, and so compute the same integers. Compared with
limiting each weight to 127, S is 1.3 times as large on SmolLM2, which changes no KLD beyond its interval. A weight
changes by at most half of S and a 512th of itself: a tenth of its error from rounding to 4 bits.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.numerics.nibbles import unpack_bits
from edgekit.run.threads import physical_cores

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edgekit.types import Bundle, Int8Repack, Region

PAIR = 127
"""The maximum sum of unrounded weights of one sign in a pair."""

BAND = 1 << 18
"""Weights that a thread expands at once, so that their 16-bit copies stay in its cache."""


def expand(file: Path, expansions: Sequence[Int8Repack], threads: int) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Yield the prompt graph's initializers, (name, array): weights [K,N] int8 and channel scales [N] float32.

    Args:
        file: the data file that contains the expansions' regions.
        expansions: the weights to expand.
        threads: number of weights expanded in parallel.
    """
    data = np.memmap(file, np.uint8, "r")
    with ThreadPoolExecutor(threads) as pool:
        for expansion, made in zip(expansions, pool.map(lambda e: _expand(data, e), expansions), strict=True):
            yield from zip(expansion.initializers, made, strict=True)


def save_expanded(bundle: Bundle, path: Path) -> None:
    """Write the expanded weights of a bundle's prompt graph to an .npz, for another process."""
    prefill = bundle.manifest.prefill
    assert prefill is not None
    data = bundle.graph.with_name(f"{bundle.graph.name}_data")
    arrays: dict[str, Any] = dict(expand(data, prefill.expansions, physical_cores()))
    np.savez(path, **arrays)


def _expand(data: NDArray[np.uint8], e: Int8Repack) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    blocks = -(-e.columns // e.block_size)
    codes = _take(data, e.codes).reshape(e.rows, -1)
    scales = _take(data, e.scales).view(np.float16 if e.half_scales else np.float32).reshape(e.rows, -1)
    scales = np.broadcast_to(scales.astype(np.float32), (e.rows, blocks))
    zeros = _zeros(data, e, blocks)
    reach = np.abs(scales) * _pair_sums(codes, zeros, e)
    channel = np.maximum(reach.max(axis=1), np.float32(1e-30)) / np.float32(PAIR)
    weight = np.empty((e.columns, e.rows), np.int8)
    if e.bits < 8:
        _from_packed(codes, zeros, scales / channel[:, None], e, weight)
        return weight, channel
    step = max(1, BAND // e.columns)
    for start in range(0, e.rows, step):
        rows = slice(start, start + step)
        band = _from_bytes(codes[rows], zeros[rows], scales[rows] / channel[rows, None], e.block_size)
        weight[:, rows] = band[:, : e.columns].T
    return weight, channel


def _pair_sums(codes: NDArray[np.uint8], zeros: NDArray[np.int16], e: Int8Repack) -> NDArray[np.float32]:
    """The largest sum of steps of one sign in a pair, per block [rows, blocks]. A byte holds one or two pairs."""
    rows, blocks = zeros.shape
    sums = np.empty((rows, blocks), np.float32)
    step = max(1, BAND // e.columns)
    for start in range(0, rows, step):
        band = slice(start, start + step)
        packed, zero = codes[band].reshape(-1, blocks, codes.shape[1] // blocks), zeros[band, :, None]
        if e.bits < 8:
            pairs = np.take(_byte_sums(e.bits), packed.astype(np.uint16) + (zero.astype(np.uint16) << np.uint16(8)))
        else:
            wide = packed.astype(np.int16) - zero
            above, below = np.maximum(wide, 0), np.maximum(-wide, 0)
            pairs = np.maximum(above[..., ::2] + above[..., 1::2], below[..., ::2] + below[..., 1::2])
        sums[band] = pairs.max(axis=-1)
    return sums


@cache
def _byte_sums(bits: int) -> NDArray[np.uint8]:
    """For each zero point and each byte of codes, the largest sum of steps of one sign in a pair, [2**bits * 256]."""
    codes = unpack_bits(np.arange(256, dtype=np.uint8)[:, None], bits, 8 // bits).astype(np.int64)
    steps = codes.reshape(256, -1, 2) - np.arange(2**bits)[:, None, None, None]
    above, below = (np.maximum(sign * steps, 0).sum(axis=-1) for sign in (1, -1))
    largest: NDArray[np.uint8] = np.maximum(above, below).max(axis=-1).astype(np.uint8).ravel()
    return largest


def _from_packed(
    codes: NDArray[np.uint8],
    zeros: NDArray[np.int16],
    ratio: NDArray[np.float32],
    e: Int8Repack,
    weight: NDArray[np.int8],
) -> None:
    """Fill ``weight`` [K,N] block by block. Packed bytes are transposed, so that all steps run along N."""
    bytes_by_column, zeros_by_block = np.ascontiguousarray(codes.T), np.ascontiguousarray(zeros.T)
    multipliers = np.ascontiguousarray(np.rint(ratio * np.float32(256)).astype(np.int16).T)
    block, each = e.block_size, 8 // e.bits
    for i, (zero, multiplier) in enumerate(zip(zeros_by_block, multipliers, strict=True)):
        packed = bytes_by_column[i * block // each : (i + 1) * block // each]
        for first in range(each):
            wide = (packed >> np.uint8(e.bits * first) & np.uint8(2**e.bits - 1)).astype(np.int16)
            wide -= zero
            wide *= multiplier
            wide += np.int16(128)
            wide >>= np.int16(8)
            rows = weight[i * block + first : (i + 1) * block : each]
            rows[...] = wide[: len(rows)]


def _from_bytes(
    codes: NDArray[np.uint8], zeros: NDArray[np.int16], ratio: NDArray[np.float32], block: int
) -> NDArray[np.int8]:
    rows, blocks = ratio.shape
    wide = codes.reshape(rows, blocks, block).astype(np.float32)
    wide -= zeros[..., None]
    wide *= ratio[..., None]
    np.rint(wide, out=wide)
    # A symmetric code of 0 is one step below the symmetric range.
    return np.clip(wide, -127, 127, out=wide).reshape(rows, -1).astype(np.int8)


def _zeros(data: NDArray[np.uint8], e: Int8Repack, blocks: int) -> NDArray[np.int16]:
    if e.zeros is None:
        return np.full((e.rows, blocks), 2 ** (e.bits - 1), np.int16)
    zeros = unpack_bits(_take(data, e.zeros).reshape(e.rows, -1), e.bits, blocks)
    return np.broadcast_to(zeros, (e.rows, blocks)).astype(np.int16)


def _take(data: NDArray[np.uint8], region: Region) -> NDArray[np.uint8]:
    return data[region.offset : region.offset + region.bytes]
