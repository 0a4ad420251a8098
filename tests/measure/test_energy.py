"""Gross and net energy of a piece of work, with the idle power around it."""

from __future__ import annotations

import pytest

from edgekit.errors import MeasureError
from edgekit.measure import energy
from edgekit.measure.energy import meter_energy
from edgekit.measure.sampling import Poll, SampledProbe, trapezoid


class Script:
    """A meter that gives the joules it was told to, one stop() after the other."""

    name, kind = "script", "measured"

    def __init__(self, *joules: float) -> None:
        self._joules = iter(joules)

    def start(self) -> None:
        pass

    def stop(self) -> float:
        value = next(self._joules)
        if value < 0:
            raise MeasureError("the meter fell off", "put it back")
        return value


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Sleeping and working take the seconds they say, at once."""
    now = [0.0]
    monkeypatch.setattr(energy, "perf_counter", lambda: now[0])
    monkeypatch.setattr(energy, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    return now


def work_of(clock, seconds, tokens=128):
    def work():
        clock[0] += seconds
        return tokens

    return work


def test_gross_and_net(clock):
    # 4 s of idle at 2 W, 10 s of work at 50 J, 4 s of idle at 3 W.
    got = meter_energy(Script(8.0, 50.0, 12.0), work_of(clock, 10), what="decode", idle_seconds=4)
    assert got.kind == "measured"
    assert got.meter == "script"
    assert (got.idle_watts_before, got.idle_watts_after) == (2.0, 3.0)
    assert (got.gross_joules, got.seconds, got.tokens) == (50.0, 10.0, 128)
    assert got.net_joules == pytest.approx(50.0 - 2.5 * 10)
    assert "decode" in got.formula


def test_a_meter_that_stands_still_gives_none_and_no_zero(clock):
    got = meter_energy(Script(0.0, 0.0, 0.0), work_of(clock, 3), idle_seconds=1)
    assert got.kind == "none"
    assert got.gross_joules is None
    assert got.net_joules is None
    assert "did not move" in got.reason


def test_a_meter_that_fails_gives_none_with_the_reason(clock):
    got = meter_energy(Script(1.0, -1.0), work_of(clock, 3), idle_seconds=1)
    assert got.kind == "none"
    assert got.reason == "the meter fell off (put it back)"


def test_an_error_of_the_work_is_not_swallowed():
    def fail():
        raise ValueError("the work")

    meter = Script(1.0, -1.0, 1.0)
    with pytest.raises(ValueError, match="the work"):
        meter_energy(meter, fail, idle_seconds=1)
    assert meter.stop() == 1.0  # it was stopped twice: after the idle reading, and when the work failed


def test_trapezoid_against_an_integral():
    samples = [(t / 10, 3 * t / 10 + 1) for t in range(21)]  # w = 3 t + 1 over 0..2 s
    assert trapezoid(samples) == pytest.approx(3 * 2**2 / 2 + 2)
    assert trapezoid(samples[:1]) == 0


def test_a_sampled_meter_samples_between_start_and_stop():
    seen = []
    enough = energy_event()

    def watts():
        seen.append(1)
        if len(seen) >= 5:
            enough.set()
        return 2.0

    probe = SampledProbe("p", watts, hertz=500)
    assert probe.name == "p, sampled at 500 Hz, trapezoid rule"
    probe.start()
    assert enough.wait(10)
    assert probe.stop() > 0
    assert len(seen) >= 6  # five while it ran and the last at stop()


def test_an_error_in_the_thread_comes_out_of_stop():
    failed = energy_event()
    count = iter(range(10))

    def take():
        if next(count) == 1:
            failed.set()
            raise MeasureError("gone", "plug it in")

    poll = Poll(take, hertz=500)
    poll.start()
    assert failed.wait(10)
    with pytest.raises(MeasureError, match="gone"):
        poll.stop()


def test_start_twice_and_stop_before_start_are_errors():
    poll = Poll(lambda: None, hertz=0.001)
    with pytest.raises(MeasureError, match="not running"):
        poll.stop()
    poll.start()
    with pytest.raises(MeasureError, match="already running"):
        poll.start()
    poll.stop()


def energy_event():
    from threading import Event

    return Event()
