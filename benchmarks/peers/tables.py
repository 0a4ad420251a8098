"""A run as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit import words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.peers.records import Run, Spread

MB = 1e6
OURS = "edgekit"
"""Contenders whose name begins so are ours; the others are peers."""


def conversion_table(run: Run) -> str:
    """What each contender's files took to make from FP32, and their size."""
    rows = []
    for name, title in run.titles.items():
        made, reason = run.conversion(name), run.refusal(name)
        numbers = (
            [f"{made['seconds']:.1f} s", f"{made['rss_bytes'] / MB:.0f} MB", f"{made['bytes'] / MB:.1f} MB"]
            if made
            else ["-"] * 3
        )
        rows.append([title, *numbers, reason or ""])
    return lay_out(["conversion from FP32", "wall", "peak RSS", "size", ""], rows)


def quality_table(run: Run) -> str:
    """KLD, top-1 and perplexity ratio with their intervals."""
    rows = []
    for name, title in run.titles.items():
        quality, made = run.quality(name), run.conversion(name)
        if quality and made:
            kld, top1, ratio = (quality[key] for key in ("kld_mean", "top1", "ppl_ratio"))
            rows.append(
                [
                    title,
                    f"{made['bytes'] / MB:.1f} MB",
                    f"{kld['value']:.4f} [{kld['low']:.4f}, {kld['high']:.4f}]",
                    f"{100 * top1['value']:.1f} % [{100 * top1['low']:.1f}, {100 * top1['high']:.1f}]",
                    f"x{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]",
                ]
            )
    return lay_out(["quality", "size", "KLD, nats", "top-1", "perplexity"], rows)


def speed_table(run: Run) -> str:
    """Absolute medians with their ranges, load and memory."""
    rows = []
    for name, title in run.titles.items():
        speeds = [_tokens(run.speed(name, workload)) for workload in run.workloads]
        load, imports, memory = (run.starts(name, k) for k in ("load_seconds", "import_seconds", "peak_rss_bytes"))
        if load and imports and memory:
            starts = [f"{load.middle:.2f} s", f"{imports.middle:.2f} s", f"{memory.high / MB:.0f} MB"]
            rows.append([title, *speeds, *starts])
    return lay_out(["tok/s, median [range]", *run.workloads, "load", "import", "peak RSS"], rows)


def ratio_table(run: Run, ours: str) -> str:
    """One of our contenders against every peer: ratios of speed inside each round, and both KLDs."""
    rows = []
    mine = run.quality(ours)
    for name, title in run.titles.items():
        if name.startswith(OURS):
            continue
        if reason := run.refusal(name):
            rows.append([title, reason])
            continue
        ratios = [_times(run.ratio(ours, name, workload)) for workload in run.workloads]
        rows.append([title, *ratios, _klds(mine, run.quality(name))])
    return lay_out([f"{run.titles[ours]} against", *run.workloads, "KLD, ours / theirs"], rows)


def whole_report(run: Run) -> str:
    """All tables, and on what they were measured."""
    parts = [machine(run), conversion_table(run), quality_table(run)]
    if run.workloads:
        parts.append(speed_table(run))
        racing = [name for name in run.titles if name.startswith(OURS) and run.speed(name, run.workloads[0])]
        parts += [ratio_table(run, name) for name in racing]
    return "\n\n".join(parts)


def machine(run: Run) -> str:
    """Where and how, in some lines."""
    environment = run.records[0]["environment"]
    processor = words.processor(environment["cpu"], environment.get("processor_class", ""))
    governor = environment["governor"] or "unknown"
    lines = [f"{processor}, {environment['cores']} cores, {environment['threads']} threads, governor {governor}"]
    busy = run.foreign_cores()
    if busy:
        rounds = 1 + max(r["round"] for r in run.records if r["what"] == "speed")
        lines.append(f"{rounds} rounds; other processes used {busy.middle:.2f} [{busy.low:.2f}, {busy.high:.2f}] cores")
    quality = next((r["quality"] for r in run.records if r["what"] == "quality"), None)
    if quality:
        tokens = f"{quality['tokens']} positions in windows of {quality['window']}"
        lines.append(f"quality: {quality['text']}, {tokens}, no BOS; 95 % bootstrap of windows")
    return "\n".join(lines)


def lay_out(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns stand under each other in plain text too."""
    count = len(head)
    filled = [list(row) + [""] * (count - len(row)) for row in [head, *rows]]
    # A reason may be long: it does not widen the column it begins in.
    widths = [
        max(len(row[i]) for row, raw in zip(filled, [head, *rows], strict=True) if len(raw) == count or i == 0)
        for i in range(count)
    ]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in filled
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _tokens(spread: Spread | None) -> str:
    return f"{spread.middle:.0f} [{spread.low:.0f}, {spread.high:.0f}]" if spread else "-"


def _times(spread: Spread | None) -> str:
    return f"{spread.middle:.2f}x [{spread.low:.2f}, {spread.high:.2f}]" if spread else "-"


def _klds(ours: dict | None, theirs: dict | None) -> str:
    return " / ".join(f"{quality['kld_mean']['value']:.3f}" if quality else "-" for quality in (ours, theirs))
