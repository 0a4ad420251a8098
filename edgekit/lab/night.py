"""Run a lab's plan: all devices at once, on each device one run at a time, and every run within the lab's limits.

A run is done when its line is on disk (see store). Whatever ends the lab before, the next start makes the runs that are
left, in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from threading import Event, Lock
from typing import TYPE_CHECKING

from edgekit import __version__, ranges, words
from edgekit.errors import EdgekitError, LabError, LinkLost
from edgekit.lab.file import LabDevice
from edgekit.lab.lease import InUse
from edgekit.lab.station import LEASE_SECONDS, Outcome, Station
from edgekit.lab.steady import find_level, find_throttling, widest_spread
from edgekit.lab.store import SCHEMA
from edgekit.types.lab import DeviceFacts, LabRun, Status
from edgekit.types.measurement import Energy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.lab.file import Limits
    from edgekit.lab.plan import Plan, PlannedRun
    from edgekit.lab.store import Store
    from edgekit.types.lab import Sample

LOOK_EVERY = 5.0
"""Seconds between two looks at a device that does not meet the limits yet."""
REOPENED = 2
"""Times that a device which was lost in the middle of the night is opened again without a run between."""


Open = Callable[[LabDevice, Callable[[], bool]], Station]


@dataclass(frozen=True)
class Clock:
    """Time, for tests to replace: seconds now, and a pause that ends early and returns True if the night is stopped."""

    now: Callable[[], float] = time.monotonic
    pause: Callable[[Event, float], bool] = Event.wait


@dataclass
class _Night:
    """What the threads of a night share."""

    plan: Plan
    store: Store
    open_station: Open
    clock: Clock
    told: Callable[[LabRun], None] | None
    began: float
    stop: Event = field(default_factory=Event)
    turn: Lock = field(default_factory=Lock)
    identities: dict[str, str] = field(default_factory=dict)

    def late(self) -> bool:
        """Whether no run may start any more."""
        deadline = self.plan.lab.deadline
        return deadline is not None and self.clock.now() - self.began >= deadline

    def keep(self, run: LabRun) -> None:
        """Write a run down, then tell of it, one at a time."""
        self.store.keep(run)
        if self.told:
            with self.turn:
                self.told(run)


def run_lab(
    plan: Plan,
    store: Store,
    open_station: Open,
    *,
    told: Callable[[LabRun], None] | None = None,
    clock: Clock | None = None,
) -> None:
    """Make the runs of a plan that the store does not have yet.

    Args:
        plan: the night's runs.
        store: where they are kept.
        open_station: connects to a device and leases it; called in the device's own thread. What it returns ends its
            run on the device, and raises, once the function that it is given returns True.
        told: called with every run that ended, one at a time.
        clock: the time.

    Raises:
        LabError: results cannot be written. Runs that were under way are left for the next start.
        KeyboardInterrupt: stopped by the user, after the devices have been given back.
    """
    done = store.write_plan(plan)
    clock = clock or Clock()
    night = _Night(plan, store, open_station, clock, told, clock.now())
    with ThreadPoolExecutor(len(plan.lab.devices), "edgekit-lab") as pool:
        left = {d: [run for run in plan.of(d.name) if run.id not in done] for d in plan.lab.devices}
        threads = [pool.submit(_work, night, device, runs) for device, runs in left.items() if runs]
        try:
            pending = set(threads)
            while pending:
                ended, pending = wait(pending, timeout=0.5, return_when="FIRST_EXCEPTION")
                if any(thread.exception() for thread in ended):
                    night.stop.set()
        finally:
            night.stop.set()
    for thread in threads:
        thread.result()


def _work(night: _Night, device: LabDevice, runs: Sequence[PlannedRun]) -> None:
    """Make a device's runs."""
    station: Station | None = None
    lost = 0
    try:
        for at, run in enumerate(runs):
            if night.stop.is_set():
                return
            if night.late():
                _give_up(night, runs[at:], "refused", "the lab's deadline had passed", "raise 'deadline'")
                return
            try:
                station = station or _open(night, device)
                result = _make(night, station, run) if station else None
                lost = 0
            except (EdgekitError, OSError) as error:
                gone = isinstance(error, LinkLost)
                lost += gone
                why = _explain(error)
                if not night.stop.is_set() and (station is None or lost > REOPENED):
                    _give_up(night, runs[at:], "failed", *why)
                    return
                result = _without(night, run, "failed", *why, station.facts if station else _UNKNOWN)
                if gone:
                    _leave(station)
                    station = None
            if result and not night.stop.is_set():
                night.keep(result)
    finally:
        _leave(station)


def _explain(error: EdgekitError | OSError) -> tuple[str, str]:
    """What a device's error says, and what to do."""
    if isinstance(error, EdgekitError):
        return error.message, error.hint
    return f"{type(error).__name__}: {error}", "look at this machine's disk and network, then run again"


def _open(night: _Night, device: LabDevice) -> Station | None:
    """Open a device, waiting for one that cannot be reached as long as the lab waits; None if the night is stopped.

    A lab that was killed still holds its devices until their leases end: that is waited for in any case.
    """
    began, most = night.clock.now(), night.plan.lab.limits.wait_at_most
    while True:
        try:
            station = night.open_station(device, night.stop.is_set)
            break
        except (LinkLost, InUse) as error:
            patience = max(most, LEASE_SECONDS) if isinstance(error, InUse) else most
            if night.clock.now() - began >= patience or night.late():
                raise
            if night.clock.pause(night.stop, LOOK_EVERY):
                return None
    try:
        _require_other(night, device, station.facts.identity)
    except BaseException:
        station.close()
        raise
    return station


def _require_other(night: _Night, device: LabDevice, identity: str) -> None:
    """Refuse a device that another entry of the lab file reaches in another way."""
    if not identity or device.address.partition(":")[0] == "local":  # one machine may be several devices
        return
    with night.turn:
        first = night.identities.setdefault(identity, device.name)
    if first != device.name:
        raise LabError(
            f"{device.address} is the device '{first}' of this lab (it says that it is {identity})",
            f"remove '{first}' or '{device.name}' from the lab file",
        )


def _leave(station: Station | None) -> None:
    """Give a device back; one that is lost gives itself back when its lease runs out."""
    if station:
        with suppress(LinkLost):
            station.close()


def _make(night: _Night, station: Station, run: PlannedRun) -> LabRun | None:
    """Wait until the device is ready, run, and judge what came back. None: the night was stopped meanwhile."""
    reason, hint = _wait(night, station, run.device)
    if night.stop.is_set():
        return None
    if reason:
        return _without(night, run, "refused", reason, hint, station.facts)
    started = _now()
    outcome = station.execute(run.bundle, run.workload)
    status, why = judge(outcome, night.plan.lab.limits, sustained=bool(run.workload.sustained))
    return _line(night, run, station.facts, started, status, why, outcome)


def _wait(night: _Night, station: Station, device: LabDevice) -> tuple[str, str]:
    """Wait until a device meets the limits. Returns why it did not, and what to do; ("", "") if it does."""
    limits = night.plan.lab.limits
    until = night.clock.now() + limits.wait_at_most
    while True:
        unmet, hint, hopeless = find_unmet(station.sample(), limits)
        if not unmet:
            return "", ""
        if hopeless or night.clock.now() >= until or night.late():
            waited = "" if hopeless else f" after {words.seconds(limits.wait_at_most)}"
            return f"{device.name}: {unmet}{waited}", hint
        if night.clock.pause(night.stop, LOOK_EVERY):
            return "", ""


def find_unmet(sample: Sample, limits: Limits) -> tuple[str, str, bool]:
    """Return which limit a device does not meet, what to do, and whether waiting is hopeless. "" if it meets all.

    A device without a battery has no charge to be too low; one that tells no temperature or load cannot meet a limit
    of it.
    """
    hot, charge, busy = sample.hottest, sample.battery_percent, sample.background
    if limits.start_below_celsius is not None:
        if hot is None:
            return "it tells no temperature", "remove 'start_below_celsius' for it", True
        if hot >= limits.start_below_celsius:
            limit = f"limit {limits.start_below_celsius:g}"
            return f"it is at {hot:.1f} °C, {limit}", "cool it, or raise 'start_below_celsius' or 'wait_at_most'", False
    if limits.least_battery is not None and charge is not None and charge < limits.least_battery:
        return f"its battery is at {charge:g} %, limit {limits.least_battery:g}", "charge it", sample.plugged == ""
    if limits.most_background is not None:
        if busy is None:
            return "it tells no load", "remove 'most_background' for it", True
        if busy > limits.most_background:
            limit = f"limit {limits.most_background:g}"
            return f"other processes take {busy:.2g} cores, {limit}", "stop them, or raise 'most_background'", False
    return "", "", False


def judge(outcome: Outcome, limits: Limits, *, sustained: bool) -> tuple[Status, str]:
    """Whether what a run brought back counts, and why not.

    A sustained run is there to show how far a device slows down, so it counts whatever it shows.
    """
    slowed = find_throttling(outcome.rates, outcome.samples, outcome.marks)
    if sustained:
        return "done", slowed
    if slowed:
        return "throttled", slowed
    spread = widest_spread(outcome.measurement) if outcome.measurement else None
    if spread and spread[0] > limits.most_spread:
        return "noisy", f"{spread[1]} spreads by {words.percent(spread[0])}, limit {words.percent(limits.most_spread)}"
    return "done", ""


def _give_up(night: _Night, runs: Sequence[PlannedRun], status: Status, reason: str, hint: str) -> None:
    for run in runs:
        night.keep(_without(night, run, status, reason, hint))


_UNKNOWN = DeviceFacts("", "", "", "", "", "", "", "", "", None, None, None, None, "")


def _without(
    night: _Night, run: PlannedRun, status: Status, reason: str, hint: str, facts: DeviceFacts = _UNKNOWN
) -> LabRun:
    """The line of a run that brought nothing back."""
    facts = replace(facts, address=facts.address or run.device.address)
    made = _line(night, run, facts, _now(), status, reason, Outcome("", energy=Energy("none", reason=reason)))
    return replace(made, hint=hint)


def _line(
    night: _Night, run: PlannedRun, facts: DeviceFacts, started: str, status: Status, reason: str, outcome: Outcome
) -> LabRun:
    power, notes = outcome.power, outcome.notes
    if len(power) > ranges.MAX_ITEMS:
        step = -(-len(power) // ranges.MAX_ITEMS)
        power, notes = power[::step], (*notes, f"of the meter's {len(power):,} readings every {step}th is kept")
    if run.workload.sustained and not find_level(outcome.rates):
        notes = (*notes, "the speed did not level off")
    return LabRun(
        schema=SCHEMA,
        id=run.id,
        lab=night.plan.night,
        device=run.device.name,
        facts=facts,
        bundle=run.bundle.name,
        bundle_sha256=run.bundle.sha256,
        workload=run.workload.name,
        repetition=run.repetition,
        started=started,
        ended=_now(),
        status=status,
        reason=reason,
        hint="",
        driver=outcome.driver,
        measurement=outcome.measurement,
        energy=outcome.energy,
        marks=outcome.marks,
        samples=outcome.samples[-ranges.MAX_ITEMS :],
        rates=outcome.rates[-ranges.MAX_ITEMS :],
        power=power,
        edgekit=__version__,
        notes=notes,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
