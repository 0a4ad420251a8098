"""Are joules inside their stated bound, and clocks aligned within a sample? Traces of known energy are replayed.

    python -m benchmarks.energy [--traces 1000] [--seed 0]

A load is levels and ramps of known power. A simulated meter reads it 10 to 1,000 times a second, with irregular times,
readings that are older than their time, rounding and gaps; or it counts joules and wraps around. The same functions
that `bench` and the lab use then give the joules between two marks. For clocks, a meter's clock is up to 5 s and
100 ppm away, and bursts at the start and at the end of a run are looked for in its trace.
"""

from __future__ import annotations

import argparse
import random
import sys
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from statistics import median

from edgekit.measure.alignment import align
from edgekit.measure.sampling import Register
from edgekit.measure.trace import check_trace, joules
from edgekit.types.lab import Mark
from edgekit.types.power import Trace

LEAST_LEVEL = 1.0
"""Seconds that a level or ramp lasts at least."""


class Load:
    """Power over time: straight pieces (begin, watts, end, watts)."""

    def __init__(self, pieces: list[tuple[float, float, float, float]]) -> None:
        self._begins = [p[0] for p in pieces]
        self._pieces = pieces
        self._sums = list(accumulate(((t1 - t0) * (w0 + w1) / 2 for t0, w0, t1, w1 in pieces), initial=0.0))

    def _piece(self, at: float) -> int:
        return min(max(bisect_right(self._begins, at) - 1, 0), len(self._pieces) - 1)

    def watts(self, at: float) -> float:
        """The power at a moment."""
        t0, w0, t1, w1 = self._pieces[self._piece(at)]
        return w0 + (w1 - w0) * (at - t0) / (t1 - t0)

    def joules(self, at: float) -> float:
        """The energy until a moment."""
        i = self._piece(at)
        t0, w0, _, _ = self._pieces[i]
        return self._sums[i] + (at - t0) * (w0 + self.watts(at)) / 2


def made_load(rng: random.Random, seconds: float) -> Load:
    """Levels of 0.5 to 15 W of 1 to 8 s; a third of the pieces are ramps."""
    at, level, pieces = 0.0, rng.uniform(0.5, 15), []
    while at < seconds:
        end, after = at + rng.uniform(LEAST_LEVEL, 8), rng.uniform(0.5, 15)
        ramp = rng.random() < 1 / 3
        pieces.append((at, level, end, after if ramp else level))
        at, level = end, after
    return Load(pieces)


def made_times(rng: random.Random, seconds: float, hertz: float, gaps: int) -> list[float]:
    """Irregular times, up to 30 % of a period early or late, without those in the gaps."""
    times = [(i + rng.uniform(-0.3, 0.3)) / hertz for i in range(1, int(seconds * hertz))]
    for _ in range(gaps):
        begin, length = rng.uniform(0.1, 0.9) * seconds, rng.uniform(3 / hertz, max(0.8, 4 / hertz))
        times = [t for t in times if not begin < t < begin + length]
    return times


def read_watts(rng: random.Random, load: Load, times: list[float], lag: float, step: float) -> Trace:
    """A meter that reads watts which are up to ``lag`` old, rounded to ``step``."""
    values = [round(load.watts(max(t - rng.uniform(0, lag), 0.0)) / step) * step for t in times]
    return check_trace(Trace("replayed", "W", tuple(times), tuple(values), resolution=step, lag=lag))


def count_joules(rng: random.Random, load: Load, times: list[float], lag: float, step: float) -> Trace:
    """A counter that is brought up to date every ``lag`` seconds and wraps around several times."""
    last = int(rng.uniform(40, 400) / step)
    start = rng.randrange(last)
    phase = rng.uniform(0, lag)
    fresh = [max((t - phase) // lag * lag + phase, 0.0) if lag else t for t in times]
    raw = [(start + int(load.joules(t) / step)) % (last + 1) for t in fresh]
    values = Register(lambda: 0, step, last).count(times, raw)
    return check_trace(Trace("replayed", "J", tuple(times), tuple(values), resolution=step, lag=lag))


@dataclass(frozen=True)
class Replay:
    """One trace: joules, their bound, what they truly were, and whether it had gaps."""

    kind: str
    hertz: float
    found: float
    bound: float
    true: float
    gaps: int

    @property
    def inside(self) -> bool:
        """Whether the truth is inside the bound; a billionth is for floating point."""
        return abs(self.found - self.true) <= self.bound + 1e-9 * self.true


def replay(rng: random.Random, kind: str = "", hertz: float = 0.0, gaps: int | None = None) -> Replay:
    """Make a load and a meter, and integrate between two marks at random."""
    kind = kind or rng.choice(("watts", "watts", "joules"))
    hertz = hertz or 10 ** rng.uniform(1, 3)
    gaps = rng.choice((0, 0, 1, 2, 3)) if gaps is None else gaps
    seconds = rng.uniform(20, 40)
    load = made_load(rng, seconds)
    times = made_times(rng, seconds, hertz, gaps)
    lag = rng.choice((0.0, rng.uniform(0.0, 0.3) / hertz))
    if kind == "watts":
        trace = read_watts(rng, load, times, lag, 10 ** rng.uniform(-4, -1.5))
    else:
        trace = count_joules(rng, load, times, lag, 10 ** rng.uniform(-6, -2))
    begin = rng.uniform(times[0], times[0] + 0.2 * seconds)
    end = rng.uniform(times[-1] - 0.2 * seconds, times[-1])
    found = joules(trace, begin, end)
    return Replay(kind, hertz, found.value, found.error, load.joules(end) - load.joules(begin), gaps)


BURSTS = ((0.0, 1.0), (1.8, 3.3), (5.0, 6.2))
"""Begin and end, in seconds, of the bursts of a group: no two lengths or rests are the same."""


@dataclass(frozen=True)
class Clock:
    """One alignment: the truth's largest distance from the line, the residual it tells, and the period."""

    error: float
    residual: float
    period: float


def align_once(rng: random.Random) -> Clock:
    """Bursts before and after 20 to 600 s of work, read by a meter whose clock is off."""
    hertz = 10 ** rng.uniform(1, 3)
    work = rng.uniform(20, min(600.0, 40_000 / hertz))
    skew, drift = rng.uniform(-5, 5), rng.uniform(-100e-6, 100e-6)
    idle, high = rng.uniform(0.5, 2), rng.uniform(4, 12)
    first, second = 8.0, 8.0 + BURSTS[-1][1] + 2 + work + 2
    marks, pieces, at = [], [], 0.0
    for g, base in enumerate((first, second)):
        for b, (begin, end) in enumerate(BURSTS):
            name = f"burst {g * len(BURSTS) + b + 1}"
            marks += [Mark(base + begin, f"{name} begin"), Mark(base + end, f"{name} end")]
            pieces += [(at, idle, base + begin, idle), (base + begin, high, base + end, high)]
            at = base + end
        if g == 0:
            inner = at + 2
            pieces.append((at, idle, inner, idle))
            while inner < second - 2:
                stop = min(inner + rng.uniform(1, 6), second - 2)
                level = rng.uniform(idle, 1.2 * high)
                pieces.append((inner, level, stop, level))
                inner = stop
            at = inner
    pieces.append((at, idle, at + 10, idle))
    load, seconds = Load(pieces), at + 10
    times = [t for t in made_times(rng, seconds, hertz, 0) if t > 0]
    values = [max(load.watts(t) * rng.gauss(1, 0.01), 0.0) for t in times]
    clock = tuple(t + skew + drift * t + 100 for t in times)
    trace = check_trace(Trace("beside", "W", clock, tuple(values)))
    # Marks are on a clock that is 100 s away, as the coarse setting of both clocks tells.
    moved = [Mark(m.at + 100, m.name) for m in marks]
    found = align(trace, moved)
    error = max(abs(found.to_meter(m.at + 100) - (m.at + skew + drift * m.at + 100)) for m in marks)
    return Clock(error, found.residual, 1 / hertz)


def main() -> int:
    """Print the table; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    runs = [replay(rng) for _ in range(options.traces)]
    for kind in ("watts", "joules"):
        show(f"{kind}, 10 Hz to 1 kHz", [r for r in runs if r.kind == kind])
    inside = sum(r.inside for r in runs) / len(runs)
    print(f"inside the bound: {inside:.1%} of {len(runs)} (goal: 100 %)")
    count = max(options.traces // 5, 10)
    plain = [replay(rng, "watts", 100.0, 0) for _ in range(count)]
    gappy = [replay(rng, "watts", 100.0, 2) for _ in range(count)]
    show("watts at 100 Hz, no gaps (goal: a bound of 2 %)", plain)
    show("watts at 100 Hz, two gaps of up to 0.8 s", gappy)
    clocks = [align_once(rng) for _ in range(count)]
    errors, residuals = [c.error / c.period for c in clocks], [c.residual / c.period for c in clocks]
    print(
        f"clocks, {count} runs, up to 5 s and 100 ppm: error median {median(errors):.2f}, most {max(errors):.2f} "
        f"samples; residual median {median(residuals):.2f}, most {max(residuals):.2f} samples (goal: 1)"
    )
    ok = all(r.inside for r in (*runs, *plain, *gappy)) and max(*errors, *residuals) <= 1
    ok = ok and max(r.bound / r.true for r in plain) <= 0.02
    print("every goal is reached" if ok else "a goal is missed")
    return 0 if ok else 1


def show(what: str, runs: list[Replay]) -> None:
    """Print a row."""
    wrong, bounds = [abs(r.found - r.true) / r.true for r in runs], [r.bound / r.true for r in runs]
    print(
        f"{what}: {sum(r.inside for r in runs)} of {len(runs)} inside; bound median {median(bounds):.2%}, "
        f"most {max(bounds):.2%}; error median {median(wrong):.3%}, most {max(wrong):.2%}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
