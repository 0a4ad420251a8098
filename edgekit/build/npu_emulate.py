"""Run a bundle's compiled graphs on the emulator and compare them with FP32 and with the same graphs on the CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgekit import measure
from edgekit.build.npu_plan import npu_of, plugin_of
from edgekit.errors import GateFailed
from edgekit.graph import build_graph
from edgekit.quantize import reference_logits
from edgekit.run import physical_cores
from edgekit.run.npu import StaticRunner, Task, emulate, open_on_cpu, run_graphs
from edgekit.source import source_tokenizer
from edgekit.types import Progress, silent
from edgekit.types.npu import ROLES, Emulation, NpuBuild

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgekit.measure import Text
    from edgekit.types import Checkpoint
    from edgekit.types.device import AccuracyLimits, Target

TOKENS, STEPS = 64, 8
"""Tokens that a build runs on the emulator: as a prompt, then one by one."""

OPSET = 21
"""Opset of the graph that NumPy computes FP32 logits from; it is never written or given to a runtime."""


@dataclass(frozen=True)
class Probe:
    """A sequence of token ids, its FP32 logits [S, V], and the name of the text it comes from."""

    tokens: tuple[int, ...]
    logits: NDArray[np.float32]
    text: str

    def prompt(self, steps: int) -> int:
        """The number of tokens run as a prompt; the others, ``steps`` but at most half, are run one by one."""
        return len(self.tokens) - min(steps, len(self.tokens) // 2)


def make_probe(checkpoint: Checkpoint, count: int, *, text: Text | None = None, progress: Progress = silent) -> Probe:
    """Compute FP32 logits for the beginning of a text from the checkpoint's own weights, each read once.

    Args:
        checkpoint: the model.
        count: number of tokens.
        text: by default CPython's help topics.
        progress: called at the start and at the end.

    Raises:
        MeasureError: the text is too short.
    """
    text = text or measure.embedded_text()
    half = -(-count // 2)
    tokens = measure.cut_windows(text, source_tokenizer(checkpoint), half, 2 * half).ravel()[:count].tolist()
    progress("FP32 reference", 0, 1, "texts")
    graph = build_graph(checkpoint.spec, checkpoint.weights, opset=OPSET, name="reference")
    logits = reference_logits(graph, checkpoint.weights, tokens)
    progress("FP32 reference", 1, 1, "texts")
    return Probe(tuple(tokens), logits, text.name)


def require_accuracy(target: Target, limits: AccuracyLimits | None, emulations: Sequence[Emulation]) -> None:
    """Raise unless the emulator's logits are within ``limits``; None accepts everything.

    Raises:
        GateFailed: lists each number outside its limit.
    """
    short = [line for emulation in emulations for line in (shortfalls(limits, emulation) if limits else ())]
    if short:
        raise GateFailed(
            f"{target.name}: emulated accuracy is out of limits: {'; '.join(short)}",
            "use more bits (`precision=int8`), or skip the check with `emulate=False`",
        )


def shortfalls(limits: AccuracyLimits, emulation: Emulation) -> tuple[str, ...]:
    """Describe each number of an emulation that is outside its limit. Shares are compared to the nearest token."""
    slack = 0.5 / emulation.tokens
    lines = []
    for name, value, limit, upper in (
        ("top-1 against FP32", emulation.total.top1, limits.top1 - slack, False),
        ("KL against FP32", emulation.total.kld, limits.kld, True),
        ("top-1 against the same graph on the CPU", emulation.npu.top1, limits.npu_top1 - slack, False),
        ("KL against the same graph on the CPU", emulation.npu.kld, limits.npu_kld, True),
        ("cosine against the same graph on the CPU", emulation.npu.cosine, limits.npu_cosine, False),
    ):
        if (value > limit) if upper else (value < limit):
            bound = "at most" if upper else "at least"
            lines.append(f"{emulation.role}: {name} is {value:.4g}, must be {bound} {limit:.4g}")
    if not emulation.repeatable:
        lines.append(f"{emulation.role}: a second run produced different bits")
    return tuple(lines)


def emulate_build(
    root: Path, build: NpuBuild, probe: Probe, *, steps: int = STEPS, progress: Progress = silent
) -> tuple[Emulation, ...]:
    """Run the compiled graphs of a bundle and compare them with FP32 and with the same graphs on the CPU.

    Args:
        root: the bundle's folder.
        build: what was compiled.
        probe: the tokens; the last ``steps`` run on the decode graph, the others on the prefill graph.
        steps: tokens run one by one, at most half of all.
        progress: called with the number of tokens run.

    Raises:
        RunError: the emulator failed.
    """
    npu, threads, count = npu_of(build.target), physical_cores(), probe.prompt(steps)
    task = Task(
        plugin=plugin_of(build.target),
        provider=build.target.provider,
        options=build.options,
        host=root / build.host,
        prefill=tuple(root / g.context for g in build.chain("prefill")),
        decode=tuple(root / g.context for g in build.chain("decode")),
        tokens=probe.tokens[:count],
        steps=probe.tokens[count:],
        repeat=min(count, npu.prefill_tokens),
        threads=threads,
        tools=build.tools,
    )
    emulated = emulate(task, progress)
    chains = [[open_on_cpu(root / g.source, threads) for g in build.chain(role)] for role in ROLES]
    runner = StaticRunner(open_on_cpu(root / build.host, threads), *chains)
    try:
        on_cpu = run_graphs(runner, replace(task, repeat=0))
    finally:
        runner.close()
    rows = (
        (emulated.prefill, on_cpu.prefill, probe.logits[:count]),
        (emulated.decode, on_cpu.decode, probe.logits[count:]),
    )
    return tuple(
        Emulation(
            role=role,
            tokens=len(ours),
            text=probe.text,
            total=measure.agree(reference, ours),
            quantization=measure.agree(reference, cpu),
            npu=measure.agree(cpu, ours),
            repeatable=same,
        )
        for role, (ours, cpu, reference), same in zip(ROLES, rows, emulated.repeated, strict=True)
        if len(ours)
    )
