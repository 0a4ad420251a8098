"""Gross and net energy of a piece of work, with the idle power around it, and what a meter's thread does."""

from __future__ import annotations

from threading import Event

import pytest

from edgekit.errors import MeasureError
from edgekit.measure import energy
from edgekit.measure.alignment import Alignment
from edgekit.measure.energy import account, account_marks, meter_energy
from edgekit.measure.sampling import Polled, SampledProbe, StreamedProbe
from edgekit.types.lab import Mark
from edgekit.types.power import Trace


class Script:
    """A meter of a scripted load: watts by second of the test's clock."""

    name, kind, address, covers = "script", "measured", "", "everything"

    def __init__(self, clock, watts, fails=""):
        self._clock, self._watts, self._fails = clock, watts, fails
        self.running = 0

    def start(self):
        self.running += 1
        self._began = self._clock[0]

    def stop(self):
        self.running -= 1
        self._ended = self._clock[0]
        if self._fails:
            raise MeasureError(self._fails, "put it back")
        return 0.0

    def trace(self):
        count = round((self._ended - self._began) * 100)
        times = [self._began + i / 100 for i in range(count + 1)]
        return Trace("script", "W", tuple(times), tuple(self._watts(t) for t in times), covers=self.covers)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Sleeping and working take the seconds they say, at once."""
    now = [0.0]
    monkeypatch.setattr(energy, "boottime", lambda: now[0])
    monkeypatch.setattr(energy, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    return now


def work_of(clock, seconds, tokens=128):
    def work():
        clock[0] += seconds
        return tokens

    return work


def load(t):
    """4 s of idle at 2 W, 5 s of prompts at 8 W, 10 s of decoding at 5 W, then 3 W."""
    return 2.0 if t < 4 else 8.0 if t < 9 else 5.0 if t < 19 else 3.0


def test_gross_and_net(clock):
    got = meter_energy(
        Script(clock, load),
        work_of(clock, 10),
        prompt=work_of(clock, 5, 1000),
        what="decode",
        idle_seconds=4,
        charge=36_000.0,
        answer=(500, 64),
    )
    assert got.kind == "measured"
    assert got.meter == "script"
    assert got.idle_watts_before == pytest.approx(2.0, rel=0.01)
    assert got.idle_watts_after == pytest.approx(3.0, rel=0.01)
    assert got.gross_joules == pytest.approx(50.0, rel=0.002)
    assert (got.seconds, got.tokens) == (10.0, 128)
    assert got.net_joules == pytest.approx(50.0 - 2.5 * 10, rel=0.01)
    assert "decode" in got.formula
    assert got.hertz == pytest.approx(100)
    # A step at each end, seen by the readings on both sides: less than 5 W * 4 readings.
    assert 0 < got.error_joules < 0.2
    assert got.net_error_joules == pytest.approx(0.5 * 10, rel=0.1)  # idle power was between 2 and 3 W
    assert got.joules_per_prompt_token == pytest.approx(40 / 1000, rel=0.01)
    assert got.joules_per_answer_token == pytest.approx(50 / 128, rel=0.01)
    assert got.tokens_per_joule == pytest.approx(128 / 50, rel=0.01)
    assert got.answers_per_charge == pytest.approx(36_000 / (500 * 40 / 1000 + 64 * 50 / 128), rel=0.01)
    assert got.covers == "everything"


def test_what_was_not_measured_is_none(clock):
    got = meter_energy(Script(clock, load), work_of(clock, 5), idle_seconds=4, charge=1.0, answer=(500, 64))
    assert got.joules_per_prompt_token is None
    assert got.answers_per_charge is None
    got = meter_energy(Script(clock, lambda t: 5.0), work_of(clock, 10), idle_seconds=4, answer=(0, 64))
    assert got.answers_per_charge is None
    assert got.alignment_residual is None


def test_a_meter_that_stands_still_gives_none_and_no_zero(clock):
    got = meter_energy(Script(clock, lambda t: 0.0), work_of(clock, 3), idle_seconds=1)
    assert got.kind == "none"
    assert got.gross_joules is None
    assert got.net_joules is None
    assert "did not move" in got.reason


def test_a_meter_whose_error_is_as_large_as_what_it_reads_gives_none():
    trace = Trace("slow", "J", (0.0, 10.0, 20.0, 30.0), (0.0, 10.0, 20.0, 30.0))
    got = meter_energy_of(trace, [(12.0, 13.0)])
    assert got.kind == "none"
    assert "too slow or too coarse" in got.reason


def meter_energy_of(trace, answers):
    return account(trace, answers=answers, tokens=1, idle=((0.0, 10.0), (20.0, 30.0)))


def test_a_meter_that_fails_gives_none_with_the_reason(clock):
    got = meter_energy(Script(clock, load, "the meter fell off"), work_of(clock, 3), idle_seconds=1)
    assert got.kind == "none"
    assert got.reason == "the meter fell off (put it back)"


def test_an_error_of_the_work_is_not_swallowed(clock):
    def fail():
        raise ValueError("the work")

    meter = Script(clock, load)
    with pytest.raises(ValueError, match="the work"):
        meter_energy(meter, fail, idle_seconds=1)
    assert meter.running == 0


# --- a run's marks --------------------------------------------------------------------------------

RUN = [
    *[("idle", 0, 4), ("pp512", 5, 7), ("tg64@0", 8, 12)],
    *[("pp512", 13, 15), ("tg64@0", 16, 20), ("tg64@512", 20, 22), ("idle", 23, 27)],
]


def marks(run=RUN, at=0.0):
    pairs = [pair for name, a, b in run for pair in ((a, f"{name} begin"), (b, f"{name} end"))]
    return [Mark(at + t, name) for t, name in pairs]


def run_trace(watts=None, shift=0.0):
    def power(t):
        if any(a <= t < b for n, a, b in RUN if n.startswith("tg")):
            return 6.0
        return 9.0 if any(a <= t < b for n, a, b in RUN if n.startswith("pp")) else 1.0

    times = [i / 200 for i in range(-200, 29 * 200)]
    return Trace("m", "W", tuple(t + shift for t in times), tuple((watts or power)(t) for t in times))


def test_marks_split_a_run_into_prompts_answers_and_idle():
    got = account_marks(run_trace(), marks(), charge=6000.0)
    assert got.gross_joules == pytest.approx(60.0, rel=0.01)  # ten seconds of tg at 6 W
    assert (got.seconds, got.tokens) == (10, 192)
    assert got.joules_per_prompt_token == pytest.approx(36 / 1024, rel=0.01)
    assert got.net_joules == pytest.approx(50.0, rel=0.01)
    assert got.answers_per_charge == pytest.approx(6000 / (512 * 36 / 1024 + 64 * 60 / 192), rel=0.01)


def test_a_meter_with_another_clock_is_read_at_its_own_times():
    found = Alignment(0.0, 3.25, 0.0, 0.004, 0.0, 27.0, 8)
    got = account_marks(run_trace(shift=3.25), marks(), alignment=found)
    assert got.gross_joules == pytest.approx(60.0, rel=0.01)
    assert got.alignment_residual == 0.004
    plain = account_marks(run_trace(), marks())
    # Each end of the two stretches of decoding may be 4 ms off, at up to 6 W.
    assert got.error_joules - plain.error_joules == pytest.approx(4 * 0.004 * 6, rel=0.1)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (RUN[1:], "marks lack"),
        (RUN[:-1], "marks lack"),
        ([RUN[0], RUN[1], RUN[-1]], "marks lack"),
        ([*RUN[:-1], ("idle", 23, 60)], "was read from"),
    ],
)
def test_a_run_without_its_marks_or_its_trace_has_no_energy(run, reason):
    got = account_marks(run_trace(), marks(run))
    assert got.kind == "none"
    assert reason in got.reason


# --- the thread -----------------------------------------------------------------------------------


def test_a_sampled_meter_samples_between_start_and_stop():
    seen = []
    enough = Event()

    def watts():
        seen.append(1)
        if len(seen) >= 5:
            enough.set()
        return 2.0

    probe = SampledProbe("p", watts, hertz=500)
    assert probe.name == "p, sampled at 500 Hz"
    probe.start()
    assert enough.wait(10)
    assert probe.stop() > 0
    assert len(seen) >= 6  # five while it ran and the last at stop()


def test_an_error_in_the_thread_comes_out_of_stop():
    failed = Event()
    count = iter(range(10))

    def watts():
        if next(count) == 1:
            failed.set()
            raise MeasureError("gone", "plug it in")
        return 1.0

    probe = SampledProbe("p", watts, hertz=500)
    probe.start()
    assert failed.wait(10)
    with pytest.raises(MeasureError, match="gone"):
        probe.stop()


def test_start_twice_and_stop_before_start_are_errors():
    probe = SampledProbe("p", lambda: 1.0, hertz=0.001)
    with pytest.raises(MeasureError, match="not running"):
        probe.stop()
    probe.start()
    with pytest.raises(MeasureError, match="already running"):
        probe.start()
    probe.stop()


def test_a_reading_during_which_the_system_was_busy_leaves_a_gap():
    probe = Polled("p", "W", hertz=1)
    probe._spans = [(float(i), i + 0.001) for i in range(9)] + [(9.0, 9.8), (10.0, 10.003)]
    kept, doubt = probe._kept()
    assert kept == [*range(9), 10]
    assert doubt == pytest.approx(0.0015)


def test_an_instrument_is_waited_for_until_it_has_sent_what_was_after_the_work():
    from edgekit.measure import sampling

    ended = Event()

    def readings(stop):
        now = sampling.boottime()
        yield now, 1.0
        yield now + 0.001, 1.0
        assert ended.wait(10)
        yield sampling.boottime() + 1, 1.0
        assert stop.wait(10)

    probe = StreamedProbe("p", "W", readings)
    probe.start()
    ended.set()
    assert probe.stop() == pytest.approx(1.0, rel=0.5)
    assert len(probe.trace().at) == 3


@pytest.mark.parametrize(("patience", "words"), [("first", "sends nothing"), ("last", "has stopped sending")])
def test_an_instrument_that_is_silent_is_told(monkeypatch, patience, words):
    from edgekit.measure import sampling

    monkeypatch.setattr(sampling, "PATIENCE", 0.05)

    def readings(stop):
        if patience == "last":
            yield sampling.boottime(), 1.0
        stop.wait(10)

    probe = StreamedProbe("p", "W", readings)
    with pytest.raises(MeasureError, match=words):
        probe.start()
        probe.stop()
