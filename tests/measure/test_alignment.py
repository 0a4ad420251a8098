"""Clocks of a device and of a meter beside it."""

from __future__ import annotations

import random

import pytest

from benchmarks.energy import align_once
from edgekit.errors import MeasureError
from edgekit.measure.alignment import align
from edgekit.types.lab import Mark
from edgekit.types.power import Trace

BURSTS = ((10.0, 11.0), (11.8, 13.3), (15.0, 16.2))
LATE = tuple((a + 400, b + 400) for a, b in BURSTS)


def marks(bursts=BURSTS + LATE):
    return [m for n, (a, b) in enumerate(bursts) for m in (Mark(a, f"burst {n} begin"), Mark(b, f"burst {n} end"))]


def trace(skew=0.0, drift=0.0, bursts=BURSTS + LATE, hertz=50.0, unit="W", high=6.0, seconds=430):
    def power(t):
        return high if any(a <= t < b for a, b in bursts) else 1.0

    times = [i / hertz for i in range(int(seconds * hertz))]
    values = [power(t) for t in times]
    if unit == "J":
        total, sums = 0.0, []
        for value in values:
            sums.append(total)
            total += value / hertz
        values = sums
    return Trace("m", unit, tuple(t + skew + drift * t for t in times), tuple(values))


@pytest.mark.parametrize("unit", ["W", "J"])
@pytest.mark.parametrize(("skew", "drift"), [(0.0, 0.0), (4.9, 95e-6), (-4.9, -95e-6), (0.33, 95e-6)])
def test_offset_and_drift_are_found(unit, skew, drift):
    found = align(trace(skew, drift, unit=unit), marks())
    assert found.edges == 8
    assert found.residual <= 1 / 50
    for at in (10.0, 200.0, 416.0):
        assert found.to_meter(at) == pytest.approx(at + skew + drift * at, abs=1 / 50)
    assert found.doubt(200.0) == found.residual
    assert found.doubt(found.last + 1000) == pytest.approx(found.residual + 0.2)


def test_simulated_clocks_are_aligned_within_a_sample():
    rng = random.Random(3)
    for _ in range(5):
        run = align_once(rng)
        assert run.error <= run.period
        assert run.residual <= run.period


@pytest.mark.parametrize(
    ("found", "left", "message"),
    [
        (trace(bursts=()), marks(), "not in the meter's trace"),
        (trace(skew=9.0), marks(), "not in the meter's trace"),
        (trace(seconds=14), marks(), "not in the meter's trace"),
        (trace(bursts=BURSTS), marks(), "not in the meter's trace"),
        (trace(drift=500e-6), marks(), "drift|not in the meter's trace"),
        (trace(), [], "0 bursts of load are marked"),
        (trace(), marks(BURSTS[:1]), "1 bursts of load are marked"),
        (trace(hertz=2), marks(), "a reading every 0.50 s does not show bursts"),
        (
            trace(bursts=[(a / 1.0, a + 1.0) for a in range(0, 40, 2)], seconds=40),
            marks([(10.0, 11.0), (12.0, 13.0), (14.0, 15.0)]),
            "in two places",
        ),
    ],
)
def test_bursts_that_are_not_found_are_refused(found, left, message):
    with pytest.raises(MeasureError, match=message) as caught:
        align(found, left)
    assert caught.value.hint
