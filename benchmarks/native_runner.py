"""The native runner beside edgekit's own on this machine: same graph, settings and workloads, in alternating rounds.

    python -m benchmarks.native_runner BUNDLE [--rounds N] [--threads N] [--pp N] [--tg N]

Prints a line of JSON: for each workload the ratio of speeds, native / own, as its median and range over the rounds; and
whether the greedy tokens of both are equal.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from edgekit.bundle import open_bundle
from edgekit.host.processor import processor_name
from edgekit.lab.native import There, build_runner, find_runtime, measurement_of, task_words
from edgekit.lab.native.task import settings_of
from edgekit.measure import measure_latency
from edgekit.run import load_runner, machine_class
from edgekit.types.lab import DeviceFacts, Token, read_line

if TYPE_CHECKING:
    from edgekit.types import Bundle, Series
    from edgekit.types.lab import Line, Task

PROMPT = (504, 3575, 282, 4649, 314)
TOKENS = 24


def main() -> None:
    from edgekit.types.lab import Task

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    for name, number in (("rounds", 5), ("threads", 1), ("pp", 128), ("tg", 64)):
        parser.add_argument(f"--{name}", type=int, default=number)
    given = parser.parse_args()
    bundle = open_bundle(given.bundle)
    folder = str(bundle.path.resolve())
    task = Task("bench", folder, threads=given.threads, pp=(given.pp,), tg=(given.tg,), depth=(0,), warmup=1)
    program = build_runner(platform.machine())
    ratios: dict[str, list[float]] = {}
    with closing(load_runner(bundle, settings=settings_of(task, bundle))) as own:
        for _ in range(given.rounds):
            native = measurement_of(_run(program, task, bundle), task, bundle, _facts())
            latency = measure_latency(own, pp=task.pp, tg=task.tg, depth=task.depth, repetitions=1, warmup=1)
            for series in latency.series:
                if series.unit == "tok/s":
                    ratios.setdefault(series.name, []).append(_speed(native.get(series.name)) / _speed(series))
        own.reset()
        made = [int(np.argmax(own.prefill(PROMPT)))]
        while len(made) < TOKENS:
            made.append(int(np.argmax(own.step(made[-1]))))
    asked = Task("generate", folder, threads=given.threads, tokens=PROMPT, max_tokens=TOKENS)
    told = [line.id for line in _run(program, asked, bundle) if isinstance(line, Token)]
    found = {name: {"median": median(r), "low": min(r), "high": max(r)} for name, r in ratios.items()}
    line = {"model": bundle.manifest.provenance.id, "machine": machine_class(), "rounds": given.rounds}
    sys.stdout.write(json.dumps(line | {"native/own": found, "tokens_equal": told == made}) + "\n")


def _run(program: Path, task: Task, bundle: Bundle) -> list[Line]:
    words = task_words(task, bundle, There(str(find_runtime(platform.machine()))))
    done = subprocess.run([program, *words], stdout=subprocess.PIPE, text=True, check=True)
    return [read_line(line) for line in done.stdout.splitlines()]


def _speed(series: Series | None) -> float:
    assert series is not None
    return series.mean


def _facts() -> DeviceFacts:
    return DeviceFacts(
        address="local", identity="", model="", system=platform.platform(), machine=platform.machine(), libc="",
        python="", processor=processor_name(), processor_class="", cores=None, memory_bytes=None,
        free_memory_bytes=None, free_disk_bytes=None, boot_id="",
    )  # fmt: skip


if __name__ == "__main__":
    main()
