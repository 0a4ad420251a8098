"""Quality at size, builds and what limits decoding: AMX/straight_line.jsonl and AMX/operators.jsonl."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.page.records import GB, MB, interval, percents, pick, read_lines, reading, spread
from benchmarks.peers.records import Spread
from benchmarks.peers.tables import lay_out

if TYPE_CHECKING:
    from pathlib import Path

SHOWN = {
    "INT8": "INT8",
    "INT4, default recipe": "INT4 (default recipe)",
    "INT4, --size-mb 92": "INT4, `--size-mb 92`",
    "INT4, --size-mb 110": "INT4, `--size-mb 110`",
    "onnxruntime-genai int4": "onnxruntime-genai int4",
}


def figures(folder: Path) -> dict[str, str]:
    """Tables and numbers of one bundle's size, quality and making."""
    path = folder / "AMX" / "straight_line.jsonl"
    with reading(path):
        lines = read_lines(path)
        found = {
            "size.table": size_table(lines),
            "size.ratio": f"{pick(lines, what='INT4, --size-mb 92')['ratio']:.2f}",
        }
        for name, what in (("int8", "INT8, packaged"), ("int4", "INT4, default recipe, packaged")):
            quality = pick(lines, what=what)["quality"]
            found[f"packaged.{name}.kld"] = f"{quality['kld_mean']['value']:.4f}"
            found[f"packaged.{name}.top1"] = f"{100 * quality['top1']['value']:.1f} %"
        found |= builds(pick(lines, what="build, edgekit"), pick(lines, what="build, onnxruntime-genai"))
    path = folder / "AMX" / "operators.jsonl"
    with reading(path):
        found |= decoding(pick(read_lines(path), bundle="small"))
    return found


def size_table(lines: list[dict[str, Any]]) -> str:
    """Size, KL divergence and top-1 with their intervals."""
    rows = []
    for what, title in SHOWN.items():
        line = pick(lines, what=what)
        kld, top1 = interval(line["quality"]["kld_mean"], 4), percents(line["quality"]["top1"])
        rows.append([title, f"{line['bytes'] / MB:.1f} MB", kld, top1.replace(" [", " % [")])
    return lay_out(["bundle", "size", "KL divergence", "top-1"], rows)


def builds(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, str]:
    """Whole processes in turn, and the ratios inside a round."""
    faster = [b / a for a, b in zip(ours["seconds"], theirs["seconds"], strict=True)]
    leaner = [b / a for a, b in zip(ours["rss_bytes"], theirs["rss_bytes"], strict=True)]
    found = {"build.faster": spread(Spread.of(faster), 2, "x"), "build.leaner": spread(Spread.of(leaner), 1, "x")}
    for name, line in (("ours", ours), ("theirs", theirs)):
        found[f"build.{name}.seconds"] = f"{median(line['seconds']):.2f} s"
        found[f"build.{name}.memory"] = f"{median(line['rss_bytes']) / MB:.0f} MB"
    return found | {"build.rounds": str(len(faster))}


def decoding(line: dict[str, Any]) -> dict[str, str]:
    """A token's time beside that of its products and attention alone."""
    rows = [
        [
            f"{depth['context']} tokens",
            f"{depth['token_ms']:.2f} ms",
            f"{depth['products_and_attention_ms']:.2f} ms, {100 * depth['products_and_attention_share']:.0f} %",
            f"{100 * depth['products_share']:.0f} %",
        ]
        for depth in line["depths"]
    ]
    return {
        "decode.table": lay_out(["context", "a token", "matmuls and attention alone", "matmuls alone"], rows),
        "decode.products": f"{line['products_bytes_per_s'] / GB:.1f} GB/s",
        "decode.read": f"{line['plain_read_bytes_per_s'] / GB:.1f} GB/s",
        "decode.origin": line["transcribed"],
        "decode.command": line["command"],
    }
