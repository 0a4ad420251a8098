"""A night: limits are kept, what fails is said, nothing is made twice, and a stopped night goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.lab_emulated import EmulatedStation, emulated_lab, run_emulated
from edgekit.errors import LabError, LinkLost
from edgekit.lab.file import Lab, LabBundle, LabDevice, Limits, Workload
from edgekit.lab.lease import InUse
from edgekit.lab.night import Clock, find_unmet, judge, run_lab
from edgekit.lab.plan import Plan, plan_runs
from edgekit.lab.station import Outcome
from edgekit.lab.store import opened, read_night
from edgekit.types import LabRun, Series
from edgekit.types.lab import Mark, Sample

if TYPE_CHECKING:
    from collections.abc import Callable

COOL = Sample(0.0, (("cpu", 35.0), ("gpu", 38.0)), (2400.0,), "", 80.0, "", 0.1, None)


def small(names: tuple[str, ...] = ("pi5-a", "jetson"), **changes: object) -> Lab:
    workloads = (Workload("chat", pp=(8,), tg=(4,), depth=(0,), repetitions=2),)
    lab = emulated_lab(workloads=workloads, repetitions=2)
    return replace(lab, devices=tuple(d for d in lab.devices if d.name in names), bundles=lab.bundles[:2], **changes)


class Station(EmulatedStation):
    """An emulated device whose temperature and faults a test decides."""

    def __init__(self, device: LabDevice, stopped: Callable[[], bool]) -> None:
        super().__init__(device, stopped, 0.0, 1.0)
        self.samples: list[Sample] = []
        self.faults: dict[int, Exception] = {}
        self.made = self.closed = 0

    def sample(self) -> Sample:
        return (self.samples.pop(0) if len(self.samples) > 1 else self.samples[0]) if self.samples else COOL

    def execute(self, bundle: LabBundle, workload: Workload) -> Outcome:
        self.made += 1
        if self.made in self.faults:
            raise self.faults[self.made]
        return super().execute(bundle, workload)

    def close(self) -> None:
        self.closed += 1


class FakeClock:
    """A clock that moves when someone pauses."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def clock(self) -> Clock:
        def pause(stop: threading.Event, seconds: float) -> bool:
            self.seconds += seconds
            return stop.is_set()

        return Clock(lambda: self.seconds, pause)


def night(
    folder: Path, lab: Lab, station: Callable[[LabDevice, Callable[[], bool]], Station], clock: FakeClock | None = None
) -> tuple[Plan, list[LabRun]]:
    with opened(folder) as store:
        plan = plan_runs(lab, store.begin(lab.name))
        run_lab(plan, store, station, clock=(clock or FakeClock()).clock())
    return plan, read_night(folder / plan.night)


def test_all_runs_of_all_devices_in_their_order(tmp_path: Path) -> None:
    stations: dict[str, Station] = {}

    def station(device: LabDevice, stopped: Callable[[], bool]) -> Station:
        return stations.setdefault(device.name, Station(device, stopped))

    plan, runs = night(tmp_path, small(), station)
    assert {run.status for run in runs} == {"done"}
    for device in plan.lab.devices:
        assert [run.id for run in runs if run.device == device.name] == [run.id for run in plan.of(device.name)]
        assert stations[device.name].closed == 1
    run, planned = runs[0], next(p for p in plan.runs if p.id == runs[0].id)
    assert (run.bundle_sha256, run.workload, run.lab) == (planned.bundle.sha256, "chat", plan.night)
    assert run.facts.model == run.device
    assert run.measurement
    assert run.measurement.bundle_sha256 == run.bundle_sha256


def test_devices_work_at_once_and_each_makes_one_run_at_a_time(tmp_path: Path) -> None:
    together = threading.Barrier(2, timeout=20)
    busy: dict[str, int] = defaultdict(int)

    class Meeting(Station):
        def execute(self, bundle: LabBundle, workload: Workload) -> Outcome:
            busy[self._name] += 1
            assert busy[self._name] == 1
            together.wait()  # both devices must be here: one after the other would break the barrier
            busy[self._name] -= 1
            return super().execute(bundle, workload)

    _, runs = night(tmp_path, small(), Meeting)
    assert {run.status for run in runs} == {"done"}


def test_a_run_waits_for_the_device_to_cool_and_gives_up_in_time(tmp_path: Path) -> None:
    hot = replace(COOL, zones=(("cpu", 35.0), ("gpu", 61.5)))
    limits = Limits(start_below_celsius=40.0, wait_at_most=60.0)
    lab = small(("jetson",), limits=limits, repetitions=1)
    clock = FakeClock()

    def cooling(device: LabDevice, stopped: Callable[[], bool]) -> Station:
        station = Station(device, stopped)
        station.samples = [hot] * 7 + [COOL]
        return station

    _, runs = night(tmp_path / "cooling", lab, cooling, clock)
    assert {run.status for run in runs} == {"done"}
    assert clock.seconds == 7 * 5.0

    def hopeless(device: LabDevice, stopped: Callable[[], bool]) -> Station:
        station = Station(device, stopped)
        station.samples = [hot]
        return station

    clock = FakeClock()
    _, runs = night(tmp_path / "hopeless", lab, hopeless, clock)
    assert [run.status for run in runs] == ["refused", "refused"]
    assert runs[0].reason == "jetson: it is at 61.5 °C, limit 40 after 1 min 0 s"
    assert "start_below_celsius" in runs[0].hint
    assert runs[0].measurement is None
    assert clock.seconds == 2 * 60.0


@pytest.mark.parametrize(
    ("limits", "change", "said", "hopeless"),
    [
        (Limits(start_below_celsius=38.0), {}, "it is at 38.0 °C, limit 38", False),
        (Limits(start_below_celsius=38.1), {}, "", False),
        (Limits(start_below_celsius=38.0), {"zones": ()}, "it tells no temperature", True),
        (Limits(least_battery=81.0), {}, "its battery is at 80 %, limit 81", True),
        (Limits(least_battery=81.0), {"plugged": "usb"}, "its battery is at 80 %, limit 81", False),
        (Limits(least_battery=80.0), {}, "", False),
        (Limits(least_battery=81.0), {"battery_percent": None}, "", False),
        (Limits(most_background=0.05), {}, "other processes take 0.1 cores, limit 0.05", False),
        (Limits(most_background=0.1), {}, "", False),
        (Limits(most_background=0.1), {"background": None}, "it tells no load", True),
    ],
)
def test_the_limits(limits: Limits, change: dict[str, object], said: str, hopeless: bool) -> None:
    unmet, hint, never = find_unmet(replace(COOL, **change), limits)
    assert (unmet, bool(hint), never) == (said, bool(said), hopeless)


def test_a_run_that_fails_is_said_and_the_next_one_is_made(tmp_path: Path) -> None:
    def station(device: LabDevice, stopped: Callable[[], bool]) -> Station:
        made = Station(device, stopped)
        made.faults = {2: LabError("out of memory", "use a smaller bundle")}
        return made

    _, runs = night(tmp_path, small(("jetson",)), station)
    assert [run.status for run in runs] == ["done", "failed", "done", "done"]
    assert (runs[1].reason, runs[1].hint) == ("out of memory", "use a smaller bundle")
    assert runs[1].energy.kind == "none"


def test_a_lost_device_is_opened_again_and_one_that_stays_away_is_given_up(tmp_path: Path) -> None:
    opened_: list[Station] = []

    def station(device: LabDevice, stopped: Callable[[], bool]) -> Station:
        opened_.append(Station(device, stopped))
        if len(opened_) == 1:
            opened_[0].faults = {2: LinkLost("the link is gone", "look at the cable")}
        return opened_[-1]

    _, runs = night(tmp_path / "back", small(("jetson",)), station)
    assert [run.status for run in runs] == ["done", "failed", "done", "done"]
    assert [s.closed for s in opened_] == [1, 1]

    clock = FakeClock()
    lab = small(("laptop",), limits=Limits(wait_at_most=60.0))
    _, runs = night(tmp_path / "away", lab, Station, clock)
    assert {(run.status, run.hint) for run in runs} == {("failed", "switch it on")}
    assert len(runs) == 4
    assert clock.seconds == 60.0

    def always(device: LabDevice, stopped: Callable[[], bool]) -> Station:
        made = Station(device, stopped)
        made.faults = dict.fromkeys(range(1, 99), LinkLost("the link is gone", "look at the cable"))
        opened_.append(made)
        return made

    opened_.clear()
    _, runs = night(tmp_path / "flapping", small(("jetson",)), always)
    assert [run.status for run in runs] == ["failed"] * 4
    assert len(opened_) == 3


def test_the_lease_of_a_killed_lab_is_waited_for(tmp_path: Path) -> None:
    clock = FakeClock()

    def station(device: LabDevice, stopped: Callable[[], bool]) -> Station:
        if clock.seconds < 290.0:
            raise InUse("it is used by a lab that was killed", "wait until it is free")
        return Station(device, stopped)

    _, runs = night(tmp_path, small(("jetson",), limits=Limits(wait_at_most=30.0)), station, clock)
    assert {run.status for run in runs} == {"done"}
    assert clock.seconds == 290.0


def test_one_device_under_two_names_is_refused(tmp_path: Path) -> None:
    def station(device: LabDevice, stopped: Callable[[], bool]) -> Station:
        made = Station(device, stopped)
        made.facts = replace(made.facts, identity="serial-1")
        return made

    _, runs = night(tmp_path, small(), station)
    by_device = {d: {run.status for run in runs if run.device == d} for d in ("pi5-a", "jetson")}
    assert sorted(by_device.values(), key=str) == [{"done"}, {"failed"}]
    refused = next(run for run in runs if run.status == "failed")
    assert "serial-1" in refused.reason
    assert "remove" in refused.hint


def test_no_run_starts_after_the_deadline(tmp_path: Path) -> None:
    clock = FakeClock()

    class Slow(Station):
        def execute(self, bundle: LabBundle, workload: Workload) -> Outcome:
            clock.seconds += 40.0
            return super().execute(bundle, workload)

    _, runs = night(tmp_path, small(("jetson",), deadline=60.0), Slow, clock)
    assert [run.status for run in runs] == ["done", "done", "refused", "refused"]
    assert "deadline" in runs[2].reason


def test_a_noisy_run_is_no_result_and_a_slowing_one_is_throttled(tmp_path: Path) -> None:
    outcome = Station(small().devices[0], lambda: False).execute(small().bundles[0], small().workloads[0])
    assert judge(outcome, Limits(), sustained=False) == ("done", "")
    assert outcome.measurement
    series = tuple(replace(s, samples=(10.0, 11.2)) if s.name == "tg4@0" else s for s in outcome.measurement.series)
    noisy = replace(outcome, measurement=replace(outcome.measurement, series=series))
    status, why = judge(noisy, Limits(most_spread=0.1), sustained=False)
    assert (status, why) == ("noisy", "tg4@0 spreads by 11.3 %, limit 10.0 %")
    assert judge(noisy, Limits(most_spread=0.12), sustained=False)[0] == "done"

    marks = (Mark(10.0, "pp8 begin"), Mark(100.0, "tg4@0 end"))
    samples = tuple(replace(COOL, at=float(at), clocks_mhz=(600.0, 2400.0 if at < 70 else 1800.0)) for at in range(120))
    slowing = replace(outcome, marks=marks, samples=samples)
    assert judge(slowing, Limits(), sustained=False) == ("throttled", "clock fell from 2400 to 1800 MHz")
    assert judge(slowing, Limits(), sustained=True) == ("done", "clock fell from 2400 to 1800 MHz")
    # After the work the clock may fall as it likes.
    idle = replace(outcome, marks=(Mark(10.0, "pp8 begin"), Mark(65.0, "tg4@0 end")), samples=samples)
    assert judge(idle, Limits(), sustained=False) == ("done", "")


def test_a_night_that_was_stopped_goes_on_and_a_finished_one_is_followed_by_a_new_one(tmp_path: Path) -> None:
    class Stopping(Station):
        def execute(self, bundle: LabBundle, workload: Workload) -> Outcome:
            if self.made == 1:
                raise RuntimeError("a bug")
            return super().execute(bundle, workload)

    with pytest.raises(RuntimeError, match="a bug"):
        night(tmp_path, small(("jetson",)), Stopping)
    first = next(tmp_path.glob("emulated@*"))
    before = (first / "runs.jsonl").read_bytes()
    assert before.count(b"\n") == 1
    plan, runs = night(tmp_path, small(("jetson",)), Station)
    assert plan.night == first.name
    assert [run.id for run in runs] == [run.id for run in plan.runs]
    assert (first / "runs.jsonl").read_bytes().startswith(before)
    again, _ = night(tmp_path, small(("jetson",)), Station)
    assert again.night != plan.night


def test_a_killed_lab_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """As benchmarks/lab_faults.py does 50 times."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom benchmarks.lab_emulated import emulated_lab, run_emulated\n"
        "run_emulated(Path(sys.argv[1]), emulated_lab(repetitions=1), seconds=0.05)"
    )
    folder = tmp_path / "results"
    process = subprocess.Popen((sys.executable, "-c", program, str(folder)), cwd=Path(__file__).parents[2])
    while not (lines := list(folder.glob("*/runs.jsonl"))) or lines[0].read_bytes().count(b"\n") < 20:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # The kill may have cut a line in two: then that run is made again.
    with lines[0].open("ab") as file:
        file.write(b'{"schema":1,"id":"torn')
    before = {run.id for run in read_night(lines[0].parent)}
    made: list[LabRun] = []
    plan = run_emulated(folder, emulated_lab(repetitions=1), told=made.append)
    runs = read_night(folder / plan.night)
    assert len(list(folder.glob("emulated@*"))) == 1
    assert not before & {run.id for run in made}
    assert sorted(run.id for run in runs) == sorted(run.id for run in plan.runs)
    assert lines[0].read_bytes().count(b"\n") == len(plan.runs)


def test_two_labs_never_write_to_the_same_results(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(LabError, match="another lab writes to") as raised, opened(tmp_path):
        pass
    assert "`out`" in raised.value.hint
    with opened(tmp_path):
        pass


def test_a_series_of_one_round_has_no_spread() -> None:
    outcome = Station(small().devices[0], lambda: False).execute(small().bundles[0], small().workloads[0])
    assert outcome.measurement
    one = replace(outcome.measurement, series=(Series("tg4@0", "tok/s", (1.0,)),))
    assert judge(replace(outcome, measurement=one), Limits(most_spread=1e-9), sustained=False)[0] == "done"
