"""A bundle's compiled graphs on the emulator: how far from FP32, how far from the same graphs on the CPU."""

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
"""What a build runs on the emulator: tokens of a prompt, then tokens one by one."""

OPSET = 21
"""Of the graph that FP32 logits are computed from, in NumPy: no file, and no matter for any runtime."""


@dataclass(frozen=True)
class Probe:
    """A sequence of token ids, the FP32 logits [S, V] of it, and the text it comes from."""

    tokens: tuple[int, ...]
    logits: NDArray[np.float32]
    text: str

    def prompt(self, steps: int) -> int:
        """How many tokens are run at once, before ``steps`` of them, but at most half, one by one."""
        return len(self.tokens) - min(steps, len(self.tokens) // 2)


def make_probe(checkpoint: Checkpoint, count: int, *, text: Text | None = None, progress: Progress = silent) -> Probe:
    """FP32 logits for the beginning of a text, computed from the checkpoint's own weights, each read once.

    Args:
        checkpoint: the model.
        count: tokens.
        text: by default CPython's help topics.
        progress: told that it goes on.

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
    """Raise unless the emulator's logits keep to ``limits``; without them there is nothing to ask.

    Raises:
        GateFailed: with each number that falls short beside its limit.
    """
    short = [line for emulation in emulations for line in (shortfalls(limits, emulation) if limits else ())]
    if short:
        raise GateFailed(
            f"{target.name}: on the emulator, {'; '.join(short)}",
            "build with more bits (`precision=int8`), or without the check: `emulate=False`",
        )


def shortfalls(limits: AccuracyLimits, emulation: Emulation) -> tuple[str, ...]:
    """What of an emulation is worse than the limits allow, in words. Shares are judged to the nearest token."""
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
            lines.append(f"{emulation.role}: {name} is {value:.4g}, {'at most' if upper else 'at least'} {limit:.4g}")
    if not emulation.repeatable:
        lines.append(f"{emulation.role}: a second run gave other bits")
    return tuple(lines)


def emulate_build(
    root: Path, build: NpuBuild, probe: Probe, *, steps: int = STEPS, progress: Progress = silent
) -> tuple[Emulation, ...]:
    """Execute the compiled graphs of a bundle and compare them with FP32 and with the same graphs on the CPU.

    Args:
        root: the bundle's folder.
        build: what was compiled.
        probe: the tokens; the last ``steps`` go through the decode graph, those before through the prefill graph.
        steps: tokens one by one, half of them at most.
        progress: told the tokens run.

    Raises:
        RunError: the emulator fails.
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
