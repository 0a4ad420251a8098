"""The process that holds one contender open, in the contender's own environment; see session.py for the other end.

    python -m benchmarks.peers.driver NAME FOLDER THREADS CONTEXT

It says when it is ready, then answers one JSON line with one JSON line: {"prompt": [..], "new": n} with a Timing,
{"tokens": [..], "out": "x.npy"} with the logits in that file. The libraries' own talk goes to stderr.
"""

import json
import os
import sys
import time
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from benchmarks.peers.contenders import find_contenders


def peak_memory() -> int:
    """The highest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def version_of(package: str) -> str:
    """A package's version, "" where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def main() -> None:
    name, folder, threads, context = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict[str, object]) -> None:
        answers.write(json.dumps({**value, "peak_rss_bytes": peak_memory()}) + "\n")
        answers.flush()

    contender = find_contenders()[name]
    started = time.perf_counter()
    for module in contender.imports:
        import_module(module)
    imported = time.perf_counter()
    model = contender.open(Path(folder), int(threads), int(context))
    opened = time.perf_counter()
    answer(
        {
            "import_seconds": imported - started,
            "load_seconds": opened - imported,
            "versions": {package: version_of(package) for package in contender.packages},
        }
    )
    for line in sys.stdin:
        asked = json.loads(line)
        if "prompt" in asked:
            answer(asdict(model.generate(asked["prompt"], asked["new"])))
        else:
            np.save(asked["out"], model.logits(asked["tokens"]))
            answer({})


if __name__ == "__main__":
    main()
