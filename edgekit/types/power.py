"""What a meter gives: readings over time. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgekit import ranges


@dataclass(frozen=True)
class TraceHead:
    """The first line of a trace's file; every further line is a ``types.lab.Power``.

    ``unit``: watts at a moment, or joules counted since the first reading. ``resolution``: the smallest step of a
    value, in that unit. ``lag``: seconds by which a value may be older than its time, or its time wrong. ``clock``:
    whose seconds the times are. ``began``: UTC.
    """

    schema: int
    meter: str
    unit: Literal["W", "J"]
    covers: str
    resolution: ranges.NotNegative
    lag: ranges.NotNegative
    clock: str
    began: str
    edgekit: str


@dataclass(frozen=True)
class Trace:
    """Readings of a meter between its start and its stop; ``unit``, ``resolution`` and ``lag`` as in TraceHead.

    ``at``: seconds, rising. ``values``: one each, watts or joules.
    """

    meter: str
    unit: Literal["W", "J"]
    at: tuple[float, ...]
    values: tuple[float, ...]
    resolution: float = 0.0
    lag: float = 0.0
    covers: str = ""


@dataclass(frozen=True)
class Joules:
    """Energy, and the most by which it can be wrong, in joules; a meter's own calibration is not part of that."""

    value: float
    error: float
