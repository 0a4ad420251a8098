"""Phone NPUs, emulated: benchmarks/results/npu.jsonl, of `python -m benchmarks.npu`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.page.records import GB, MB, RecordError, ends, pick, read_lines, reading
from benchmarks.peers.tables import lay_out

if TYPE_CHECKING:
    from pathlib import Path

ROWS = {
    "int8, half precision, v75": "int8, float16",
    "int4 mixed with int8, half precision, v75": "int4 mixed with int8, float16",
    "A16W8, v75": "int8, 16-bit integers",
    "A16W8, v68": "int8, 16-bit integers",
    "A16W4, v75": "int4 mixed with int8, 16-bit integers",
    "A16W4, v68": "int4 mixed with int8, 16-bit integers",
}
FEWEST_BYTES = "all int4, blocks of 64, v75"


def figures(folder: Path) -> dict[str, str]:
    """The table, bytes of a token and what compiling takes."""
    path = folder / "npu.jsonl"
    with reading(path):
        lines = read_lines(path)
        rows = [row(pick(lines, row=name), title) for name, title in ROWS.items()]
        head = ["weights, activations", "device", "binary, one graph", "top-1 and KL against FP32"]
        prompt = emulation(lines[0], "prefill")
        found = {
            "npu.table": lay_out([*head, "lost by quantization", "lost by the NPU"], rows),
            "npu.prompt": str(prompt["tokens"]),
            "npu.steps": str(emulation(lines[0], "decode")["tokens"]),
            "npu.tools": ", ".join(f"{name} {version}" for name, version in lines[0]["tools"]),
        }
        for name, wanted in (("int8", next(iter(ROWS))), ("int4", FEWEST_BYTES)):
            line = pick(lines, row=wanted)
            moved, ratio = line["decode_bytes"], line["decode_bytes"] / line["least_bytes"]
            found[f"npu.{name}.bytes"] = f"{moved / MB:.1f} MB"
            found[f"npu.{name}.ratio"] = f"{ratio:.2f}"
            found[f"npu.{name}.context"] = str(line["context"])
        return found | compiling(lines)


def compiling(lines: list[dict[str, Any]]) -> dict[str, str]:
    """The least and the most that compiling took."""
    found = {}
    for name, values, digits in (
        ("one.seconds", [s for line in lines for s in line["compile_seconds"]], 0),
        ("one.memory", [line["peak_rss_bytes"] / GB for line in lines], 1),
        ("both.seconds", [line["shared_seconds"] for line in lines], 0),
        ("both.memory", [line["shared_peak_rss_bytes"] / GB for line in lines], 1),
    ):
        found[f"npu.{name}.least"], found[f"npu.{name}.most"] = ends(values, digits)
    return found


def emulation(line: dict[str, Any], role: str) -> dict[str, Any]:
    """What the emulator computed of one graph."""
    return pick(line["emulations"], role=role)


def row(line: dict[str, Any], title: str) -> list[str]:
    """A prompt on the emulator: against FP32, and whose loss is whose."""
    of = emulation(line, "prefill")
    if line["nodes_off"] or not of["repeatable"]:
        raise RecordError(
            f"{line['row']}: the page says that all nodes run on the NPU and a second run gives the same bits"
        )
    chip = line["row"].rpartition(", ")[2]
    total, quantization, npu = of["total"], of["quantization"], of["npu"]
    fine = 5 if npu["kld"] < 0.001 else 4
    return [
        title,
        f"{line['target']} ({chip})",
        f"{line['binary_bytes'] / MB:.1f} MB",
        f"{100 * total['top1']:.1f} %, {total['kld']:.4f}",
        f"{100 * quantization['top1']:.1f} %, {quantization['kld']:.4f}",
        f"{100 * npu['top1']:.1f} %, {npu['kld']:.{fine}f}",
    ]
