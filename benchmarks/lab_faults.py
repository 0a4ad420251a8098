"""Kill a lab at random points, start it again, and look for results that are lost, doubled or mixed up.

    python -m benchmarks.lab_faults [--kills 50] [--seed 0] [--output FILE.jsonl]

A lab of 8 emulated devices, 4 bundles and 3 workloads is killed with SIGKILL after a random time, again and again until
it has ended by itself; then another one, until there were enough kills. After every kill: all lines but the last are
whole, no id is there twice, each run is of the device, bundle and workload that its id was planned for, and nothing
that was there before has changed. At the end: every planned run is there once, in each device's order, in the lines and
in the database.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.lab_emulated import emulated_lab
from edgekit.lab.database import Database
from edgekit.lab.plan import plan_runs
from edgekit.lab.store import DATABASE, RUNS, nights_in, read_night
from edgekit.record import to_json

if TYPE_CHECKING:
    from collections.abc import Sequence

LONGEST = 6.0
"""Seconds within which a kill falls; starting the interpreter takes the first of them."""


@dataclass(frozen=True)
class Killed:
    """A lab that was killed until it was through."""

    runs: int
    kills: int
    torn_lines: int
    faults: tuple[str, ...]


def kill_a_lab(folder: Path, pick: random.Random, most: int) -> Killed:
    """Run a lab, killed at random points at most ``most`` times, to its end."""
    kills, torn, faults = 0, 0, []
    before = b""
    while True:
        process = subprocess.Popen(
            (
                sys.executable,
                "-m",
                "benchmarks.lab_emulated",
                str(folder),
                "--seconds-per-run",
                "0.05",
                "--repetitions",
                "1",
            ),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
        )
        try:
            code = process.wait(timeout=pick.uniform(0.0, LONGEST) if kills < most else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            content = _content(folder)
            torn += bool(content) and not content.endswith(b"\n")
            kept = before[: before.rfind(b"\n") + 1]
            faults += [] if content.startswith(kept) else ["what had been written has changed"]
            faults += _faults(folder)
            before = content
            continue
        faults += [] if code == 0 else [f"it ended with {code}"]
        faults += [*_faults(folder), *_missing(folder)]
        return Killed(sum(1 for _ in read_night(folder / nights_in(folder)[0])), kills, torn, tuple(faults))


def _content(folder: Path) -> bytes:
    nights = nights_in(folder)
    path = folder / nights[0] / RUNS if nights else folder
    return path.read_bytes() if path.is_file() else b""


def _faults(folder: Path) -> list[str]:
    """What is wrong at this moment."""
    nights = nights_in(folder)
    if not nights:
        return []
    planned = {run.id: run for run in plan_runs(emulated_lab(repetitions=1), nights[0]).runs}
    lines = _content(folder).splitlines(keepends=True)
    whole = sum(line.endswith(b"\n") for line in lines)
    runs = read_night(folder / nights[0])
    found = [] if len(runs) == whole else [f"{whole} lines hold {len(runs)} runs"]
    found += [f"{len(nights)} nights"] if len(nights) > 1 else []
    for run in runs:
        plan = planned.get(run.id)
        there = (run.device, run.bundle, run.bundle_sha256, run.workload, run.repetition)
        if not plan:
            found.append(f"{run.id} was never planned")
        elif there != (plan.device.name, plan.bundle.name, plan.bundle.sha256, plan.workload.name, plan.repetition):
            found.append(f"{run.id} is mixed up: {there}")
    return found


def _missing(folder: Path) -> list[str]:
    """What is wrong at the end."""
    (night,) = nights_in(folder)
    plan, runs = plan_runs(emulated_lab(repetitions=1), night), read_night(folder / night)
    found = []
    for device in plan.lab.devices:
        wanted = [run.id for run in plan.of(device.name)]
        got = [run.id for run in runs if run.device == device.name]
        found += [] if got == wanted else [f"{device.name}: {len(got)} of {len(wanted)} runs, or another order"]
    database = Database(f"sqlite:///{folder / DATABASE}")
    rows = [run.id for run in database.runs()]
    database.close()
    found += [] if sorted(rows) == sorted(run.id for run in runs) else [f"{len(rows)} rows of {len(runs)} runs"]
    return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    pick = random.Random(given.seed)
    labs: list[Killed] = []
    began = time.monotonic()
    while (left := given.kills - sum(lab.kills for lab in labs)) > 0:
        with tempfile.TemporaryDirectory() as folder:
            labs.append(kill_a_lab(Path(folder) / "lab", pick, min(left, 5)))
        lab = labs[-1]
        print(f"lab {len(labs)}: {lab.runs} runs, {lab.kills} kills, {lab.torn_lines} torn, {len(lab.faults)} faults")
        for fault in lab.faults[:5]:
            print(f"  {fault}")
        if given.output:
            with given.output.open("a", encoding="utf-8") as file:
                file.write(to_json(lab) + "\n")
    faults = sum(len(lab.faults) for lab in labs)
    kills, seconds = sum(lab.kills for lab in labs), time.monotonic() - began
    print(f"{kills} kills of {len(labs)} labs in {seconds:.0f} s: {faults} results lost, doubled or mixed up")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
