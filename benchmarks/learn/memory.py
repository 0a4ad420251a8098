"""What calibrating large models takes: one and two layers of their shape, with random weights and whole tables.

A layer's cost is the difference of the two; the whole model's is the first plus a layer's times the others: estimated.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from benchmarks.learn.making import edgekit
from benchmarks.shapes import SHAPES, make_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

GB = 1e9


def measure(shape: str, work: Path) -> dict[str, Any]:
    """Processor time and peak resident memory of both builds, and what follows for all layers."""
    spent = []
    for layers in (1, 2):
        source, out = work / f"{shape}-{layers}", work / "calibrated"
        make_checkpoint(source, shape, layers=layers)
        words = ("build", str(source), "-o", str(out), "--force", "--calibrate", "packaged")
        spent.append(edgekit(*words, log=work / "memory.log"))
        shutil.rmtree(out)
        shutil.rmtree(source)
    layers, (one, two) = SHAPES[shape]["layers"], spent
    whole = one.cpu_seconds + (layers - 1) * (two.cpu_seconds - one.cpu_seconds)
    return {
        "row": "memory",
        "shape": shape,
        "measured": [asdict(s) for s in spent],
        "layers": layers,
        "estimated_cpu_seconds": whole,
        "estimated_rss_bytes": one.rss_bytes + (layers - 1) * max(0, two.rss_bytes - one.rss_bytes),
    }


def words(line: dict[str, Any]) -> str:
    """The line in words."""
    measured = "; ".join(
        f"{i} layer{'s' * (i > 1)}: {s['cpu_seconds']:.0f} CPU-s, {s['rss_bytes'] / GB:.2f} GB"
        for i, s in enumerate(line["measured"], 1)
    )
    estimated = f"{line['estimated_cpu_seconds'] / 3600:.2f} CPU-h, {line['estimated_rss_bytes'] / GB:.2f} GB"
    return f"calibrating {line['shape']}: {measured}; estimated for {line['layers']} layers: {estimated}"
