"""Measure quality and size of INT8 and INT4, and the cost of builds compared with onnxruntime-genai's builder.

    python benchmarks/straight_line.py [--text FILE] [--tokens 4096] [--rounds 5] [--results FILE.jsonl]

Quality is measured on the shipped file in ONNX Runtime against the FP32 logits of an off-grid reference (see
reference.py) and, for comparison, against the packaged 4-bit file itself. Builds run as whole processes, alternating
between edgekit and the peer; wall time includes imports, RSS is the kernel's peak.

The lower bound of a build is reading the source, one pass of arithmetic per candidate scale, and writing the bundle;
the time of the two transfers alone is printed.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import numpy as np
from graph_runner import GraphRunner
from reference import make_reference
from results import append_lines
from scoring import make_yardstick
from spending import Spent, spend

from edgekit import build_bundle, load_runner
from edgekit.config.recipe import load_recipe
from edgekit.host.processor import processor_class, processor_name
from edgekit.measure import Reference, Text, score
from edgekit.run.runtime import onnxruntime
from edgekit.types import Bundle, Quality

MB = 1e6


def transfers(source: Path, size: int) -> tuple[float, float]:
    """Seconds to read the source once, and to write and sync ``size`` bytes."""
    started = time.perf_counter()
    buffer = bytearray(1 << 22)
    with (source / "model.safetensors").open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    read = time.perf_counter() - started
    started = time.perf_counter()
    with tempfile.NamedTemporaryFile(dir=source.parent) as file:
        for _ in range(0, size, len(buffer)):
            file.write(buffer)
        os.fsync(file.fileno())
    return read, time.perf_counter() - started


def scored(bundle: Bundle, reference: Reference, text: Text, name: str) -> Quality:
    """Measure the quality of a bundle's shipped file."""
    runner = load_runner(bundle)
    try:
        return score(
            runner,
            reference,
            text=text.name,
            text_sha256=text.sha256,
            reference_name=name,
            runtime=f"onnxruntime {onnxruntime.__version__}",
            accuracy_level=bundle.manifest.accuracy_level,
            processor_class=processor_class(),
        )
    finally:
        runner.close()


def show(label: str, size: float, quality: Quality, extra: str = "") -> None:
    kld, top1, ratio = quality.kld_mean, quality.top1, quality.ppl_ratio
    print(
        f"{label:<34} {size / MB:7.1f} MB  KLD {kld.value:.4f} [{kld.low:.4f}, {kld.high:.4f}]  "
        f"top-1 {100 * top1.value:5.1f} % [{100 * top1.low:.1f}, {100 * top1.high:.1f}]  "
        f"PPL x{ratio.value:.4f}  {extra}",
        flush=True,
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--work", type=Path, default=Path("demo/benchmark"), help="folder for references and bundles")
    parser.add_argument("--text", type=Path, help="the text to score on; by default CPython's documentation")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the build comparison")
    parser.add_argument("--seed", type=int, default=1234, help="random seed for the reference's noise")
    parser.add_argument("--results", type=Path, help="append JSON lines to this file")
    return parser.parse_args()


def main() -> None:
    options = parse()
    work: Path = options.work
    reference = make_reference(options.model, work / "reference", options.seed)
    lines: list[dict[str, object]] = []

    protocol = (options.text, options.window, options.tokens)
    yardstick = make_yardstick(str(reference), work / "fp32", *protocol)
    off_grid, text, float32 = yardstick.reference, yardstick.text, yardstick.bundle
    on_grid = make_yardstick(options.model, work / "packaged", *protocol).reference
    print(
        f"{processor_name() or platform.machine()} ({processor_class() or 'unknown class'}), {os.cpu_count()} cores, "
        f"onnxruntime {onnxruntime.__version__}"
    )
    print(
        f"{text.name}: {off_grid.tokens.size} tokens in windows of {options.window}, no BOS; 95 % bootstrap of windows"
    )

    print(f"\nOff-grid reference, seed {options.seed}, {float32.manifest.bytes / MB:.1f} MB of FP32")
    plans = (
        ("INT8", {"precision": "int8"}),
        ("INT4, default recipe", {"precision": "int4"}),
        ("INT4, --size-mb 92", {"precision": "int4", "size_mb": 92}),
        ("INT4, --size-mb 110", {"precision": "int4", "size_mb": 110}),
        ("INT4, round to nearest, all alike", {"recipe": replace(load_recipe("int4"), method="rtn", overrides=())}),
    )
    full = sum(4 * np.prod(t.shape) for t in float32.manifest.tensors)
    for label, plan in plans:
        started = time.perf_counter()
        bundle = build_bundle(str(reference), out=work / "small", force=True, **plan)
        seconds = time.perf_counter() - started
        quality = scored(bundle, off_grid, text, "off-grid")
        ratio = full / bundle.manifest.bytes
        extra = f"{ratio:.2f}x smaller, {bundle.manifest.bits_per_weight:.3f} bits/weight, built in {seconds:.1f} s"
        show(label, bundle.manifest.bytes, quality, extra)
        lines.append({"what": label, "bytes": bundle.manifest.bytes, "ratio": ratio, "quality": asdict(quality)})
    print(f"perplexity of the reference: {quality.reference_ppl:.3f}")

    print("\nPackaged file as the reference (already 4-bit, as in the demo)")
    for label, plan in plans[:2]:
        bundle = build_bundle(options.model, out=work / "small", force=True, **plan)
        quality = scored(bundle, on_grid, text, "packaged")
        show(label, bundle.manifest.bytes, quality)
        lines.append({"what": f"{label}, packaged", "bytes": bundle.manifest.bytes, "quality": asdict(quality)})

    lines += compare_builds(reference, work, options.rounds, off_grid, text, float32.manifest.spec.head_dim)
    if options.results:
        append_lines(options.results, ({"seed": options.seed, **line} for line in lines))


def compare_builds(
    reference: Path, work: Path, rounds: int, off_grid: Reference, text: Text, head_dim: int
) -> list[dict[str, object]]:
    """Run builds of edgekit and onnxruntime-genai in turn, as whole processes."""
    peer = work / "genai-int4"
    ours = [sys.executable, "-m", "edgekit", "build", str(reference), "-o", str(work / "cli"), "--force"]
    theirs = [
        *(sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(reference), "-o", str(peer)),
        *("-p", "int4", "-e", "cpu", "-c", str(work / "cache")),
    ]
    print(f"\nFP32 -> INT4 as a whole process, {rounds} rounds in turn")
    spent: dict[str, list[Spent]] = {"edgekit": [], "onnxruntime-genai": []}
    for _ in range(rounds):
        for name, command in (("edgekit", ours), ("onnxruntime-genai", theirs)):
            one = spend(command)
            if one.code:
                print(f"{name}: exit code {one.code}; is it installed in this environment?")
                return []
            spent[name].append(one)
    for name, runs in spent.items():
        seconds, memory = [s.seconds for s in runs], [s.rss_bytes / MB for s in runs]
        print(
            f"{name:<20} wall {median(seconds):6.2f} s [{min(seconds):.2f}, {max(seconds):.2f}]  "
            f"peak RSS {median(memory):6.0f} MB [{min(memory):.0f}, {max(memory):.0f}]"
        )
    pairs = list(zip(spent["edgekit"], spent["onnxruntime-genai"], strict=True))
    faster = [b.seconds / a.seconds for a, b in pairs]
    leaner = [b.rss_bytes / a.rss_bytes for a, b in pairs]
    print(
        f"edgekit is {median(faster):.2f}x [{min(faster):.2f}, {max(faster):.2f}] faster and takes "
        f"{median(leaner):.2f}x [{min(leaner):.2f}, {max(leaner):.2f}] less memory (ratios within a round)"
    )
    read, write = transfers(reference, 92_000_000)
    print(f"the floor: reading the source {read:.2f} s, writing and syncing 92 MB {write:.2f} s")
    size = sum(f.stat().st_size for f in peer.rglob("*") if f.is_file())
    quality = score(
        GraphRunner(peer / "model.onnx", head_dim),
        off_grid,
        text=text.name,
        text_sha256=text.sha256,
        reference_name="off-grid",
        runtime=f"onnxruntime {onnxruntime.__version__}",
        accuracy_level=4,
        processor_class=processor_class(),
    )
    show("onnxruntime-genai int4", size, quality)
    return [
        {"what": f"build, {name}", "seconds": [s.seconds for s in runs], "rss_bytes": [s.rss_bytes for s in runs]}
        for name, runs in spent.items()
    ] + [{"what": "onnxruntime-genai int4", "bytes": size, "quality": asdict(quality)}]


if __name__ == "__main__":
    main()
