"""Weights on the grids that ship, as parameters: what the forward pass computes with is what the file will hold.

A weight is ``(code - zero) * scale``. The latent weight is kept in units of its first scale, so that one learning rate
suits all blocks; codes are its rounding, gradients go straight through (arXiv 1308.3432), to scales as in LSQ (arXiv
1902.08153), to zero points from the weights beyond the ends of the grid (LSQ+, arXiv 2004.09576).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.numerics.nibbles import pack_bits, unpack_bits
from edgekit.quantize import Packed
from edgekit.types.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from edgekit.types import Grid

PULL = 0.7
"""Where in its bin a latent weight starts: 0 is the middle, 1 its own place. GPTQ leaves many weights at the very edge,
and the first steps would undo its choices."""


class GridWeight(nn.Module):
    """A weight [rows, columns] on a grid; starts at ``packed`` and ends as one.

    ``latent`` [rows, blocks, size] in units of the first scale, ``ratio`` [rows, blocks, 1] of the scale to the first,
    ``zero`` likewise, in codes. ``codes``, ``scales`` and ``zeros`` say what is trained.
    """

    first: Tensor

    def __init__(
        self,
        packed: Packed,
        weight: NDArray[np.float32],
        grid: Grid,
        *,
        codes: bool = True,
        scales: bool = True,
        zeros: bool = True,
    ) -> None:
        super().__init__()
        self.grid, self.layout = grid, Layout.of(weight.shape, grid)
        code, scale, zero = (torch.from_numpy(a) for a in _unpack(packed, self.layout, grid))
        padded = np.pad(weight, ((0, 0), (0, self.layout.blocks * self.layout.block_size - weight.shape[1])))
        place = torch.from_numpy(padded).view(code.shape) / scale + zero - code
        self.register_buffer("first", scale)
        self.latent = nn.Parameter(code - zero + PULL * place.clamp_(-0.5, 0.5), requires_grad=codes)
        self.ratio = nn.Parameter(torch.ones_like(scale), requires_grad=scales)
        self.zero = nn.Parameter(zero, requires_grad=zeros and not grid.symmetric)

    def forward(self) -> Tensor:
        """The weight as the device reads it, [rows, columns] float32."""
        levels = 2**self.grid.bits - 1
        weight: Tensor = _FakeQuant.apply(
            self.latent, self.ratio, self.zero, self.first, levels, self.grid.scale == "float16"
        )
        return weight.view(self.layout.rows, -1)[:, : self.layout.columns]

    @torch.no_grad()
    def pack(self) -> Packed:
        """The weight as the file holds it; what ``forward`` computes with, to the bit. ``error`` is to the latent."""
        levels, half = 2**self.grid.bits - 1, self.grid.scale == "float16"
        scale, zero, _, code = _parts(self.latent, self.ratio, self.zero, self.first, levels, half)
        exact, shipped = self.latent * self.first, (code - zero) * scale
        error = float((exact - shipped).norm() / exact.norm().clamp_min(1e-30))
        codes = code.to(torch.uint8).cpu().numpy().reshape(self.layout.rows, self.layout.blocks, self.layout.block_size)
        scales = scale[..., 0].cpu().numpy()
        kind = np.float16 if half else np.float32
        zeros = None if self.grid.symmetric else _pack_zeros(zero[..., 0].cpu().numpy(), self.layout, self.grid)
        return Packed(pack_bits(codes, self.grid.bits), scales.astype(kind), zeros, error)


def _unpack(packed: Packed, layout: Layout, grid: Grid) -> tuple[NDArray[np.float32], ...]:
    """Codes [rows, blocks, size], scales and zero points [rows, blocks, 1]; per channel a row is one block."""
    codes = unpack_bits(packed.codes, grid.bits, layout.block_size).astype(np.float32)
    codes = codes.reshape(layout.rows, layout.scale_columns, -1)
    scales = packed.scales.astype(np.float32)[..., None]
    if packed.zeros is None:
        zeros = np.full(scales.shape, 2 ** (grid.bits - 1), np.float32)
    else:
        zeros = unpack_bits(packed.zeros, grid.bits, layout.scale_columns).astype(np.float32)[..., None]
    return codes, scales, zeros


def _pack_zeros(zeros: NDArray[np.float32], layout: Layout, grid: Grid) -> NDArray[np.uint8]:
    from edgekit.quantize.tensor import pack_zeros

    return pack_zeros(zeros, layout, grid)


def _parts(
    latent: Tensor, ratio: Tensor, zero: Tensor, first: Tensor, levels: int, half: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scale and zero point as stored, the place of each weight on the grid, and its code."""
    scale = first * ratio
    if half:
        scale = scale.half().float()
    scale = torch.where(scale == 0, first, scale)
    zero = zero.round().clamp(0, levels)
    place = latent * (first / scale) + zero
    return scale, zero, place, place.round().clamp_(0, levels)


class _FakeQuant(torch.autograd.Function):
    """``(code - zero) * scale`` with straight-through gradients; saves the parameters only, not what follows."""

    @staticmethod
    def forward(
        ctx: Any, latent: Tensor, ratio: Tensor, zero: Tensor, first: Tensor, levels: int, half: bool
    ) -> Tensor:
        ctx.save_for_backward(latent, ratio, zero, first)
        ctx.levels, ctx.half = levels, half
        scale, zero, _, code = _parts(latent, ratio, zero, first, levels, half)
        return code.sub_(zero).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        latent, ratio, zero, first = ctx.saved_tensors
        gradient = gradients[0].reshape(latent.shape)
        scale, whole, place, code = _parts(latent, ratio, zero, first, ctx.levels, ctx.half)
        inside = ((place > -0.5) & (place < ctx.levels + 0.5)).float()
        to_latent = gradient * first * inside if ctx.needs_input_grad[0] else None
        # d(code - zero) / d(place) is 1 inside and 0 outside, and place moves with 1 / scale.
        slope = code - whole - inside * (place - whole)
        to_ratio = (gradient * slope).sum(-1, keepdim=True) * first if ctx.needs_input_grad[1] else None
        to_zero = None
        if ctx.needs_input_grad[2]:
            to_zero = (gradient * (inside - 1)).sum(-1, keepdim=True) * scale
        return to_latent, to_ratio, to_zero, None, None, None


def round_to_int8(grids: dict[str, Grid]) -> Callable[[str, Tensor], Tensor]:
    """What MatMulNBits does to its input at accuracy level 4: 8-bit integers with a scale for every block of a row.

    Straight through in the backward pass. Rows that are no whole number of blocks are left as they are.
    """

    def rounding(name: str, x: Tensor) -> Tensor:
        grid = grids.get(name)
        size = grid.block_size or Layout.of((1, x.shape[-1]), grid).block_size if grid else 0
        if not size or x.shape[-1] % size:
            return x
        blocks = x.detach().unflatten(-1, (-1, size))
        scale = blocks.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
        rounded = ((blocks / scale).round() * scale).flatten(-2)
        straight: Tensor = x + (rounded - x.detach())
        return straight

    return rounding
