"""What a bundle's weights were fitted to and trained on, in rows of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit import words

if TYPE_CHECKING:
    from edgekit.types import Manifest
    from edgekit.types.data import DataCard
    from edgekit.types.learning import Gain, RunCard, StudentScore


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
    rows = [
        ("training", f"{run.kind}, {took}; the best after {run.best_step}; {run.ending}"),
        ("trained on", _data(run.data)),
        ("teacher", f"{run.teacher}, sha256 {run.teacher_sha256[:16]}; loss: {run.loss}"),
    ]
    if run.on_grid:
        then = run.on_grid
        took = f"{then.tokens:,} tokens in {then.steps} steps and {then.minutes:.0f} min"
        rows.append((f"on the grids of '{then.recipe}'", f"{took}; the best after {then.best_step}; {then.ending}"))
    if run.scores:
        rows.append(("from the teacher", "; ".join(map(_score, run.scores))))
    else:
        rows.append(("gained", "; ".join(map(_gain, run.gains)) or "not measured"))
    return rows


def _score(score: StudentScore) -> str:
    interval = f"[{words.number(score.kld.low)}, {words.number(score.kld.high)}]"
    return f"{score.model}: KLD {words.number(score.kld.value)} {interval}, top-1 {words.percent(score.top1.value)}"


def _gain(gain: Gain) -> str:
    before, after, gained = gain.before.kld_mean, gain.after.kld_mean, gain.gained
    interval = f"[{words.number(gained.low)}, {words.number(gained.high)}]"
    kld = f"KLD {words.number(before.value)} to {words.number(after.value)}"
    return f"{gain.after.text}: {kld}, gained {words.number(gained.value)} {interval} nats"
