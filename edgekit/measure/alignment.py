"""The clock of a meter beside a device, by bursts of load that the device's driver left as marks.

The driver works and rests in turn and says when: ``burst 1 begin``, ``burst 1 end``. In the meter's trace the bursts
are looked for up to MOST_SKEW seconds away; each rise and fall then gives one difference of the two clocks, and the
straight line through them is the alignment. Bursts at the start and at the end of a run give the drift as well.

Bursts and rests between them should have different lengths, so that no other place in the trace looks like them.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import median
from typing import TYPE_CHECKING

from edgekit.errors import MeasureError
from edgekit.measure.trace import period, watts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.types.lab import Mark
    from edgekit.types.power import Trace

MOST_SKEW = 5.0
"""Seconds between the two clocks, at most."""

MOST_DRIFT = 100e-6
"""Seconds per second by which they move apart, at most."""

GROUP = 10.0
"""Bursts with a shorter rest between them belong together."""

_BURST = re.compile(r"burst (\d+) (begin|end)")
_HINT = "keep the device idle between the bursts, let the meter run before and after the run, and set both clocks"


@dataclass(frozen=True)
class Alignment:
    """From the device's clock to the meter's: ``at + offset + drift * (at - origin)``.

    ``residual``: seconds, the farthest that a rise or fall of power is from where the line puts it. ``first``,
    ``last``: the device's times of the outermost of them.
    """

    origin: float
    offset: float
    drift: float
    residual: float
    first: float
    last: float
    edges: int

    def to_meter(self, at: float) -> float:
        """The meter's time of a moment of the device's clock."""
        return at + self.offset + self.drift * (at - self.origin)

    def doubt(self, at: float) -> float:
        """Seconds by which that may be wrong: the residual, and away from the bursts what clocks may drift apart."""
        return self.residual + 2 * MOST_DRIFT * max(self.first - at, at - self.last, 0.0)


def align(trace: Trace, marks: Sequence[Mark]) -> Alignment:
    """Find the bursts of the marks in the trace.

    Raises:
        MeasureError: there are no two bursts with a rest between, they are not in the trace, or in more than one place.
    """
    groups = _groups(marks)
    power, usual = _Power(watts(trace)), period(trace)
    pairs: list[tuple[float, float]] = []
    offset, width, since = 0.0, MOST_SKEW, groups[0][0][0]
    for group in groups:
        begin = group[0][0]
        offset = _search(power, group, offset, width + MOST_DRIFT * (begin - since), usual)
        pairs += _edges(power, group, offset)
        width, since = 2 * _shortest(group) / 8 + usual, begin
    return _line(pairs, usual + trace.lag)


def _groups(marks: Sequence[Mark]) -> list[list[tuple[float, float]]]:
    """Bursts as (begin, end), those that belong together in one list of two or more."""
    begun: dict[str, float] = {}
    bursts: list[tuple[float, float]] = []
    for mark in marks:
        if found := _BURST.fullmatch(mark.name):
            if found[2] == "begin":
                begun[found[1]] = mark.at
            elif found[1] in begun:
                bursts.append((begun.pop(found[1]), mark.at))
    bursts.sort()
    groups: list[list[tuple[float, float]]] = []
    for burst in bursts:
        if groups and burst[0] - groups[-1][-1][1] < GROUP:
            groups[-1].append(burst)
        else:
            groups.append([burst])
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        raise MeasureError(
            f"{len(bursts)} bursts of load are marked, and two with a rest between them are needed",
            "let the driver leave bursts: its task has `marks`",
        )
    return groups


class _Power:
    """A trace as power, with its running integral."""

    def __init__(self, points: list[tuple[float, float]]) -> None:
        self.at = [t for t, _ in points]
        self.watts = [w for _, w in points]
        pieces = ((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in pairwise(points))
        self._sums = list(accumulate(pieces, initial=0.0))

    def _to(self, moment: float) -> float:
        i = min(max(bisect_right(self.at, moment) - 1, 0), len(self.at) - 2)
        share = (moment - self.at[i]) / (self.at[i + 1] - self.at[i])
        return self._sums[i] + share * (self._sums[i + 1] - self._sums[i])

    def mean(self, begin: float, end: float) -> float:
        return (self._to(end) - self._to(begin)) / (end - begin)

    def holds(self, begin: float, end: float) -> bool:
        return self.at[0] <= begin and end <= self.at[-1]

    def crossing(self, expected: float, around: float, level: float, rises: bool) -> float | None:
        """Where the power passes a level in a direction, nearest to what is expected."""
        found = []
        first = max(bisect_right(self.at, expected - around) - 1, 0)
        for i in range(first, len(self.at) - 1):
            t0, t1, w0, w1 = self.at[i], self.at[i + 1], self.watts[i], self.watts[i + 1]
            if t0 > expected + around:
                break
            if (w0 < level <= w1) if rises else (w0 >= level > w1):
                found.append(t0 + (level - w0) / (w1 - w0) * (t1 - t0))
        near = [at for at in found if abs(at - expected) <= around]
        return min(near, key=lambda at: abs(at - expected), default=None)


def _rests(group: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(end, begin) for (_, end), (begin, _) in pairwise(group)]


def _shortest(group: list[tuple[float, float]]) -> float:
    return min(b - a for a, b in (*group, *_rests(group)))


def _contrast(power: _Power, group: list[tuple[float, float]], offset: float) -> float:
    """The least power of a burst less the most of a rest, at an offset."""
    bursts = [power.mean(a + offset, b + offset) for a, b in group]
    rests = [power.mean(a + offset, b + offset) for a, b in _rests(group)]
    return min(bursts) - max(rests)


def _search(power: _Power, group: list[tuple[float, float]], middle: float, width: float, usual: float) -> float:
    """The offset at which the bursts fit best; no other that is a burst away may fit nearly as well."""
    step = _shortest(group) / 8
    if usual > 2 * step:
        raise MeasureError(
            f"a reading every {usual:.2f} s does not show bursts of {8 * step:.2f} s",
            "use a faster meter, or longer bursts",
        )
    count = int(width / step) + 1
    scores = {
        middle + k * step: _contrast(power, group, middle + k * step)
        for k in range(-count, count + 1)
        if power.holds(group[0][0] + middle + k * step, group[-1][1] + middle + k * step)
    }
    best = max(scores, key=lambda o: scores[o], default=None)
    swing = max(power.watts) - min(power.watts)
    if best is None or scores[best] <= 0.2 * swing:
        raise MeasureError("the bursts of load are not in the meter's trace", _HINT)
    others = [score for o, score in scores.items() if abs(o - best) > 4 * step]
    if max(others, default=0.0) > 0.8 * scores[best]:
        raise MeasureError("the bursts of load fit the meter's trace in two places", _HINT)
    return best


def _edges(power: _Power, group: list[tuple[float, float]], offset: float) -> list[tuple[float, float]]:
    """(device's time, meter's less device's) of each rise and fall that is found."""
    around = _shortest(group) / 2
    inner = [(a + (b - a) / 4, b - (b - a) / 4) for a, b in group]
    quiet = [(a + (b - a) / 4, b - (b - a) / 4) for a, b in _rests(group)]
    high = median(power.mean(a + offset, b + offset) for a, b in inner)
    low = median(power.mean(a + offset, b + offset) for a, b in quiet)
    # What is before the first burst and after the last may be anything, so only edges at a rest count.
    edges = [(begin, True) for begin, _ in group[1:]] + [(end, False) for _, end in group[:-1]]
    pairs = []
    for at, rises in edges:
        found = power.crossing(at + offset, around, (high + low) / 2, rises)
        if found is not None:
            pairs.append((at, found - at))
    if len(pairs) < len(edges):
        raise MeasureError(f"{len(edges) - len(pairs)} of {len(edges)} edges of the bursts are not in the trace", _HINT)
    return pairs


def _line(pairs: list[tuple[float, float]], doubt: float) -> Alignment:
    """The line through the edges: the slope of least squares inside the allowed drift, then the middle of the range.

    An edge is anywhere between two readings, so its error is uniform, and the middle of the range is the best estimate.
    """
    n = len(pairs)
    origin, middle = sum(at for at, _ in pairs) / n, sum(y for _, y in pairs) / n
    first, last = min(at for at, _ in pairs), max(at for at, _ in pairs)
    slope = sum((at - origin) * (y - middle) for at, y in pairs) / sum((at - origin) ** 2 for at, _ in pairs)
    if abs(slope) > MOST_DRIFT + 2 * doubt / (last - first):
        raise MeasureError(f"the meter's clock drifts by {slope * 1e6:.0f} ppm", "use a meter with a better clock")
    drift = max(-MOST_DRIFT, min(slope, MOST_DRIFT))
    rest = [y - drift * (at - origin) for at, y in pairs]
    offset, residual = (max(rest) + min(rest)) / 2, (max(rest) - min(rest)) / 2
    if residual > 2 * doubt:
        raise MeasureError(f"the bursts of load are up to {residual:.3f} s from where they should be", _HINT)
    return Alignment(origin, offset, drift, residual, first, last, n)
