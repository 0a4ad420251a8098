"""Recipes and grids for quantizing weights and activations. Standard library only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edgekit import ranges
from edgekit.record import added_later
from edgekit.types.device import Precision

ScaleType = Literal["float16", "float32"]


@dataclass(frozen=True)
class Grid:
    """The values of a quantized weight: ``(q - zero_point) * scale``, with one scale (and zero point) per block.

    A block is ``block_size`` consecutive weights of one row (one output channel); 0 is the whole row
    (per-channel). ``q`` is unsigned, 0 .. 2**bits - 1. A symmetric grid has the zero point 2**(bits-1)
    and stores none.
    """

    bits: ranges.Bits
    block_size: ranges.Block
    symmetric: bool
    scale: ScaleType = "float16"


SHARED_WITH = "edgekit.shared_with"
"""Metadata key of an initializer without its own data: the name of the one whose data it shares. Set by quantize,
preserved by lower, used by bundle."""


INSIDE = "edgekit.inside"
"""Metadata key of an initializer that stays in the graph's file, whatever its size. Set by lower, used by bundle."""


FIRST_LOGIT = "first_logit.start"
"""The initializer with the first position for which the head computes logits. Set by lower; run makes it an input."""


JOINED = "edgekit.joined"
"""Metadata key of an initializer that concatenates several: ``name:rows`` of each, separated by spaces. Set by lower,
used by bundle to read weights back."""


GridPolicy = Callable[[str, tuple[int, ...]], "Grid | None"]
"""Function from a tensor's name and shape to its grid, or None to keep it in floating point."""


@dataclass(frozen=True)
class Override:
    """Tensors whose name matches the glob ``match`` get ``grid`` (None: floating point). The first match wins.

    ``{last}`` in ``match`` is replaced by the number of the last layer.
    """

    match: str
    grid: Grid | None


@dataclass(frozen=True)
class Recipe:
    """How to quantize the weights. ``method`` is the name of a module in quantize/.

    ``linear`` is the grid of the decoder's matmuls; ``embedding`` that of the token table and the head.
    ``size_bytes`` or ``bits_per_weight`` is a budget with which each tensor's grid is chosen by measured sensitivity:
    8 bits, ``linear``, or ``low``, the smallest grid that a budget may choose (None: ``linear`` with wider blocks).
    ``smooth`` (0..1): how much of the activations' range is first moved into the weights, exactly (quantize/smooth.py).
    ``rotate``: rotate the residual stream, exactly, to avoid outlier channels (quantize/rotate.py).
    ``w8a8_prefill``: run prompts with 8-bit integers and one scale per token (lower/prefill.py).
    """

    name: str
    precision: Precision
    method: str = "search"
    linear: Grid | None = None
    low: Grid | None = added_later(None)  # noqa: RUF009 - a field
    embedding: Grid | None = None
    overrides: tuple[Override, ...] = ()
    accuracy_level: ranges.Level = 0  # of MatMulNBits; 0: the runtime decides, 1: fp32, 4: int8 activations
    smooth: ranges.Share = 0.0
    rotate: bool = False
    w8a8_prefill: bool = False
    size_bytes: ranges.Bytes | None = None
    bits_per_weight: ranges.NotNegative | None = None

    @property
    def narrowest(self) -> int:
        """The fewest bits of any of its grids; 32 without one."""
        grids = (self.linear, self.low, self.embedding, *(o.grid for o in self.overrides))
        return min((g.bits for g in grids if g is not None), default=32)


@dataclass(frozen=True)
class Range:
    """The minimum and maximum of the value ``name`` in a graph on calibration tokens."""

    name: str
    low: float
    high: float
