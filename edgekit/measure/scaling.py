"""Estimate the quality of a model from its size, by published scaling laws; never a measurement.

Loss in nats per token falls with the parameters N as fitted by Hoffmann et al. (arXiv:2203.15556, section D.3) for 70
million to 16 billion parameters: L = 1.69 + 406.4 / N^0.34 + (a term for the training tokens). Within one family only
the second term differs. Fewer bits increase it by a share, measured on SmolLM2-135M and assumed to be the same at every
size: 4 bits are worth seven parameters in ten. So for the same bytes, more parameters at 4 bits beat fewer at 16, as
Dettmers and Zettlemoyer measured for 19 million to 176 billion parameters (arXiv:2212.09720).
"""

from __future__ import annotations

from math import pow  # noqa: A004 - the float one
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgekit.types import ModelSpec, Precision

FITTED = (70e6, 16e9)
"""Parameters of the smallest and the largest model in the fit."""

PRECISION_SHARE: Mapping[Precision, float] = {"fp32": 0.0, "fp16": 0.0, "int8": 0.003, "int4": 0.126}
"""The share by which a precision increases the size term: KL divergence on WikiText-2 against an off-grid reference,
0.0021 and 0.0884 nats (docs/benchmarks.md), over 406.4 / N^0.34 of SmolLM2's 134,515,008 parameters, 0.700."""

PRECISION_LOSS: Mapping[Precision, float] = {"fp32": 0.0, "fp16": 0.0, "int8": 0.0021, "int4": 0.0884}
"""The loss of a precision in nats per token, from the same measurement."""

UNSEEN = 0.01
"""A negligible loss in nats per token: one per cent of the perplexity, the limit of `edgekit verify` for int8."""

SAME_VOCABULARY = 0.01
"""Vocabularies that differ by less are the same one, padded differently."""

FORMULA = "406.4 / parameters^0.34 (arXiv:2203.15556), and what SmolLM2-135M lost: " + ", ".join(
    f"{share:.1%} more at {precision}" for precision, share in PRECISION_SHARE.items() if share
)


def estimate_loss(parameters: int, precision: Precision) -> float:
    """The loss in nats per token above that of an infinitely large model with the same training, by FORMULA."""
    return 406.4 / pow(parameters, 0.34) * (1 + PRECISION_SHARE[precision])


def why_incomparable(specs: Sequence[ModelSpec], parameters: Sequence[int]) -> str:
    """The reason why the rule cannot rank these models, or "" if it can.

    Nats per token are only comparable with the same vocabulary, and sizes only within one family.
    """
    families = sorted({spec.architecture for spec in specs})
    if len(families) > 1:
        return f"they are of different families ({', '.join(families)}), whose sizes are not comparable"
    small, large = (f(spec.vocab_size for spec in specs) for f in (min, max))
    if large > small * (1 + SAME_VOCABULARY):
        return f"their vocabularies differ ({small:,} and {large:,} tokens), so nats per token are not comparable"
    outside = next((n for n in parameters if not FITTED[0] <= n <= FITTED[1]), None)
    if outside is not None:
        return f"{outside:,} parameters are outside the range of the rule's fit (70 million to 16 billion)"
    return ""
