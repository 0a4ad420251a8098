"""Did a device hold its speed: throttling within a run, where a sustained curve levels off, and spread."""

from __future__ import annotations

from math import sqrt
from statistics import median
from typing import TYPE_CHECKING

from edgekit.types.fleet import Curve, Level, Point

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.types.lab import Mark, Power, Rate, Sample
    from edgekit.types.measurement import Measurement

LOST = 0.1
"""Share of the clock or of the tok/s of the run's own first seconds that is lost when a device counts as throttled."""
FIRST_SECONDS = 10.0
"""Length of the run's beginning that the rest is compared with."""
FINE = 0.02
"""Share of the speed that is too little to matter."""
_BATCH_SECONDS = 5.0
_WORK = ("pp", "tg", "sustain", "energy")
"""How marks of workloads begin; others are of loading, idling, bursts and probes."""


def spread_of(values: Sequence[float]) -> float | None:
    """(largest - smallest) / median, None for fewer than two values or a median of zero."""
    if len(values) < 2 or not median(values):
        return None
    return (max(values) - min(values)) / abs(median(values))


def widest_spread(measurement: Measurement) -> tuple[float, str] | None:
    """The largest spread among a run's rounds, and the series that has it; None if each has one round."""
    found = [
        (spread, series.name)
        for series in measurement.series
        if series.unit == "tok/s" and (spread := spread_of(series.samples)) is not None
    ]
    return max(found, default=None)


def find_throttling(rates: Sequence[Rate], samples: Sequence[Sample], marks: Sequence[Mark]) -> str:
    """Return how the device slowed down after its own first seconds, "" if it did not.

    The median of the last third is compared with that of the first FIRST_SECONDS, of the fastest core's clock and of
    tok/s. Clocks count between the first and the last mark of a workload only: an idle core is slow on purpose.
    """
    begin, end = working_time(marks)
    clocks = [(s.at, max(s.clocks_mhz)) for s in samples if s.clocks_mhz and begin <= s.at <= end]
    speeds = [(r.at, r.tokens / r.seconds) for r in rates if r.seconds > 0]
    found = (_fall("clock", "MHz", clocks), _fall("speed", "tok/s", speeds))
    return "; ".join(filter(None, found))


def working_time(marks: Sequence[Mark]) -> tuple[float, float]:
    """The moments of the first and the last mark of a workload; everything if there are no such marks."""
    moments = [mark.at for mark in marks if mark.name.startswith(_WORK)]
    return (min(moments), max(moments)) if moments else (float("-inf"), float("inf"))


def _fall(what: str, unit: str, points: Sequence[tuple[float, float]]) -> str:
    """Describe a fall by more than LOST from the first seconds to the last third of the points."""
    if not points:
        return ""
    start, stop = points[0][0], points[-1][0]
    edge = min(start + FIRST_SECONDS, start + (stop - start) / 3)
    early = [value for at, value in points if at <= edge]
    late = [value for at, value in points if at >= stop - (stop - start) / 3]
    if min(len(early), len(late)) < 2:
        return ""
    before, after = median(early), median(late)
    if after >= (1 - LOST) * before:
        return ""
    return f"{what} fell from {before:.4g} to {after:.4g} {unit}"


def find_level(rates: Sequence[Rate]) -> Level | None:
    """Find where a sustained curve levels off.

    MSER-5 (K. P. White Jr., M. J. Cobb, S. C. Spratt, A comparison of five steady-state truncation heuristics for
    simulation, Winter Simulation Conference 2000): rates are averaged in batches, here of five seconds instead of five
    observations, and the beginning is cut where the standard error of what remains is smallest. Each batch counts with
    a variance of at least FINE squared, so that a quiet curve is not cut for what no one would notice. If that leaves
    less than half of the curve, or if first and last third of the rest differ by more than twice FINE, it has not
    levelled off. The interval is Student's t over the remaining batches.

    Returns:
        None if the curve is too short, or still falls (or rises) at its end.
    """
    batches = _batches(rates)
    if len(batches) < 8:
        return None
    values = [value for _, value in batches]
    cut = min(range(len(values) - 4), key=lambda d: _standard_error(values[d:], FINE))
    if cut > len(values) / 2:
        return None
    rest = values[cut:]
    mean = sum(rest) / len(rest)
    third = len(rest) // 3
    if abs(sum(rest[:third]) - sum(rest[-third:])) > 2 * FINE * mean * third:
        return None
    from scipy.stats import sem, t

    reach = float(t.ppf(0.975, len(rest) - 1) * sem(rest))
    after = batches[cut][0] - rates[0].at + rates[0].seconds
    return Level(after=after, tok_s=mean, low=mean - reach, high=mean + reach)


def _standard_error(values: Sequence[float], least: float = 0.0) -> float:
    """The marginal standard error as MSER defines it: the root of the sum of squares, over n.

    ``least``: standard deviation relative to the mean that each value has at least.
    """
    mean = sum(values) / len(values)
    return sqrt(sum((v - mean) ** 2 for v in values) + len(values) * (least * mean) ** 2) / len(values)


def _batches(rates: Sequence[Rate]) -> list[tuple[float, float]]:
    """The moment at which each batch began, and its tok/s. An unfinished batch at the end is left out."""
    found: list[tuple[float, float]] = []
    seconds, tokens = 0.0, 0
    for rate in rates:
        seconds, tokens = seconds + rate.seconds, tokens + rate.tokens
        if seconds >= _BATCH_SECONDS:
            found.append((rate.at - seconds, tokens / seconds))
            seconds, tokens = 0.0, 0
    return found


def curve_of(rates: Sequence[Rate], samples: Sequence[Sample], power: Sequence[Power], marks: Sequence[Mark]) -> Curve:
    """A sustained run over time: tok/s of each Rate, with the nearest reading of everything else.

    Args:
        rates: one at least.
        samples: of the device, during the run.
        power: readings in watts.
        marks: of the run.
    """
    start = rates[0].at - rates[0].seconds
    celsius = [(s.at, s.hottest) for s in samples if s.hottest is not None]
    clocks = [(s.at, max(s.clocks_mhz)) for s in samples if s.clocks_mhz]
    watts = [(p.at, p.value) for p in power]
    points = tuple(
        Point(
            seconds=rate.at - start,
            tok_s=rate.tokens / rate.seconds if rate.seconds else None,
            celsius=_nearest(celsius, rate.at),
            clock_mhz=_nearest(clocks, rate.at),
            watts=_mean_between(watts, rate.at - rate.seconds, rate.at),
        )
        for rate in rates
    )
    return Curve(points, find_level(rates), find_throttling(rates, samples, marks))


def _nearest(points: Sequence[tuple[float, float]], at: float, within: float = 5.0) -> float | None:
    """The value nearest to a moment, None if there is none within some seconds."""
    found = min(points, key=lambda point: abs(point[0] - at), default=None)
    return found[1] if found and abs(found[0] - at) <= within else None


def _mean_between(points: Sequence[tuple[float, float]], begin: float, end: float) -> float | None:
    inside = [value for at, value in points if begin < at <= end]
    return sum(inside) / len(inside) if inside else None
