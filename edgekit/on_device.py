"""The line for a device that compiles by itself: static graphs -> ONNX Runtime's word on them -> run on this CPU.

Like ``npu`` it begins with a quantized model and ends in ``npu/<target>/``. Nothing is known of the device but what
the provider's lists of operators say; the CPU shows that the graphs are right and what their weights lost.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from edgekit import measure
from edgekit.compiled import NpuBuild, OnCpu, Role, StaticGraph
from edgekit.lower import lower_static, share_bytes
from edgekit.record import to_json
from edgekit.run import physical_cores
from edgekit.run.npu import StaticRunner, check_usability, open_on_cpu
from edgekit.types import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx_ir as ir

    from edgekit.bundle import Draft
    from edgekit.device import Npu, Route, Target
    from edgekit.npu import Probe, Sources

ROLES: tuple[Role, Role] = ("prefill", "decode")

STEPS = 8
"""Tokens run one by one, of those of a probe."""


def leave_graphs(
    bundle: Draft,
    sources: Sources,
    target: Target,
    npu: Npu,
    route: Route,
    probe: Probe | None,
    *,
    progress: Progress = silent,
) -> NpuBuild:
    """Write the static graphs of a device, check what can be checked here and, with a probe, run them on the CPU.

    Args:
        bundle: its portable graph is written.
        sources: the model.
        target: the device.
        npu: its NPU, without a plugin.
        route: how it computes.
        probe: tokens and their FP32 logits; None runs nothing.
        progress: told the bytes written and the tokens run.

    Raises:
        LowerError: a lack that nothing cures.
        RunError: ONNX Runtime cannot open a graph.
    """
    folder = f"npu/{target.name}"
    model = sources.quantized.clone()
    # What the portable graph's file holds need not be quantized once more.
    share_bytes(model, sources.written.graph.initializers)
    lowered = lower_static(model, target, npu, route)
    host = f"{folder}/host.onnx"
    bundle.write_graph(lowered.host, host)
    chains: dict[Role, Sequence[ir.Model]] = {"prefill": lowered.prefill, "decode": lowered.decode}
    static = tuple(graph for role in ROLES for graph in _write(bundle, npu, folder, role, chains[role], progress))
    report = check_usability([bundle.folder / graph.path for graph in static], npu.session)
    usability = f"{folder}/usability.json"
    bundle.write_file(usability, (to_json(report, indent=1) + "\n").encode())
    return NpuBuild(
        target=target,
        activations=route.activations,
        options=tuple(sorted((*npu.options, *route.options))),
        tools=(("onnxruntime", version("onnxruntime")),),
        host=host,
        past=npu.context,
        graphs=(),
        placement="",
        static=static,
        session=npu.session,
        usability=usability,
        on_cpu=run_on_cpu(bundle, host, static, probe) if probe else (),
    )


def run_on_cpu(
    bundle: Draft, host: str, static: Sequence[StaticGraph], probe: Probe, *, steps: int = STEPS
) -> tuple[OnCpu, ...]:
    """Logits of a bundle's static graphs against FP32: the last ``steps`` tokens one by one, those before as a prompt.

    Raises:
        RunError: ONNX Runtime cannot run a graph.
    """
    threads, count = physical_cores(), len(probe.tokens) - steps
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
    bundle: Draft, npu: Npu, folder: str, role: Role, chain: Sequence[ir.Model], progress: Progress
) -> Iterator[StaticGraph]:
    for part, model in enumerate(chain):
        path = f"{folder}/{role}.onnx" if len(chain) == 1 else f"{folder}/{role}.{part}.onnx"
        bundle.write_graph(model, path, progress=progress)
        yield StaticGraph(role, part, npu.prefill_tokens if role == "prefill" else 1, path, len(model.graph))
