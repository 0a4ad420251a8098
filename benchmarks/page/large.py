"""Builds of large models: benchmarks/results/AMX/large.jsonl, of `python benchmarks/large.py`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from benchmarks.page.records import GB, RecordError, pick, read_lines, reading
from benchmarks.peers.tables import lay_out

if TYPE_CHECKING:
    from pathlib import Path

ROWS = (
    ("edgekit", "135M"),
    ("edgekit", "1B"),
    ("edgekit", "8B"),
    ("edgekit, no numba", "8B"),
    ("onnxruntime-genai", "135M"),
    ("onnxruntime-genai", "1B"),
    ("onnxruntime-genai", "8B"),
)


def figures(folder: Path) -> dict[str, str]:
    """The table."""
    path = folder / "AMX" / "large.jsonl"
    with reading(path):
        lines = read_lines(path)
        rows = [row(pick(lines, tool=tool, shape=shape)) for tool, shape in ROWS]
        return {"large.table": lay_out(["", "source", "wall", "peak RSS", "floor, read + write"], rows)}


def row(line: dict[str, Any]) -> list[str]:
    """One build, or why there is none."""
    tool = line["tool"].replace(", no ", " without ")
    name = [f"{tool}, {line['shape']}", f"{line['source_bytes'] / GB:.2f} GB"]
    if line["reason"]:
        return [*name, f"failed: {cause(line['reason'])}", "", ""]
    seconds, memory = line["seconds"], line["peak_rss_bytes"] / GB
    ours = line["tool"].startswith("edgekit")
    return [
        *name,
        f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s",
        f"{memory:.3f} GB" if ours else f"{memory:.3g} GB",
        f"{line['floor_read_seconds']:.2f} + {line['floor_write_seconds']:.2f} s",
    ]


def cause(reason: str) -> str:
    """The end of a process in words: without the paths in it."""
    found = re.search(r"(\w+: unable to mmap \d+ bytes).*(Cannot allocate memory)", reason)
    if not found:
        raise RecordError(f"the failure {reason!r} has no words on the page yet")
    return f"{found[1]}, {found[2].lower()}"
