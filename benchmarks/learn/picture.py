"""Quality per byte: data-free, calibrated, recovered and distilled bundles beside the peers, on the same text.

The peers' points are of the newest race on AMX. A learned bundle is shown if it was scored on the same tokens against
the same off-grid reference; its integers are the same on every class (docs/benchmarks.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.learn.table import comparable, title
from benchmarks.peers.picture import Point, draw_panels, size_points
from benchmarks.peers.records import read_runs
from benchmarks.peers.tables import MB
from benchmarks.results import FOLDER

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.learn.table import Line


def draw(lines: list[Line], out: Path) -> None:
    """Write the picture (SVG or PNG, by the file's ending)."""
    run = read_runs(FOLDER / "AMX" / "peers.jsonl")[-1]
    points = size_points(run)
    for line, kld in comparable(lines, run):
        size = line["bytes"] / MB
        points.append(Point(title(line), True, size, size, size, (kld["value"], kld["low"], kld["high"])))
    draw_panels([("Quality per byte", "MB, smaller is better", points)], out)
