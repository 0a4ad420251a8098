"""A Station on a device that is reached by a transport: connected, leased, with the driver."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING

from edgekit.bundle import open_bundle
from edgekit.errors import LabError
from edgekit.lab.driver.device import open_device
from edgekit.lab.energy import metered
from edgekit.lab.facts import read_facts
from edgekit.lab.lease import lease
from edgekit.lab.station import LEASE_SECONDS, Outcome
from edgekit.lab.transport import connect
from edgekit.types import Energy, Task
from edgekit.types.lab import Done, Hello, Mark, Power, Rate, Sample

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgekit.lab.file import LabBundle, LabDevice, Workload
    from edgekit.types import Bundle, DeviceFacts
    from edgekit.types.lab import Line

_OPENING = Lock()
"""Driver and wheels are fetched into the cache once, not by each device's thread."""


class Seat:
    """A Station. Made by ``open_seat``."""

    def __init__(self, device: LabDevice, stopped: Callable[[], bool]) -> None:
        self._device, self._stopped = device, stopped
        with ExitStack() as stack:
            self._transport = stack.enter_context(closing(connect(device.address)))
            self._facts = read_facts(self._transport)
            self._lease = stack.enter_context(lease(self._transport, LEASE_SECONDS))
            with _OPENING:
                self._there = stack.enter_context(open_device(self._transport))
            self._stack = stack.pop_all()

    @property
    def facts(self) -> DeviceFacts:
        """What it is, when it was opened."""
        return self._facts

    def sample(self) -> Sample:
        """Its state now."""
        self._lease.renew()
        return self._there.sample()

    def execute(self, bundle: LabBundle, workload: Workload) -> Outcome:
        """Run a workload there.

        Raises:
            LabError: the device or the driver refuses, the bundle has changed, or the night is stopped.
            LinkLost: the device did not come back.
        """
        opened = _opened(bundle.path)
        if opened.sha256 != bundle.sha256:
            raise LabError(f"{bundle.path} has changed since the lab began", "run the lab again for the new bundle")
        folder = self._there.bring(opened, _positions(workload))
        lines: list[Line] = []
        with closing(metered(self._there.lines, _task(workload, folder), self._device.meter, time.sleep)) as coming:
            for line in coming:
                if self._stopped():
                    raise LabError("the lab was stopped", "start it again: it makes the runs that are left")
                lines.append(line)
        return _outcome(lines, opened)

    def close(self) -> None:
        """Give the device back."""
        self._stack.close()


def open_seat(device: LabDevice, stopped: Callable[[], bool]) -> Seat:
    """Connect to a device of a lab file and lease it.

    Args:
        device: the device.
        stopped: whether a run is to be ended.

    Raises:
        LabError: it refuses, is used by another, or has no Python that can run the driver.
        LinkLost: nothing answers there.
    """
    return Seat(device, stopped)


@cache
def _opened(path: Path) -> Bundle:
    return open_bundle(path)


def _positions(workload: Workload) -> int:
    """Tokens that a run holds at most."""
    if workload.sustained:
        return 128  # what program.STRETCH decodes before it starts again
    return max(*workload.pp, max(workload.depth) + max(workload.tg))


def _task(workload: Workload, folder: str) -> Task:
    if workload.sustained:
        return Task("sustain", folder, depth=(0,), seconds=workload.sustained)
    return Task(
        "bench",
        folder,
        pp=workload.pp,
        tg=workload.tg,
        depth=workload.depth,
        repetitions=workload.repetitions,
        warmup=workload.warmup,
    )


def _outcome(lines: list[Line], bundle: Bundle) -> Outcome:
    """Sort the driver's lines."""
    hello = next((line for line in lines if isinstance(line, Hello)), None)
    done = next((line for line in lines if isinstance(line, Done)), None)
    measurement = done.measurement if done else None
    if measurement and measurement.bundle_sha256 != bundle.sha256:
        raise LabError("the driver measured another bundle", "report this, with the device")
    return Outcome(
        driver=hello.driver if hello else "",
        measurement=measurement,
        energy=_energy(done),
        marks=tuple(line for line in lines if isinstance(line, Mark)),
        samples=tuple(line for line in lines if isinstance(line, Sample)),
        rates=tuple(line for line in lines if isinstance(line, Rate)),
        power=tuple(line for line in lines if isinstance(line, Power)),
    )


def _energy(done: Done | None) -> Energy:
    if done and done.measurement:
        return done.measurement.energy
    return done.energy if done and done.energy else Energy("none", reason="the driver sent none")
