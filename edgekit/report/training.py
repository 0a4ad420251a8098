"""What a bundle's weights were fitted to and trained on, in rows of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit import words

if TYPE_CHECKING:
    from edgekit.types import Manifest
    from edgekit.types.data import DataCard
    from edgekit.types.learning import Gain, RunCard


def data_rows(manifest: Manifest) -> list[tuple[str, str]]:
    """The text of calibration and the training run; none for weights quantized without data."""
    rows = []
    if manifest.calibrated:
        rows.append(("calibrated on", _data(manifest.calibrated)))
    if manifest.learned:
        rows += _run(manifest.learned)
    return rows


def _data(card: DataCard) -> str:
    sources = ", ".join(f"{words.percent(source.share)} {source.name}" for source in card.sources)
    return f"{card.tokens:,} tokens: {sources}"


def _run(run: RunCard) -> list[tuple[str, str]]:
    took = f"{run.tokens:,} tokens in {run.steps} steps and {run.minutes:.0f} min on {run.processor_class}"
    return [
        ("training", f"{run.kind}, {took}; the best after {run.best_step}; {run.ending}"),
        ("trained on", _data(run.data)),
        ("teacher", f"{run.teacher}, sha256 {run.teacher_sha256[:16]}; loss: {run.loss}"),
        ("gained", "; ".join(map(_gain, run.gains)) or "not measured"),
    ]


def _gain(gain: Gain) -> str:
    before, after, gained = gain.before.kld_mean, gain.after.kld_mean, gain.gained
    interval = f"[{words.number(gained.low)}, {words.number(gained.high)}]"
    kld = f"KLD {words.number(before.value)} to {words.number(after.value)}"
    return f"{gain.after.text}: {kld}, gained {words.number(gained.value)} {interval} nats"
