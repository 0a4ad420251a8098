"""How weights and activations are quantized: what a recipe says, and where it holds. Standard library only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edgekit import ranges
from edgekit.types.device import Precision

ScaleType = Literal["float16", "float32"]


@dataclass(frozen=True)
class Grid:
    """The values a weight may take: ``(q - zero_point) * scale``, one scale (and zero point) a block.

    A block is ``block_size`` consecutive weights of one row (one output channel); 0 is the whole row
    (per-channel). ``q`` is unsigned, 0 .. 2**bits - 1. A symmetric grid has the zero point 2**(bits-1)
    and stores none.
    """

    bits: ranges.Bits
    block_size: ranges.Block
    symmetric: bool
    scale: ScaleType = "float16"


SHARED_WITH = "edgekit.shared_with"
"""Metadata of an initializer that has no bytes of its own: the name of the one whose bytes it uses. Set by quantize,
kept by lower, obeyed by bundle."""


INSIDE = "edgekit.inside"
"""Metadata of an initializer that stays in the graph's own file, however large. Set by lower, obeyed by bundle."""


FIRST_LOGIT = "first_logit.start"
"""The initializer that says from which position on the head reads. Set by lower; run makes it an input."""


JOINED = "edgekit.joined"
"""Metadata of an initializer that holds several one after another: ``name:rows`` of each, with blanks between. Set by
lower, read by bundle when weights are read back."""


GridPolicy = Callable[[str, tuple[int, ...]], "Grid | None"]
"""A tensor's name and shape -> the grid it gets, or None to leave it in floating point."""


@dataclass(frozen=True)
class Override:
    """Tensors whose name matches the glob ``match`` get ``grid`` (None: floating point). The first match wins.

    ``{last}`` in ``match`` stands for the number of the last layer.
    """

    match: str
    grid: Grid | None


@dataclass(frozen=True)
class Recipe:
    """How the weights become small. ``method`` is the name of a file in quantize/.

    ``linear`` is the grid of the decoder's matmuls; ``embedding`` that of the token table and the head.
    ``size_bytes`` or ``bits_per_weight`` set a budget that picks 8-bit tensors by measured sensitivity. ``smooth``
    (0..1): how much of the activations' range is moved into the weights first, exactly (see quantize/smooth.py).
    ``rotate``: the residual stream is rotated, exactly, so that no channel stands out (see quantize/rotate.py).
    ``w8a8_prefill``: prompts run on 8-bit integers, one scale a token (see lower/prefill.py).
    """

    name: str
    precision: Precision
    method: str = "search"
    linear: Grid | None = None
    embedding: Grid | None = None
    overrides: tuple[Override, ...] = ()
    accuracy_level: ranges.Level = 0  # MatMulNBits': 0: the runtime decides, 1: fp32, 4: int8 activations
    smooth: ranges.Share = 0.0
    rotate: bool = False
    w8a8_prefill: bool = False
    size_bytes: ranges.Bytes | None = None
    bits_per_weight: ranges.NotNegative | None = None


@dataclass(frozen=True)
class CalibratedOn:
    """The text that weights were fitted to: what it is called, the sha256 of its UTF-8 bytes, and the tokens read."""

    text: str
    sha256: ranges.Digest
    tokens: ranges.Count


@dataclass(frozen=True)
class Range:
    """The least and the largest number that the value ``name`` of a graph took on calibration tokens."""

    name: str
    low: float
    high: float
