"""What a night of a lab runs, in which order, and about how long that takes."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.lab.file import Lab, LabBundle, LabDevice, Workload, pick_devices

if TYPE_CHECKING:
    from collections.abc import Mapping

SETUP_SECONDS = 30.0
"""Assumed for pushing what changed, loading and probing, where no earlier run shows it."""
PROMPT_TOK_S, DECODE_TOK_S = 50.0, 10.0
"""Speeds assumed for a device that was never measured: a small board's."""

Known = tuple[str, str, str]
"""Device, bundle and workload."""


@dataclass(frozen=True)
class PlannedRun:
    """One run to be made. ``id`` follows from the night and everything that is run: after a resume it is the same.

    ``seconds`` is expected; ``estimated``: from assumed speeds, not from earlier runs.
    """

    id: str
    device: LabDevice
    bundle: LabBundle
    workload: Workload
    repetition: int
    seconds: float
    estimated: bool


@dataclass(frozen=True)
class Plan:
    """The runs of a night, in the order of each device. Devices work at the same time."""

    lab: Lab
    night: str
    runs: tuple[PlannedRun, ...]

    def of(self, device: str) -> tuple[PlannedRun, ...]:
        """The runs on a device, in order."""
        return tuple(run for run in self.runs if run.device.name == device)

    @property
    def seconds(self) -> float:
        """Expected duration: that of the device with the most work. Cooling down comes on top."""
        return max((sum(run.seconds for run in self.of(d.name)) for d in self.lab.devices), default=0.0)


def plan_runs(lab: Lab, night: str, known: Mapping[Known, float] | None = None) -> Plan:
    """Plan a night.

    In the interleaved order each repetition is a block that holds every bundle and workload once, shuffled by the lab's
    seed: a randomized complete block design, in which slow drift of a device meets all of them alike (Montgomery,
    Design and Analysis of Experiments, ch. 4).

    Args:
        lab: the lab file.
        night: name of the night, part of every id.
        known: seconds that earlier runs took.
    """
    runs = []
    for device in lab.devices:
        pairs = [(b, w) for w in lab.workloads if pick_devices((device,), w.on) for b in lab.bundles]
        blocks = [
            [(repetition, bundle, workload) for bundle, workload in pairs] for repetition in range(lab.repetitions)
        ]
        if lab.order == "interleaved":
            for repetition, block in enumerate(blocks):
                random.Random(f"{lab.seed}/{device.name}/{repetition}").shuffle(block)
        else:
            blocks = [[row for block in blocks for row in block if row[1:] == pair] for pair in pairs]
        runs += [
            _planned(lab.name, night, device, bundle, workload, repetition, known or {})
            for block in blocks
            for repetition, bundle, workload in block
        ]
    return Plan(lab, night, tuple(runs))


def _planned(
    lab: str,
    night: str,
    device: LabDevice,
    bundle: LabBundle,
    workload: Workload,
    repetition: int,
    known: Mapping[Known, float],
) -> PlannedRun:
    what = (lab, night, device.name, device.address, bundle.name, bundle.sha256, repr(workload), repetition)
    digest = hashlib.sha256("\0".join(map(str, what)).encode()).hexdigest()[:16]
    took = known.get((device.name, bundle.name, workload.name))
    seconds = _guess(workload) if took is None else took
    return PlannedRun(digest, device, bundle, workload, repetition, seconds, estimated=took is None)


def _guess(workload: Workload) -> float:
    """Expected seconds of a workload on a device that was never measured."""
    if workload.sustained:
        return SETUP_SECONDS + workload.sustained
    rounds = workload.repetitions + workload.warmup
    prompt = sum(workload.pp) + max(workload.depth)
    decoded = sum(workload.tg) * len(workload.depth)
    return SETUP_SECONDS + rounds * (prompt / PROMPT_TOK_S + decoded / DECODE_TOK_S)
