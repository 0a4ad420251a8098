"""Store results in a folder for each class of processor.

python -m benchmarks.results        compare the newest run of each class
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.host.processor import processor_class, processor_name

if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDER = Path(__file__).parent / "results"


def results_file(name: str) -> Path:
    """The results file of a benchmark for this processor's class."""
    return FOLDER / (processor_class() or platform.machine()) / name


def append_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Append JSON lines, each with the processor and its class."""
    here = {"processor": processor_name() or platform.machine(), "processor_class": processor_class()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(here | line) + "\n" for line in lines)


def side_by_side(folder: Path = FOLDER) -> str:
    """A table of the KLD and speeds of each contender, by class."""
    from benchmarks.peers.records import read_runs
    from benchmarks.peers.tables import lay_out

    runs = {path.parent.name: read_runs(path)[-1] for path in sorted(folder.glob("*/peers.jsonl"))}
    workloads = list(dict.fromkeys(w for run in runs.values() for w in run.workloads))
    titles: dict[str, str] = {}
    for run in runs.values():
        titles |= run.titles
    rows = []
    for contender, title in titles.items():
        for kind, run in runs.items():
            quality = run.quality(contender)
            if quality is None:
                continue
            kld = quality["kld_mean"]
            speeds = [run.speed(contender, workload) for workload in workloads]
            told = [f"{s.middle:.0f} [{s.low:.0f}, {s.high:.0f}]" if s else "-" for s in speeds]
            rows.append([title, kind, f"{kld['value']:.4f} [{kld['low']:.4f}, {kld['high']:.4f}]", *told])
    return lay_out(["tok/s, median [range]", "class", "KLD", *workloads], rows)


if __name__ == "__main__":
    sys.stdout.write(side_by_side() + "\n")
