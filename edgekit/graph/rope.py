"""Inverse frequencies and attention factors of rotary position embeddings.

The formulae are those of transformers' ``modeling_rope_utils.py`` (named in each function), with the same order of
float32 roundings, because at position 100,000 one rounding of a frequency changes an angle by 0.006.
"""

from __future__ import annotations

from math import ceil, floor, log, pi, sqrt
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.types import Rope


def inverse_frequencies(rope: Rope, *, long: bool = False) -> NDArray[np.float32]:
    """The angle per position of each pair of rotated dimensions, float32 [dim / 2].

    Args:
        rope: the embedding.
        long: use longrope's factors for sequences beyond ``original_context``; ignored for other kinds.
    """
    exponents = (np.arange(0, rope.dim, 2, dtype=np.float32) / np.float32(rope.dim)).astype(np.float64)
    periods = (rope.theta**exponents).astype(np.float32)
    if rope.kind == "longrope":
        return _longrope(rope, periods, long=long)
    plain = (1 / periods).astype(np.float32)
    if rope.kind == "linear":
        return (plain / np.float32(rope.factor)).astype(np.float32)
    if rope.kind == "llama3":
        return _llama3(rope, plain)
    if rope.kind == "yarn":
        return _yarn(rope, periods)
    return plain


def _llama3(rope: Rope, plain: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divide the frequencies of long wavelengths by ``factor``, keep short ones, and blend those between.

    Source: ``_compute_llama3_parameters``; Meta's llama3 ``apply_scaling``.
    """
    wavelength = np.float32(2 * pi) / plain
    stretched = np.where(wavelength > rope.original_context / rope.low_freq_factor, plain / rope.factor, plain)
    share = (rope.original_context / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - share) * stretched / rope.factor + share * stretched
    medium = (wavelength >= rope.original_context / rope.high_freq_factor) & (
        wavelength <= rope.original_context / rope.low_freq_factor
    )
    return np.where(medium, blended, stretched).astype(np.float32)


def _yarn(rope: Rope, periods: NDArray[np.float32]) -> NDArray[np.float32]:
    """Blend from extrapolated (fast) to interpolated (slow) frequencies with a ramp over the dimensions.

    Source: ``_compute_yarn_parameters``; Peng et al., "YaRN", arXiv 2309.00071, section 3.2.
    """

    def dimension(rotations: float) -> float:
        """The dimension that makes ``rotations`` turns within the original context."""
        return rope.dim * log(rope.original_context / (rotations * 2 * pi)) / (2 * log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = floor(low), ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(rope.dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    kept = 1 - ramp
    interpolated, extrapolated = 1 / (np.float32(rope.factor) * periods), 1 / periods
    return np.asarray(interpolated * (1 - kept) + extrapolated * kept, np.float32)


def _longrope(rope: Rope, periods: NDArray[np.float32], *, long: bool) -> NDArray[np.float32]:
    """Divide each frequency by its own factor, from one of two lists.

    Source: ``_compute_longrope_parameters``; Ding et al., "LongRoPE", arXiv 2402.13753.
    """
    factors = np.asarray(rope.long_factor if long else rope.short_factor, np.float32)
    return np.asarray(1 / (factors * periods), np.float32)


def attention_factor(rope: Rope) -> float:
    """The constant that cos and sin are multiplied by.

    Source: ``_compute_yarn_parameters`` and ``_compute_longrope_parameters``.
    """
    if rope.attention_factor is not None:
        return rope.attention_factor

    def magnitude(weight: float) -> float:
        return 0.1 * weight * log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.kind == "yarn":
        if rope.mscale and rope.mscale_all_dim:
            return magnitude(rope.mscale) / magnitude(rope.mscale_all_dim)
        return magnitude(1.0)
    if rope.kind == "longrope" and rope.factor > 1:
        return sqrt(1 + log(rope.factor) / log(rope.original_context))
    return 1.0
