"""Check the graphs for devices that compile them (Core ML, NNAPI, OpenVINO), without such a device.

    python benchmarks/on_device.py TARGET... [--model smollm2-135m] [--precision int4]

For each target, prints the size of the build, ONNX Runtime's usability check of the decode graph, and the logits of the
static graphs on ONNX Runtime's CPU against FP32, for 64 tokens of a text as a prompt and 8 one by one. If coremltools
is installed, a Core ML package is read back and run in NumPy, with every result rounded to half precision; if openvino
is, its CPU plugin runs the prefill graph; both on the same 64 tokens, against ONNX Runtime's CPU. This does not show
how fast a device is, or that its driver accepts the graph.
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from edgekit import load_target, measure
from edgekit.build.npu_emulate import TOKENS, make_probe
from edgekit.build.pipeline import ForNpu, build_bundle
from edgekit.record import from_json
from edgekit.run.npu import open_on_cpu
from edgekit.source import open_model
from edgekit.types import Bundle
from edgekit.types.npu import Agreement, NpuBuild, UsabilityReport

COREMLTOOLS, OPENVINO = (importlib.util.find_spec(name) is not None for name in ("coremltools", "openvino"))


def prompt(bundle: Bundle, build: NpuBuild, tokens: list[int]) -> tuple[Path, dict[str, np.ndarray], np.ndarray]:
    """The prefill graph, its inputs for an empty cache, and ONNX Runtime's logits [S,V]."""
    host = open_on_cpu(bundle.path / build.host, 2)
    places = np.arange(len(tokens))[None]
    made = host.run(None, {"input_ids": np.asarray([tokens]), "position_ids": places})
    made = dict(zip([o.name for o in host.get_outputs()], made, strict=True))
    graph = next(bundle.path / g.path for g in build.static if g.role == "prefill")
    session = open_on_cpu(graph, 2)
    kinds = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
    given = {i.name: made.get(i.name, np.zeros(i.shape, kinds[i.type])) for i in session.get_inputs()}
    return graph, given, session.run(["logits"], given)[0][0].astype(np.float32)


def through_package(bundle: Bundle, build: NpuBuild, given: dict[str, np.ndarray]) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        here, out = Path(folder) / "given.npz", Path(folder) / "out.npz"
        np.savez(here, **{name.replace(".", "_"): array for name, array in given.items()})
        program = Path(__file__).with_name("ml_program.py")
        command = [sys.executable, program, bundle.path / build.package, "run", "prefill", here, out]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
        with np.load(out) as arrays:
            return arrays["logits"][0]


def through_openvino(graph: Path, given: dict[str, np.ndarray]) -> np.ndarray:
    import openvino

    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    return openvino.Core().compile_model(str(graph), "CPU", exact)(given)["logits"][0].astype(np.float32)


def said(name: str, found: Agreement) -> str:
    return f"  {name}: top-1 {found.top1:.4f}, KL {found.kld:.6f}, cosine {found.cosine:.6f}"


def report(bundle: Bundle, tokens: list[int]) -> None:
    build = bundle.manifest.npus[0]
    sizes = {f.path: f.bytes for f in bundle.manifest.files if f.path.startswith(build.folder)}
    for part in ("host", "prefill", "decode", "model.mlpackage"):
        total = sum(n for path, n in sizes.items() if path.removeprefix(build.folder + "/").startswith(part))
        if total:
            print(f"  {part}: {total / 1e6:.1f} MB")
    usability = from_json(UsabilityReport, (bundle.path / build.usability).read_text())
    for found in usability.graphs:
        if found.graph == "decode.onnx":
            refused = f", not {' '.join(found.unsupported)}" if found.unsupported else ""
            print(
                f"  {found.provider}: {found.supported} of {found.nodes} nodes, {found.partitions} partitions{refused}"
            )
    for checked in build.on_cpu:
        print(said(f"{checked.role}, {checked.tokens} tokens, CPU against FP32", checked.total))
    graph, given, logits = prompt(bundle, build, tokens)
    if build.package:
        print(said("package in NumPy against CPU", measure.agree(logits, through_package(bundle, build, given))))
    if OPENVINO:
        print(said("OpenVINO's CPU against CPU", measure.agree(logits, through_openvino(graph, given))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--precision", default="int4")
    given = parser.parse_args()
    for name in given.targets:
        target = load_target(name)
        package = COREMLTOOLS and target.npu is not None and target.npu.ml_program
        with tempfile.TemporaryDirectory() as folder:
            bundle = build_bundle(
                given.model,
                target=target,
                precision=given.precision,
                out=Path(folder) / "bundle",
                npu=ForNpu(mlpackage=package),
            )
            print(f"{target.name}, {given.precision}, {given.model}")
            probe = make_probe(open_model(given.model), TOKENS)
            report(bundle, list(probe.tokens))


if __name__ == "__main__":
    main()
