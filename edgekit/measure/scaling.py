"""How good a model of a given size can be expected to be: a rule from published fits, never a measurement.

Loss, in nats a token, falls with the parameters N as Hoffmann et al. (arXiv:2203.15556, section D.3) fitted it over
models of 70 million to 16 billion parameters: L = 1.69 + 406.4 / N^0.34 + (a term of the training tokens). Within one
family only the second term differs. Fewer bits make it larger by a share, taken from edgekit's own SmolLM2-135M and
assumed to be the same at every size: 4 bits are worth seven parameters in ten. More parameters at 4 bits then beat
fewer at 16 for the same bytes, as Dettmers and Zettlemoyer measured it from 19 million to 176 billion parameters
(arXiv:2212.09720).
"""

from __future__ import annotations

from math import pow  # noqa: A004 - the float one
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgekit.types import ModelSpec, Precision

FITTED = (70e6, 16e9)
"""Parameters of the smallest and the largest model of the fit."""

PRECISION_SHARE: Mapping[Precision, float] = {"fp32": 0.0, "fp16": 0.0, "int8": 0.003, "int4": 0.126}
"""By what share a precision adds to the term of size: KL divergence on WikiText-2 against an off-grid reference, 0.0021
and 0.0884 nats (docs/benchmarks.md), over 406.4 / N^0.34 of SmolLM2's 134,515,008 parameters, 0.700."""

PRECISION_LOSS: Mapping[Precision, float] = {"fp32": 0.0, "fp16": 0.0, "int8": 0.0021, "int4": 0.0884}
"""What a precision gives up, in nats a token: the same measurement."""

UNSEEN = 0.01
"""Nats a token that nobody sees: one per cent of the perplexity. It is what `edgekit verify` lets int8 be off by."""

SAME_VOCABULARY = 0.01
"""Vocabularies that differ by less are one, padded differently."""

FORMULA = "406.4 / parameters^0.34 (arXiv:2203.15556), and what SmolLM2-135M lost: " + ", ".join(
    f"{share:.1%} more at {precision}" for precision, share in PRECISION_SHARE.items() if share
)


def estimate_loss(parameters: int, precision: Precision) -> float:
    """Nats a token above what a model of unlimited size would reach after the same training: FORMULA."""
    return 406.4 / pow(parameters, 0.34) * (1 + PRECISION_SHARE[precision])


def why_incomparable(specs: Sequence[ModelSpec], parameters: Sequence[int]) -> str:
    """Why the rule cannot rank these models against each other, or "" when it can.

    Nats a token compare only over one vocabulary, and sizes only within one family.
    """
    families = sorted({spec.architecture for spec in specs})
    if len(families) > 1:
        return f"they are of different families ({', '.join(families)}), which no rule on sizes compares"
    small, large = (f(spec.vocab_size for spec in specs) for f in (min, max))
    if large > small * (1 + SAME_VOCABULARY):
        return f"their vocabularies differ ({small:,} and {large:,} tokens), so that nats a token do not compare"
    outside = next((n for n in parameters if not FITTED[0] <= n <= FITTED[1]), None)
    if outside is not None:
        return f"{outside:,} parameters are outside what the rule was fitted on (70 million to 16 billion)"
    return ""
