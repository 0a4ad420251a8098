"""The card of a training run: what was trained on what, for how long, and what it gained. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgekit import ranges
from edgekit.record import added_later
from edgekit.types.data import DataCard
from edgekit.types.interval import Interval
from edgekit.types.quality import Quality


@dataclass(frozen=True)
class CurvePoint:
    """What was seen at a step: mean training loss, and KLD in nats per token on each held-out text."""

    step: ranges.Count
    loss: ranges.Measured
    kld: tuple[ranges.Measured, ...]


@dataclass(frozen=True)
class Gain:
    """Quality before and after a run on one text, both of shipped files in ONNX Runtime, and the KLD that was gained.

    ``gained``: before minus after in nats per token, position by position, with its 95 % interval.
    """

    before: Quality
    after: Quality
    gained: Interval


@dataclass(frozen=True)
class StudentScore:
    """A model against the teacher on text that no run saw: KLD in nats per token, top-1 agreement, perplexities."""

    model: str
    kld: Interval
    top1: Interval
    perplexity: Interval
    teacher_perplexity: Interval


@dataclass(frozen=True)
class GridTraining:
    """What followed the healing of a student: training on the grids of ``recipe``. Fields as in ``RunCard``."""

    recipe: str
    rates: tuple[tuple[str, ranges.NotNegative], ...]
    steps: ranges.Count
    best_step: ranges.Count
    tokens: ranges.Count
    minutes: ranges.Measured
    ending: str
    curve: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class RunCard:
    """A training run. ``minutes`` and ``tokens_per_second`` are measured, on ``processor_class``.

    ``teacher`` is a name and the sha256 of its weights, ``watched`` names the held-out texts of ``curve``, ``rates``
    the learning rates by group, ``best_step`` the point that was kept, ``ending`` why the run stopped. A student has
    ``scores`` in place of ``gains``: itself first, then its start and what it is compared with.
    """

    kind: Literal["recover", "distill"]
    teacher: str
    teacher_sha256: ranges.Digest
    data: DataCard
    loss: str
    rates: tuple[tuple[str, ranges.NotNegative], ...]
    seed: ranges.Count
    steps: ranges.Count
    best_step: ranges.Count
    tokens: ranges.Count
    minutes: ranges.Measured
    tokens_per_second: ranges.Measured
    processor_class: str
    ending: str
    watched: tuple[str, ...]
    curve: tuple[CurvePoint, ...]
    gains: tuple[Gain, ...]
    edgekit: str
    torch: str
    scores: tuple[StudentScore, ...] = added_later(())
    on_grid: GridTraining | None = added_later(None)  # noqa: RUF009 - a field
