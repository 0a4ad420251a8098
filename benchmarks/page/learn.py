"""Learned weights: benchmarks/results/learn.jsonl, of `python -m benchmarks.learn`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.learn.table import comparable, newest, quality_table, title, trained_on, without_data
from benchmarks.page.records import read_lines, reading
from benchmarks.peers.tables import lay_out

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.peers.records import Run


def figures(folder: Path) -> dict[str, str]:
    """The whole table, and a short one for the page of learning."""
    path = folder / "learn.jsonl"
    with reading(path):
        lines = read_lines(path)
        return {"learn.table": quality_table(lines), "learn": brief_table(lines)}


def brief_table(lines: list[dict[str, Any]]) -> str:
    """KLD and its share of the data-free bundle's, a column for each text; what it took."""
    kept = newest(lines)
    texts = list(dict.fromkeys(quality["text"] for line in kept for quality in line["qualities"]))
    rows = []
    for line in kept:
        if line["row"] not in ("calibrated", "recovered"):
            continue
        cells = dict.fromkeys(texts, "-")
        for quality in line["qualities"]:
            free, kld = without_data(line, quality, kept), quality["kld_mean"]["value"]
            before = f", {kld / free['kld_mean']['value']:.2f}x of {free['kld_mean']['value']:.4f}" if free else ""
            cells[quality["text"]] = f"{kld:.4f}{before}"
        rows.append([line["name"], trained_on(line), *cells.values(), cost(line)])
    return lay_out(["", "text that it was fitted to", *(f"KLD on {text}" for text in texts), "cost"], rows)


def cost(line: dict[str, Any]) -> str:
    """Processor time of the process and its memory, or the minutes of the training run."""
    if line["spent"]:
        return f"{line['spent']['cpu_seconds'] / 60:.1f} CPU min, {line['spent']['rss_bytes'] / 1e9:.1f} GB"
    return f"{line['training']['minutes']:.0f} min of training" if line["training"] else "-"


def beside_peers(folder: Path, run: Run) -> list[list[str]]:
    """Learned bundles that were scored like the peers: what it is, size, KLD. Their speed is their recipe's."""
    path = folder / "learn.jsonl"
    with reading(path):
        return [
            [title(line), f"{line['bytes'] / 1e6:.1f} MB", f"{kld['value']:.3f}"]
            for line, kld in comparable(read_lines(path), run)
        ]
