"""A meter beside a device: another clock, aligned by bursts; known joules come back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.errors import MeasureError
from edgekit.host.clock import boottime
from edgekit.lab import energy
from edgekit.lab.energy import metered
from edgekit.types import Energy, Task
from edgekit.types.lab import Done, Hello, Mark, Power, Rate
from edgekit.types.power import Trace

IDLE, BUSY, BURST = 2.0, 7.0, 9.0
SKEW, BOOTED = 1.3, 5000.0
HERTZ = 100
PHASES = (
    ("burst 1", 1.5), ("", 2.1), ("burst 2", 1.5), ("", 3.3), ("burst 3", 1.5), ("", 2.7), ("idle", 5.0),
    ("pp64", 2.0), ("tg32@0", 4.0), ("pp64", 2.0), ("tg32@0", 4.0),
    ("idle", 5.0), ("burst 1", 1.5), ("", 2.1), ("burst 2", 1.5), ("", 3.3), ("burst 3", 1.5), ("", 2.7),
)  # fmt: skip


def watts_of(name):
    return BURST if name.startswith("burst") else BUSY if name[:2] in ("pp", "tg", "su") else IDLE


class Beside:
    """A meter whose clock is SKEW seconds ahead; its device's boot was BOOTED seconds after this machine's."""

    name, kind = "simulated socket", "measured"

    def __init__(self, phases=PHASES, fails=False):
        self.phases, self.fails, self.stopped = phases, fails, 0
        self.begun = 0.0

    def start(self):
        self.begun = boottime()

    def stop(self):
        self.stopped += 1
        if self.fails:
            raise MeasureError("simulated socket: no answer", "plug it in")
        return 0.0

    def trace(self):
        edges, at = [], self.begun
        for name, seconds in self.phases:
            edges.append((at, at + seconds, watts_of(name)))
            at += seconds
        times = [self.begun - 6 + n / HERTZ for n in range(int((at - self.begun + 12) * HERTZ))]
        values = [next((w for a, b, w in edges if a <= t < b), IDLE) for t in times]
        return Trace(self.name, "W", tuple(t + SKEW for t in times), tuple(values), covers="the device")


def lines(phases=PHASES):
    """What a driver prints that works through the phases from now on, all at once."""

    def of(task):
        assert task.marks
        assert task.meter == ""
        at = boottime() - BOOTED
        yield Hello(at, "driver", "3.11.2", (), 1, "boot", "dotprod")
        for name, seconds in phases:
            if name:
                yield Mark(at, f"{name} begin")
            at += seconds
            if name.startswith("sustain"):
                yield Rate(at, seconds, 40)
            if name:
                yield Mark(at, f"{name} end")
        yield Done(at)

    return of


@pytest.fixture
def beside(monkeypatch):
    meter = Beside()
    monkeypatch.setattr(energy, "sits_beside", lambda name: name.startswith("socket"))
    monkeypatch.setattr(energy, "open_meter", lambda name: meter)
    return meter


def measured(meter="socket:1", phases=PHASES):
    task = Task("bench", "/bundle")
    return list(metered(lines(phases), task, meter, lambda seconds: None))


def test_the_joules_of_decoding_come_back_within_their_bound(beside):
    *_, done = measured()
    found = done.energy
    assert found.kind == "measured"
    assert found.tokens == 64
    assert found.gross_joules == pytest.approx(8 * BUSY, abs=found.error_joules)
    assert found.net_joules == pytest.approx(8 * (BUSY - IDLE), abs=found.net_error_joules)
    assert found.error_joules < 0.05 * found.gross_joules
    assert found.joules_per_prompt_token == pytest.approx(4 * BUSY / 128, rel=0.05)
    assert found.alignment_residual <= 1.5 / HERTZ


def test_readings_have_the_device_s_time(beside):
    said = measured()
    begin = next(line.at for line in said if isinstance(line, Mark) and line.name == "pp64 begin")
    power = [line for line in said if isinstance(line, Power)]
    rises = next(line.at for line in power if line.value == BUSY)
    assert rises == pytest.approx(begin, abs=0.03)


def test_a_sustained_run_counts_its_tokens(beside):
    phases = tuple(("sustain@0", 8.0) if n.startswith("pp") else (n, s) for n, s in PHASES if not n.startswith("tg"))
    phases = phases[:7] + phases[7:8] + phases[9:]
    beside.phases = phases
    *_, done = measured(phases=phases)
    assert done.energy.tokens == 40
    assert done.energy.gross_joules == pytest.approx(8 * BUSY, abs=done.energy.error_joules)


def test_a_meter_that_fails_later_costs_the_energy_and_not_the_run(beside):
    beside.fails = True
    *_, done = measured()
    assert done.energy == Energy("none", meter=beside.name, reason="simulated socket: no answer (plug it in)")


def test_bursts_that_the_meter_does_not_show_are_no_energy(beside):
    beside.phases = tuple(("", seconds) for _, seconds in PHASES)
    *_, done = measured()
    assert done.energy.kind == "none"
    assert "bursts" in done.energy.reason


def test_the_meter_is_stopped_when_the_run_breaks_off(beside):
    def broken(task):
        yield from list(lines()(task))[:9]
        raise MeasureError("gone", "look")

    with pytest.raises(MeasureError, match="gone"):
        list(metered(broken, Task("bench", "/bundle"), "socket:1", lambda seconds: None))
    assert beside.stopped


def test_a_meter_of_the_device_is_the_driver_s(beside):
    asked = []

    def own(task):
        asked.append(task)
        yield Done(0.0)

    task = Task("bench", "/bundle")
    list(metered(own, task, "hwmon:ina226/power1", lambda seconds: None))
    assert asked == [replace(task, meter="hwmon:ina226/power1")]
