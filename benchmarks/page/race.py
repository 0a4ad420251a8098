"""edgekit beside its peers: benchmarks/results/CLASS/peers.jsonl and quality.jsonl, of `python -m benchmarks.peers`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.page.learn import beside_peers
from benchmarks.page.records import MB, RecordError, last_run, need, reading, spread
from benchmarks.page.records import interval as interval_of
from benchmarks.peers.tables import OURS, lay_out

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.peers.records import Run

WORKLOADS = ("pp512", "tg128@512", "tg128@32")
SHOWN = {
    "edgekit-int4": "edgekit INT4 (default)",
    "edgekit-fast": "edgekit fast",
    "edgekit-small": "edgekit small",
    "edgekit-small-memory": "edgekit small, `--small-memory`",
    "edgekit-int8": "edgekit INT8",
    "genai": "onnxruntime-genai int4",
    "llama.cpp": "llama.cpp Q4_0 pure",
    "openvino": "OpenVINO GenAI int4",
    "optimum": "optimum-onnx int8, dynamic",
}
DUELS = (
    ("genai", "edgekit-small", "AMX"),
    ("genai", "edgekit-small", "AVX512-VNNI"),
    ("llama.cpp", "edgekit-small", "AMX"),
    ("llama.cpp", "edgekit-small", "AVX512-VNNI"),
    ("openvino", "edgekit-fast", "AMX"),
    ("openvino", "edgekit-fast", "AVX512-VNNI"),
    ("optimum", "edgekit-fast", "AMX"),
    ("optimum", "edgekit-small", "AMX"),
    ("optimum", "edgekit-small", "AVX512-VNNI"),
)
"""A peer, and one of ours that is no farther from FP32 than it."""


def figures(folder: Path) -> dict[str, str]:
    """Tables and numbers of the races."""
    runs = {}
    for kind in ("AMX", "AVX512-VNNI", "AVX2"):
        with reading(folder / kind / "peers.jsonl"):
            runs[kind] = last_run(folder / kind / "peers.jsonl")
    with reading(folder / "AMX" / "peers.jsonl"):
        found = {
            "peers": brief_table(runs["AMX"], beside_peers(folder, runs["AMX"])),
            "peers.table": whole_table(runs["AMX"]),
        }
        found |= conditions(runs["AMX"])
    with reading(folder / "*" / "peers.jsonl"):
        found["peers.ratios"] = ratio_table(runs)
    newer = folder / "AVX512-VNNI" / "quality.jsonl"
    with reading(newer):
        found["classes.table"] = classes_table(last_run(newer), runs["AVX512-VNNI"], runs["AVX2"])
    return found


def kld(run: Run, name: str) -> float:
    """Nats from the FP32 reference."""
    value: float = need(run.quality(name))["kld_mean"]["value"]
    return value


def brief_table(run: Run, learned: list[list[str]]) -> str:
    """Medians alone, for the README, and learned bundles, whose speed is that of the same recipe without data."""
    rows = []
    for name, title in SHOWN.items():
        speeds = [f"{need(run.speed(name, workload)).middle:.0f}" for workload in WORKLOADS]
        memory = need(run.starts(name, "peak_rss_bytes")).high
        rows.append([title, *size_and_kld(run, name), *speeds, f"{memory / MB:.0f} MB"])
    ours = sum(name.startswith(OURS) for name in SHOWN)
    rows[ours:ours] = [[*cells, *[""] * 4] for cells in learned]
    return lay_out(["", "size", "KLD", "prompt of 512", "decode after 512", "decode after 32", "peak RSS"], rows)


def whole_table(run: Run) -> str:
    """Medians with their ranges, load time and memory."""
    rows = []
    for name, title in SHOWN.items():
        speeds = [spread(need(run.speed(name, workload)), 0) for workload in WORKLOADS]
        load, memory = (need(run.starts(name, key)) for key in ("load_seconds", "peak_rss_bytes"))
        starts = [f"{load.middle:.2f} s", f"{memory.high / MB:.0f} MB"]
        rows.append([title, *size_and_kld(run, name), *speeds, *starts])
    return lay_out(["AMX", "size", "KLD", *(f"{w} tok/s" for w in WORKLOADS), "load", "peak RSS"], rows)


def size_and_kld(run: Run, name: str) -> list[str]:
    """Two cells."""
    return [f"{need(run.conversion(name))['bytes'] / MB:.1f} MB", f"{kld(run, name):.3f}"]


def ratio_table(runs: dict[str, Run]) -> str:
    """Ratios of speed inside each round against every peer."""
    rows = []
    for peer, ours, kind in DUELS:
        run = runs[kind]
        if kld(run, ours) > kld(run, peer):
            raise RecordError(f"{kind}: {ours} is farther from FP32 than {peer}, so the two must not be compared")
        ratios = [spread(need(run.ratio(ours, peer, workload)), 2, "x") for workload in WORKLOADS]
        rows.append([SHOWN[peer], ours.removeprefix("edgekit-"), kind, *ratios])
    return lay_out(["against", "edgekit", "class", *WORKLOADS], rows)


def classes_table(newer: Run, older: Run, avx2: Run) -> str:
    """The same weights on two classes; the default INT4, which the change did not touch, from the older run."""
    rows = []
    for name in ("edgekit-int4", "edgekit-fast", "edgekit-small", "genai"):
        with_vnni = need((newer if newer.quality(name) else older).quality(name))["kld_mean"]
        without = need(avx2.quality(name))["kld_mean"]
        speeds = [spread(need(avx2.ratio(name, "genai", w)), 2, "x") for w in WORKLOADS] if name != "genai" else []
        rows.append([SHOWN[name], interval_of(with_vnni, 4), interval_of(without, 4), *(speeds or [""] * 3)])
    return lay_out(["", "KLD, AVX512-VNNI", "KLD, AVX2", *(f"{w}, AVX2" for w in WORKLOADS)], rows)


def conditions(run: Run) -> dict[str, str]:
    """How the race was run."""
    quality = need(run.quality("edgekit-int4"))
    environment = next(r for r in run.records if r["what"] == "speed")["environment"]
    versions: dict[str, str] = {}
    for record in run.records:
        versions |= dict(record["environment"]["runtime"])
    named = ("onnxruntime", "onnxruntime-genai", "llama-cpp-python", "openvino-genai", "optimum-onnx")
    return {
        "peers.rounds": str(1 + max(r["round"] for r in run.records if r["what"] == "speed")),
        "peers.foreign": f"{need(run.foreign_cores()).middle:.2f}",
        "peers.positions": str(quality["tokens"]),
        "peers.window": str(quality["window"]),
        "peers.cores": str(environment["cores"]),
        "peers.threads": str(environment["threads"]),
        "peers.versions": ", ".join(f"{name} {versions[name]}" for name in named),
    }
