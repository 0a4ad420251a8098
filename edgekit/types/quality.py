"""Quality of a bundle relative to its source. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit import ranges
from edgekit.record import added_later
from edgekit.types.interval import Interval


@dataclass(frozen=True)
class Quality:
    """Distance of the shipped file from its FP32 source, with 95 % bootstrap intervals over windows.

    KLD is KL(reference || bundle) in nats per token, computed on the reference's ``top_k`` most likely tokens plus one
    bucket for the rest, which can only underestimate it. ``text`` names the text, ``tokens`` counts the scored
    positions.
    """

    kld_mean: Interval
    kld_p99: Interval
    kld_p999: Interval
    top1: Interval
    ppl_ratio: Interval
    ppl: ranges.Measured
    reference_ppl: ranges.Measured
    reference: str
    text: str
    text_sha256: ranges.Digest
    window: int
    tokens: int
    top_k: int
    runtime: str
    accuracy_level: ranges.Level
    processor_class: str = added_later("")


@dataclass(frozen=True)
class Kernels:
    """A choice of runtime kernels: session config ``entries``, and MatMulNBits' accuracy level."""

    name: str
    accuracy_level: ranges.Level
    entries: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class KernelScore:
    """Score of the decoder's graph on ARM with one choice of kernels.

    ``quality`` is its distance from the FP32 source. ``excess``: its KLD minus that of the first choice, the runtime's
    default, per position, in nats. ``away`` and ``same``: KLD from, and top-1 agreement with, the same file on the
    scoring machine itself.
    """

    kernels: Kernels
    quality: Quality
    excess: Interval
    away: Interval
    same: Interval


@dataclass(frozen=True)
class ArmQuality:
    """Quality of a bundle's decoder graph on ARM, whose kernels differ from x86. Emulated, so no speed.

    ``processor`` is the emulated processor, ``here`` the quality of the same graph on the scoring machine. ``chosen``
    is one of the kernels scored at the bundle's own accuracy level; opening the bundle applies its entries.
    ``prompts``: the score of the bundle's prompt graph with the chosen kernels, None if it has none.
    """

    processor: str
    here: Quality
    scores: tuple[KernelScore, ...]
    chosen: Kernels
    prompts: KernelScore | None

    def score_of(self, kernels: Kernels) -> KernelScore:
        """The score of one choice of kernels."""
        return next(s for s in self.scores if s.kernels == kernels)
