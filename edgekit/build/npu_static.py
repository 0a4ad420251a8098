"""The pipeline for a device that compiles graphs itself: static graphs -> ONNX Runtime's usability check -> this CPU.

Like ``npu`` it starts from a quantized model and writes ``npu/<target>/``. All that is known of the device is the
provider's list of operators; the CPU run shows that the graphs are correct and what quantization cost.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from edgekit import measure
from edgekit.build.npu_emulate import STEPS
from edgekit.bundle.mlpackage import make_mlpackage, require_coremltools
from edgekit.lower import lower_static
from edgekit.record import to_json
from edgekit.run import physical_cores
from edgekit.run.npu import StaticRunner, check_usability, open_on_cpu
from edgekit.types import Progress, silent
from edgekit.types.npu import ROLES, NpuBuild, OnCpu, Role, StaticGraph, file_names, width

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx_ir as ir

    from edgekit.build.npu_emulate import Probe
    from edgekit.build.npu_plan import NpuInputs
    from edgekit.bundle import BundleWriter
    from edgekit.types.device import Npu, NpuScheme, Target


def export_static_graphs(
    bundle: BundleWriter,
    sources: NpuInputs,
    target: Target,
    scheme: NpuScheme,
    probe: Probe | None,
    *,
    mlpackage: bool = False,
    progress: Progress = silent,
) -> NpuBuild:
    """Write the static graphs of a device, check their operators and, with a probe, run them on the CPU.

    Args:
        bundle: its CPU graph is already written.
        sources: the model.
        target: the device; its NPU has no plugin.
        scheme: how it computes.
        probe: tokens and their FP32 logits; None runs nothing.
        mlpackage: also write a Core ML package of the graphs.
        progress: called with the bytes written.

    Raises:
        BundleError: coremltools is missing, or a graph has no translation.
        LowerError: an unsupported operator has no rewrite.
        RunError: ONNX Runtime cannot open a graph.
    """
    npu, folder = target.npu, f"npu/{target.name}"
    assert npu is not None
    lowered = lower_static(sources.quantized, target, npu, scheme)
    host = f"{folder}/host.onnx"
    bundle.write_graph(lowered.host, host)
    chains: dict[Role, Sequence[ir.Model]] = {"prefill": lowered.prefill, "decode": lowered.decode}
    static = tuple(graph for role in ROLES for graph in _write(bundle, npu, folder, role, chains[role], progress))
    report = check_usability([bundle.folder / graph.path for graph in static], npu.session)
    package = _write_package(bundle, folder, static, progress) if mlpackage else ""
    usability = f"{folder}/usability.json"
    bundle.write_file(usability, (to_json(report, indent=1) + "\n").encode())
    return NpuBuild(
        target=target,
        activations=scheme.activations,
        options=tuple(sorted((*npu.options, *scheme.options))),
        tools=(("onnxruntime", version("onnxruntime")), *([require_coremltools()] if mlpackage else [])),
        host=host,
        past=npu.context,
        graphs=(),
        placement="",
        static=static,
        session=npu.session,
        usability=usability,
        on_cpu=run_on_cpu(bundle, host, static, probe) if probe else (),
        package=package,
    )


def run_on_cpu(bundle: BundleWriter, host: str, static: Sequence[StaticGraph], probe: Probe) -> tuple[OnCpu, ...]:
    """Compare the static graphs' logits with FP32: the last STEPS tokens one by one, the others as a prompt.

    Raises:
        RunError: ONNX Runtime cannot run a graph.
    """
    threads, count = physical_cores(), probe.prompt(STEPS)
    chains = [[open_on_cpu(bundle.folder / g.path, threads) for g in static if g.role == role] for role in ROLES]
    runner = StaticRunner(open_on_cpu(bundle.folder / host, threads), *chains)
    try:
        prompt = runner.logits(probe.tokens[:count])
        last = np.stack([runner.step(token) for token in probe.tokens[count:]])
    finally:
        runner.close()
    runtime = f"onnxruntime {version('onnxruntime')}"
    return tuple(
        OnCpu(role, len(ours), probe.text, runtime, measure.agree(reference, ours))
        for role, ours, reference in zip(
            ROLES, (prompt, last), (probe.logits[:count], probe.logits[count:]), strict=True
        )
    )


def _write(
    bundle: BundleWriter, npu: Npu, folder: str, role: Role, chain: Sequence[ir.Model], progress: Progress
) -> Iterator[StaticGraph]:
    for part, (name, model) in enumerate(zip(file_names(role, len(chain)), chain, strict=True)):
        path = f"{folder}/{name}"
        bundle.write_graph(model, path, progress=progress)
        yield StaticGraph(role, part, width(npu, role), path, len(model.graph))


def _write_package(bundle: BundleWriter, folder: str, static: Sequence[StaticGraph], progress: Progress) -> str:
    """Write the graphs as functions of one package, named by role, and return the package's path."""
    package = f"{folder}/model.mlpackage"
    progress("writing model.mlpackage", 0, 1, "packages")
    for path in make_mlpackage([(g.role, bundle.folder / g.path) for g in static], bundle.folder / package):
        bundle.adopt_file(path.relative_to(bundle.folder).as_posix(), path)
    progress("writing model.mlpackage", 1, 1, "packages")
    return package
