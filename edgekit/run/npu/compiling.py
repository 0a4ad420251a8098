"""Compile static graphs to binaries for an NPU, and record the provider's verdict on every node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgekit.errors import RunError
from edgekit.record import from_json, to_json
from edgekit.run.npu.child import MARK, Job, Outcome
from edgekit.run.npu.compiler_log import CompilerLog
from edgekit.run.npu.plugin import require_compiler
from edgekit.run.npu.process import run_program
from edgekit.run.runtime import CPU
from edgekit.types import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.types.device import Plugin
    from edgekit.types.npu import Placed, Traffic


@dataclass(frozen=True)
class Compilation:
    """One compiled graph. If compiling failed, ``error`` is the runtime's message and there are no files."""

    source: Path
    output: Path
    placed: tuple[Placed, ...]
    traffic: Traffic | None
    seconds: float
    peak_rss_bytes: int
    error: str


def compile_graphs(
    plugin: Plugin,
    provider: str,
    options: Sequence[tuple[str, str]],
    graphs: Sequence[tuple[Path, Path]],
    *,
    share: bool = False,
    threads: int = 1,
    progress: Progress = silent,
) -> tuple[Compilation, ...]:
    """Compile static graphs in a subprocess.

    Args:
        plugin: the provider's package.
        provider: its name.
        options: provider options.
        graphs: pairs of a static graph and the EPContext graph to write; the binary is written next to the latter.
        share: all graphs use the first one's binary for their weights.
        threads: the compiler's threads.
        progress: called with the number of graphs compiled.

    Returns:
        One for each graph, up to the first that failed to compile.

    Raises:
        RunError: the compiler is missing or crashed.
    """
    require_compiler(plugin)
    with TemporaryDirectory() as folder:
        job, outcome = Path(folder) / "job.json", Path(folder) / "outcome.json"
        made = Job(plugin, provider, tuple(options), tuple(graphs), share, threads)
        job.write_text(to_json(made), encoding="utf-8")
        logs: list[CompilerLog] = []

        def hear(line: str) -> bool:
            if line.startswith(MARK):
                progress("compiling", len(logs), len(graphs), "graphs")
                logs.append(CompilerLog(provider, CPU))
            elif logs:
                logs[-1].read(line)
            return line.startswith(MARK)

        status, last = run_program("edgekit.run.npu.child", job, outcome, hear)
        progress("compiling", len(graphs), len(graphs), "graphs")
        if not outcome.is_file():
            graph = graphs[max(0, len(logs) - 1)][0].name
            said = f": {last}" if last else ""
            raise RunError(
                f"the compiler of {plugin.module} ended with status {status} while compiling {graph}{said}",
                "try another recipe or target, and report it with the model's name",
            )
        done = from_json(Outcome, outcome.read_text(encoding="utf-8"))
    compilations: list[Compilation] = []
    for (source, output), log, seconds in zip(graphs, logs, (*done.seconds, 0.0), strict=False):
        error = done.error if len(compilations) == len(done.seconds) else ""
        compilations.append(Compilation(source, output, log.placed, log.traffic, seconds, done.peak_rss_bytes, error))
    return tuple(compilations)
