"""Compile and emulate SmolLM2-135M for Qualcomm's NPUs.

    python -m benchmarks.npu [--text FILE] [--calibrate TEXT] [--tokens 256] [--steps 8] [--row NAME ...]
                             [--output FILE]

Each row is a build for one device: nodes off the NPU, binary size, wall time and peak RSS of the compiler, the DRAM
bytes of a decoded token reported by the compiler, and the logits of the compiled graphs on the vendor's emulator
against FP32 and against the same graphs on the CPU. The text was not used for calibration. Times are from one run on
this machine; agreement and bytes are exact and repeatable. None of these numbers is the speed of a phone.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from edgekit import build_bundle
from edgekit.build.npu_emulate import Probe, emulate_build, make_probe
from edgekit.build.pipeline import ForNpu
from edgekit.bundle.reading import read_placements
from edgekit.config.recipe import load_recipe
from edgekit.measure import embedded_text, read_text
from edgekit.record import to_json
from edgekit.source import open_model
from edgekit.types import Bundle, Grid, Recipe
from edgekit.types.device import Activations, Precision
from edgekit.types.npu import Emulation

FOUR = Grid(4, 64, symmetric=True)
ALL_FOUR = replace(
    load_recipe("npu-int4"), name="npu-all-int4", linear=FOUR, embedding=FOUR, overrides=(), method="search"
)


@dataclass(frozen=True)
class Row:
    """A build and its goals."""

    name: str
    target: str
    precision: Precision
    activations: Activations
    recipe: Recipe | None = None
    emulated: bool = True
    top1: float = 0.0
    binary_mb: float = 0.0


ROWS = (
    Row("int8, half precision, v75", "galaxy-s24", "int8", "float16", top1=0.96, binary_mb=145),
    Row("int4 mixed with int8, half precision, v75", "galaxy-s24", "int4", "float16", top1=0.82, binary_mb=110),
    Row("A16W8, v75", "galaxy-s24", "int8", "uint16", top1=0.94),
    Row("A16W8, v68", "qcs6490", "int8", "uint16", top1=0.88),
    Row("A16W4, v75", "galaxy-s24", "int4", "uint16"),
    Row("A16W4, v68", "qcs6490", "int4", "uint16"),
    Row("all int4, blocks of 64, v75", "galaxy-s24", "int4", "float16", recipe=ALL_FOUR, emulated=False),
)


@dataclass(frozen=True)
class Sample:
    """The results of one row. ``least_bytes``: bytes of the weights and cache that a decoded token needs.

    ``shared_*``: prefill and decode compiled together, with shared weights.
    """

    row: str
    target: str
    chip: str
    recipe: str
    tools: tuple[tuple[str, str], ...]
    context: int
    nodes: int
    nodes_off: int
    binary_bytes: int
    shared_bytes: int
    compile_seconds: tuple[float, ...]
    peak_rss_bytes: int
    shared_seconds: float
    shared_peak_rss_bytes: int
    decode_bytes: int
    least_bytes: int
    emulations: tuple[Emulation, ...]


def weight_bytes(bundle: Bundle) -> int:
    """Bytes of the weights in a compiled graph: all but the token table, or with it if it is tied to the head."""
    tensors = bundle.manifest.tensors
    untied = any(t.name == "lm_head.weight" for t in tensors)
    return sum(t.bytes for t in tensors if not (untied and t.name == "model.embed_tokens.weight"))


def measure(row: Row, context: int, probe: Probe, steps: int, folder: Path, calibrate: tuple[str, ...]) -> Sample:
    bundle = build_bundle(
        "smollm2-135m", target=row.target, precision=row.precision, recipe=row.recipe, out=folder / "bundle",
        calibrate=calibrate, npu=ForNpu(row.activations, context, emulate=False),
    )  # fmt: skip
    build, fitted = bundle.manifest.npus[0], bundle.manifest.calibrated
    spec, sizes = bundle.manifest.spec, {f.path: f.bytes for f in bundle.manifest.files}
    apart = [g for g in build.graphs if not g.shared]
    shared = [g for g in build.graphs if g.shared]
    decode = next(g for g in apart if g.role == "decode")
    cache = 2 * spec.layers * spec.kv_heads * spec.head_dim * 2 * context
    return Sample(
        row=row.name,
        target=row.target,
        chip=build.target.chip,
        recipe=bundle.manifest.recipe.name + (f", calibrated on {fitted.names}" if fitted else ""),
        tools=build.tools,
        context=context,
        nodes=decode.nodes,
        nodes_off=sum(len(p.off(build.target.provider)) for p in read_placements(bundle.path / build.placement)),
        binary_bytes=max(sizes[g.binary] for g in apart),
        shared_bytes=sizes[shared[0].binary],
        compile_seconds=tuple(g.seconds for g in apart),
        peak_rss_bytes=max(g.peak_rss_bytes for g in apart),
        shared_seconds=max(g.seconds for g in shared),
        shared_peak_rss_bytes=max(g.peak_rss_bytes for g in shared),
        decode_bytes=decode.traffic.total if decode.traffic else 0,
        least_bytes=weight_bytes(bundle) + cache,
        emulations=emulate_build(bundle.path, build, probe, steps=steps) if row.emulated else (),
    )


def show(sample: Sample, row: Row) -> None:
    mb = sample.binary_bytes / 1e6
    goal = f" (goal: at most {row.binary_mb:g})" if row.binary_mb else ""
    print(f"\n{sample.row}: {sample.target}, {sample.chip}, recipe {sample.recipe}, context {sample.context}")
    print(f"  nodes             {sample.nodes} on the NPU, {sample.nodes_off} off it")
    print(f"  binary            {mb:.1f} MB{goal}; both with shared weights {sample.shared_bytes / 1e6:.1f} MB")
    seconds = ", ".join(f"{s:.0f}" for s in sample.compile_seconds)
    print(f"  compile           {seconds} s (prefill, decode), peak RSS {sample.peak_rss_bytes / 1e9:.2f} GB; ", end="")
    print(f"both together {sample.shared_seconds:.0f} s, {sample.shared_peak_rss_bytes / 1e9:.2f} GB")
    ratio = sample.decode_bytes / sample.least_bytes
    print(f"  DRAM, one token   {sample.decode_bytes / 1e6:.1f} MB, {ratio:.3f} of weights + cache")
    for e in sample.emulations:
        goal = f" (goal: {row.top1:.0%})" if row.top1 and e.role == "prefill" else ""
        total, quantization, npu = e.total, e.quantization, e.npu
        print(
            f"  {e.role:8s} {e.tokens:4d} tokens, emulator and FP32: top-1 {total.top1:.1%}{goal}, KL {total.kld:.4f}"
        )
        print(f"           lost by quantization: top-1 {quantization.top1:.1%}, KL {quantization.kld:.4f}", end="")
        print(f"; by the NPU: top-1 {npu.top1:.1%}, KL {npu.kld:.5f}, cosine {npu.cosine:.6f}")
        print(f"           a second run gives {'the same bits' if e.repeatable else 'DIFFERENT BITS'}")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a UTF-8 file; by default CPython's help topics")
    parser.add_argument("--calibrate", default="", help="text that weights and scales are fitted to, as for a build")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--context", type=int, default=0, help="by default the number of tokens")
    parser.add_argument("--row", action="append", help="a part of a row's name; repeatable")
    parser.add_argument("--output", type=Path, help="append one JSON line per row to this file")
    options = parser.parse_args()
    text = read_text(options.text) if options.text else embedded_text()
    checkpoint = open_model("smollm2-135m")
    count = options.tokens + options.steps
    probe = make_probe(checkpoint, count, text=text)
    fitted = tuple(filter(None, options.calibrate.split(",")))
    print(f"{options.tokens} tokens of {text.name} as a prompt, {options.steps} one by one")
    for row in ROWS:
        if options.row and not any(part in row.name for part in options.row):
            continue
        context = options.context or (256 if not row.emulated else -(-count // 64) * 64)
        with TemporaryDirectory(prefix="npu-") as folder:
            sample = measure(row, context, probe, options.steps, Path(folder), fitted)
        show(sample, row)
        if options.output:
            with options.output.open("a", encoding="utf-8") as file:
                file.write(to_json(sample) + "\n")


if __name__ == "__main__":
    main()
