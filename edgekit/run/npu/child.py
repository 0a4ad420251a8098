"""The process that runs the vendor's compiler, so that its crashes, logs and memory do not affect ours.

``python -m edgekit.run.npu.child JOB RESULT`` reads a Job as JSON and writes an Outcome. The provider logs to stderr; a
line ``edgekit: <n>`` there marks the start of graph n.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from edgekit.record import from_json, to_json
from edgekit.run.npu.plugin import session_options
from edgekit.run.runtime import onnxruntime
from edgekit.types.device import Plugin  # noqa: TC001 - record.py resolves these annotations at run time

MARK = "edgekit: "


@dataclass(frozen=True)
class Job:
    """Graphs to compile, in order. ``share``: later graphs use the first one's binary for their weights."""

    plugin: Plugin
    provider: str
    options: tuple[tuple[str, str], ...]
    graphs: tuple[tuple[Path, Path], ...]
    share: bool
    threads: int


@dataclass(frozen=True)
class Outcome:
    """Seconds of each compiled graph, the process's peak memory, and the error that stopped it, if any."""

    seconds: tuple[float, ...]
    peak_rss_bytes: int
    error: str


def main(job_path: str, outcome_path: str) -> None:
    """Compile the graphs of a job; errors are written to the outcome."""
    job = from_json(Job, Path(job_path).read_text(encoding="utf-8"))
    seconds, error = [], ""
    # Set before any session, or the compiler's own log lines are lost.
    onnxruntime.set_default_logger_severity(0)
    for i, (source, output) in enumerate(job.graphs):
        sys.stderr.write(f"\n{MARK}{i}\n")
        sys.stderr.flush()
        start = perf_counter()
        try:
            _compile(job, i, source, output)
        except Exception as problem:  # onnxruntime's errors have no common base class
            error = " ".join(str(problem).split())
            break
        seconds.append(perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(outcome_path).write_text(to_json(Outcome(tuple(seconds), peak, error)), encoding="utf-8")


def _compile(job: Job, index: int, source: Path, output: Path) -> None:
    options = session_options(job.plugin, job.provider, job.options, job.threads)
    options.log_severity_level = 0
    if job.share:
        options.add_session_config_entry("ep.share_ep_contexts", "1")
        if index == len(job.graphs) - 1:
            options.add_session_config_entry("ep.stop_share_ep_contexts", "1")
    flags = onnxruntime.OrtCompileApiFlags
    compiler = onnxruntime.ModelCompiler(
        options,
        str(source),
        embed_compiled_data_into_model=False,
        flags=int(flags.ERROR_IF_NO_NODES_COMPILED) | int(flags.ERROR_IF_OUTPUT_FILE_EXISTS),
        # Fold constants first: the provider crashes on scales behind a Cast.
        graph_optimization_level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    )
    compiler.compile_to_file(str(output))


if __name__ == "__main__":
    main(*sys.argv[1:3])
