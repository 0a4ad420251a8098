"""Joules between two moments of a meter's trace, with a bound of their error. Standard library only.

Watts are integrated by the trapezoid rule. Between two readings the power may be anything between the smallest and
the largest of these two and their neighbours, and in a gap anything that the meter has shown: what the rule can be
wrong by, readings' rounding, and the age that readings can have, add up to the bound. So a load must show in the
readings: what rises and falls again between two of them is not seen.

Counted joules are exact at each reading but for rounding and age: only the two ends count, whatever happens between.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import pairwise
from math import isfinite
from statistics import median
from typing import TYPE_CHECKING

from edgekit.errors import MeasureError
from edgekit.types.power import Joules, Trace

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_WATTS = 1e5
"""More than any device that runs a model draws."""

GAP = 2.5
"""Readings further apart than this many periods have a gap between them."""

_CHECK = "check the meter's wiring, range and driver, or use another meter"


def check_trace(trace: Trace) -> Trace:
    """Return the trace if its readings can be those of a meter.

    Raises:
        MeasureError: fewer than two readings, times that stand or go back, watts below zero, joules that go back, NaN,
            or more than MOST_WATTS.
    """
    if len(trace.at) < 2 or len(trace.at) != len(trace.values):
        raise MeasureError(f"{trace.meter}: {len(trace.at)} readings", "measure for longer; check that the meter runs")
    for at, value in zip(trace.at, trace.values, strict=True):
        if not (isfinite(at) and isfinite(value)):
            raise MeasureError(f"{trace.meter} reads {value} {trace.unit} at {at} s", _CHECK)
    for (t0, t1), (v0, v1) in zip(pairwise(trace.at), pairwise(trace.values), strict=True):
        if t1 <= t0:
            raise MeasureError(f"{trace.meter}: its time goes from {t0:.6f} s back to {t1:.6f} s", _CHECK)
        watts = v1 if trace.unit == "W" else max(v1 - v0 - trace.resolution, min(v1 - v0, 0)) / (t1 - t0 + trace.lag)
        if watts < 0 or (trace.unit == "W" and v0 < 0):
            raise MeasureError(f"{trace.meter} reads less than zero: {min(v0, v1, watts):g}", _BACKWARDS)
        if watts > MOST_WATTS or (trace.unit == "W" and v0 > MOST_WATTS):
            raise MeasureError(f"{trace.meter} jumps to {max(watts, v0, v1):.3g} {trace.unit}", _CHECK)
    return trace


_BACKWARDS = "connect the meter the other way round, or unplug what charges the device"


def period(trace: Trace) -> float:
    """Seconds between two readings: the median."""
    return median(b - a for a, b in pairwise(trace.at))


def joules(trace: Trace, begin: float | None = None, end: float | None = None, *, shift: float = 0.0) -> Joules:
    """The energy from ``begin`` to ``end``.

    Args:
        trace: a checked trace.
        begin: seconds of the trace's clock; by default its first reading.
        end: by default its last reading.
        shift: seconds by which ``begin`` and ``end`` may each be wrong.

    Raises:
        MeasureError: the trace does not cover that time.
    """
    begin = trace.at[0] if begin is None else begin
    end = trace.at[-1] if end is None else end
    usual = period(trace)
    if not (trace.at[0] - GAP * usual <= begin < end <= trace.at[-1] + GAP * usual):
        raise MeasureError(
            f"{trace.meter} was read from {trace.at[0]:.3f} s to {trace.at[-1]:.3f} s, the work lasted from "
            f"{begin:.3f} s to {end:.3f} s",
            "start the meter before the work and stop it afterwards",
        )
    found = (_sampled if trace.unit == "W" else _counted)(trace, begin, end, usual)
    if not shift:
        return found
    sides = sum(_most(trace, at - shift, at + shift, usual) for at in (begin, end))
    return Joules(found.value, found.error + shift * sides)


def watts(trace: Trace) -> list[tuple[float, float]]:
    """The trace as (seconds, watts); of counted joules the mean between two readings, at their middle."""
    if trace.unit == "W":
        return list(zip(trace.at, trace.values, strict=True))
    pairs = zip(pairwise(trace.at), pairwise(trace.values), strict=True)
    return [((t0 + t1) / 2, (v1 - v0) / (t1 - t0)) for (t0, t1), (v0, v1) in pairs]


def _most(trace: Trace, begin: float, end: float, usual: float) -> float:
    """The highest power around a time."""
    around = [w for at, w in watts(trace) if begin - GAP * usual <= at <= end + GAP * usual]
    return max(around, default=max(w for _, w in watts(trace)))


def _sampled(trace: Trace, begin: float, end: float, usual: float) -> Joules:
    """Integrate by trapezoids.

    With means m, half ranges r, and times that are each wrong by up to the lag, summation by parts gives at most
    lag * (variation of m + variation of r + r at both ends) on top of the sum of r * dt.
    """
    at, values = trace.at, trace.values
    first, last = max(bisect_right(at, begin) - 1, 0), min(bisect_left(at, end), len(at) - 1)
    least, most = min(values), max(values)
    total = error = variation = 0.0
    before: tuple[float, float] | None = None
    pieces = list(_pieces(at, values, begin, end, first, last))
    for i, (t0, w0, t1, w1) in pieces:
        near = values[max(i - 1, 0) : i + 3]
        low, high = (least, most) if at[min(i + 1, len(at) - 1)] - at[i] > GAP * usual else (min(near), max(near))
        mean = (w0 + w1) / 2
        radius = max(high - mean, mean - low) + trace.resolution / 2
        total += mean * (t1 - t0)
        error += radius * (t1 - t0)
        variation += abs(mean - before[0]) + abs(radius - before[1]) if before else radius
        before = mean, radius
    variation += before[1] if before else 0.0
    seconds = end - begin
    extreme = max(most * seconds - total, total - least * seconds) + seconds * trace.resolution / 2
    return Joules(total, min(error + trace.lag * variation, extreme))


def _pieces(
    at: Sequence[float], values: Sequence[float], begin: float, end: float, first: int, last: int
) -> list[tuple[int, tuple[float, float, float, float]]]:
    """(index, (t0, w0, t1, w1)) of the pieces from begin to end; outside of the readings the nearest one holds."""

    def value(t: float, i: int) -> float:
        if t <= at[i] or i + 1 >= len(at):
            return values[i]
        return values[i] + (values[i + 1] - values[i]) * min((t - at[i]) / (at[i + 1] - at[i]), 1.0)

    pieces = []
    if begin < at[0]:
        stop = min(at[0], end)
        pieces.append((0, (begin, values[0], stop, values[0])))
    for i in range(first, last):
        t0, t1 = max(begin, at[i]), min(end, at[i + 1])
        if t1 > t0:
            pieces.append((i, (t0, value(t0, i), t1, value(t1, i))))
    if end > at[-1]:
        pieces.append((len(at) - 1, (max(at[-1], begin), values[-1], end, values[-1])))
    return pieces


def _counted(trace: Trace, begin: float, end: float, usual: float) -> Joules:
    most = max((v1 - v0) / max(t1 - t0, trace.lag, usual) for (t0, t1), (v0, v1) in _steps(trace))
    low0, mid0, high0 = _count(trace, begin, most)
    low1, mid1, high1 = _count(trace, end, most)
    return Joules(mid1 - mid0, max(high1 - mid1, mid1 - low1) + max(high0 - mid0, mid0 - low0))


def _steps(trace: Trace) -> zip[tuple[tuple[float, float], tuple[float, float]]]:
    return zip(pairwise(trace.at), pairwise(trace.values), strict=True)


def _count(trace: Trace, moment: float, most: float) -> tuple[float, float, float]:
    """The least, likely and largest joules counted at a moment.

    A reading is a lower bound from its time on, and an upper bound (with its rounding) until its time less its lag.
    """
    at, values = trace.at, trace.values
    before, after = bisect_right(at, moment) - 1, bisect_left(at, moment + trace.lag)
    low = values[before] if before >= 0 else values[0] - most * (at[0] - moment)
    beyond = max(moment + trace.lag - at[-1], 0.0)
    high = (values[after] if after < len(at) else values[-1] + most * beyond) + trace.resolution
    if before < 0:
        likely = (low + values[0]) / 2
    elif before == len(at) - 1:
        likely = values[-1] + most * (moment - at[-1]) / 2
    else:
        share = (moment - at[before]) / (at[before + 1] - at[before])
        likely = values[before] + share * (values[before + 1] - values[before])
    return low, min(max(likely, low), high), high
