"""A number with its confidence interval. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.ranges import Measured


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval."""

    value: Measured
    low: Measured
    high: Measured
