"""What the lab costs: the driver through SSH beside `edgekit bench` on the same machine, and a second run's delay.

    python benchmarks/lab_overhead.py BUNDLE [--on ssh:USER@HOST] [--rounds 9]

Without --on, starts Debian's sshd on loopback. Each round measures the bundle both ways, in alternating order and in
new processes; only the ratio within a round counts, so that drift of the machine affects both alike. Then runs the
bundle again and prints the seconds from the command to the first token, besides those to load the model, and the bytes
that were pushed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PROMPT, TOKENS = 64, 32
TRIES, BUSY = 5, "times this machine's limit"
"""How often a measurement is made again that says the machine was busy while its limits were measured."""

SERIES = (f"pp{PROMPT}", f"tg{TOKENS}@0")


@contextmanager
def loopback() -> Iterator[tuple[str, dict[str, str]]]:
    """An sshd on loopback: its address, and the environment in which ssh's configuration knows it."""
    sys.path.insert(0, str(ROOT))
    from tests.lab.loopback import Board

    with tempfile.TemporaryDirectory() as folder:
        board = Board(Path(folder))
        try:
            yield "ssh:board", {**os.environ, "HOME": str(board.client)}
        finally:
            board.stop()


def bench(bundle: str, on: str, environment: dict[str, str]) -> dict[str, float]:
    """Mean tokens per second by series; here if ``on`` is ""."""
    command = [sys.executable, "-m", "edgekit", "bench", bundle, "--json", "--pp", str(PROMPT), "--tg", str(TOKENS)]
    command += ["--depth", "0", "--repetitions", "3", *(("--on", on) if on else ())]
    for _ in range(TRIES):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if BUSY not in done.stderr:
            break
    if done.returncode:
        sys.exit(done.stderr)
    series = {one["name"]: one["samples"] for one in json.loads(done.stdout)["series"]}
    return {name: sum(series[name]) / len(series[name]) for name in SERIES}


def second_run(bundle: str, on: str, environment: dict[str, str]) -> dict[str, Any]:
    """Run ``first_token`` in a new process."""
    command = [sys.executable, __file__, bundle, "--on", on, "--since", repr(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def first_token(path: str, on: str, since: float) -> None:
    """As `edgekit run --on`, up to the first token: prints the seconds, those of loading, and the bytes pushed."""
    import edgekit.cli.app  # noqa: F401 - what the command line loads
    from edgekit.bundle import open_bundle
    from edgekit.lab.remote import held_device
    from edgekit.run import Tokenizer
    from edgekit.types import Task
    from edgekit.types.lab import Mark, Token

    pushed: dict[str, int] = {}

    def note(task: str, done: int, *_: object) -> None:
        pushed[task] = done

    bundle = open_bundle(path, check=False)
    tokens = tuple(Tokenizer.of(bundle).encode("The capital of France is"))
    marks: dict[str, float] = {}
    with held_device(on, note) as device:
        task = Task("generate", device.bring(bundle, 64), tokens=tokens, max_tokens=1)
        for line in device.lines(task, pace=0.05):
            if isinstance(line, Mark):
                marks[line.name] = line.at
            if isinstance(line, Token):
                seconds = time.time() - since
    load = marks["load end"] - marks["load begin"]
    print(json.dumps({"seconds": seconds - load, "load": load, "pushed": sum(pushed.values())}))


def measure(bundle: str, on: str, environment: dict[str, str], rounds: int) -> None:
    """Print the ratios of all rounds, and the second run's delay."""
    bench(bundle, on, environment)  # pushes what is missing
    ratios: dict[str, list[float]] = {name: [] for name in SERIES}
    for turn in range(rounds):
        order = ("", on) if turn % 2 else (on, "")
        found = {where: bench(bundle, where, environment) for where in order}
        for name in SERIES:
            ratios[name].append(found[on][name] / found[""][name])
        print(f"round {turn + 1}: " + ", ".join(f"{name} {ratios[name][-1]:.3f}" for name in SERIES), flush=True)
    for name in SERIES:
        ordered = sorted(ratios[name])
        print(f"{name}: driver / edgekit bench = {median(ordered):.3f} ({ordered[0]:.3f} to {ordered[-1]:.3f})")
    runs = [second_run(bundle, on, environment) for _ in range(5)]
    fastest = min(runs, key=lambda one: one["seconds"])
    delays = sorted(one["seconds"] for one in runs)
    print(f"command to first token besides loading: median {median(delays):.2f} s, fastest {delays[0]:.2f} s")
    print(f"loading {fastest['load']:.2f} s, pushed {max(one['pushed'] for one in runs)} bytes")


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--on", default="")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--since", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.since:
        first_token(given.bundle, given.on, given.since)
    elif given.on:
        measure(given.bundle, given.on, dict(os.environ), given.rounds)
    else:
        with loopback() as (on, environment):
            measure(given.bundle, on, environment, given.rounds)


if __name__ == "__main__":
    main()
