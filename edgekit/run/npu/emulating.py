"""Run compiled graphs over tokens with the provider, which is an emulator on this machine, in a subprocess.

``python -m edgekit.run.npu.emulating TASK RESULT`` is that process.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import RunError
from edgekit.record import from_json, to_json
from edgekit.run.npu.compatibility import require_compatible
from edgekit.run.npu.plugin import require_compiler, session_options
from edgekit.run.npu.process import run_program
from edgekit.run.npu.static_runner import StaticRunner, open_on_cpu
from edgekit.run.runtime import onnxruntime
from edgekit.types import Progress, silent
from edgekit.types.device import Plugin  # noqa: TC001 - record.py resolves these annotations at run time

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAID = "progress "


@dataclass(frozen=True)
class Task:
    """The tokens to run: ``tokens`` at once on the prefill chain, then ``steps`` one by one on the decode chain.

    ``repeat``: the first tokens of the prompt that, like the first step, run twice. ``tools``: the compiler's packages.
    """

    plugin: Plugin
    provider: str
    options: tuple[tuple[str, str], ...]
    host: Path
    prefill: tuple[Path, ...]
    decode: tuple[Path, ...]
    tokens: tuple[int, ...]
    steps: tuple[int, ...]
    repeat: int
    threads: int
    tools: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Emulated:
    """The logits ``prefill`` [tokens, V] and ``decode`` [steps, V], float32.

    ``repeated``: for each, whether repeated runs were bit-identical; True if nothing was repeated.
    """

    prefill: NDArray[np.float32]
    decode: NDArray[np.float32]
    repeated: tuple[bool, bool]


def emulate(task: Task, progress: Progress = silent) -> Emulated:
    """Run compiled graphs in a subprocess, which loads the vendor's library.

    Raises:
        RunError: the emulator is missing or crashed, or a binary is for another chip or from a newer SDK.
    """
    require_compiler(task.plugin)
    graphs = (*task.prefill, *task.decode)
    require_compatible(task.plugin, task.provider, task.options, graphs, tools=task.tools)
    with TemporaryDirectory() as folder:
        described, result = Path(folder) / "task.json", Path(folder) / "result.npz"
        described.write_text(to_json(task), encoding="utf-8")

        def hear(line: str) -> bool:
            if line.startswith(SAID):
                done, total = map(int, line.removeprefix(SAID).split())
                progress("emulating", done, total, "tokens")
            return line.startswith(SAID)

        status, last = run_program("edgekit.run.npu.emulating", described, result, hear)
        if not result.is_file():
            raise RunError(
                f"the emulator of {task.plugin.module} ended with status {status}: {last}",
                f"run `edgekit verify` to check the bundle, or rebuild it with this version of {task.plugin.module}",
            )
        with np.load(result) as arrays:
            prefill, decode = (bool(same) for same in arrays["repeated"])
            return Emulated(arrays["prefill"], arrays["decode"], (prefill, decode))


def run_graphs(runner: StaticRunner, task: Task, progress: Progress = silent) -> Emulated:
    """Run the task's tokens on a runner."""
    total = len(task.tokens) + len(task.steps)
    progress("emulating", 0, total, "tokens")
    again = runner.logits(task.tokens[: task.repeat]) if task.repeat else None
    prefill = runner.logits(task.tokens)
    same = again is None or np.array_equal(again, prefill[: task.repeat])
    steps, same_step = np.empty((len(task.steps), runner.vocab_size), np.float32), True
    for i, token in enumerate(task.steps):
        progress("emulating", len(task.tokens) + i, total, "tokens")
        steps[i] = runner.step(token)
        if task.repeat and i == 0:
            runner.rewind(runner.length - 1)
            same_step = np.array_equal(runner.step(token), steps[i])
    progress("emulating", total, total, "tokens")
    return Emulated(prefill, steps, (same, same_step))


def _main(described: str, result: str) -> None:
    task = from_json(Task, Path(described).read_text(encoding="utf-8"))

    def open_graph(path: Path) -> Any:
        options = session_options(task.plugin, task.provider, task.options, task.threads)
        return onnxruntime.InferenceSession(str(path), options)

    def tell(task: str, done: int, total: int, unit: str = "") -> None:  # noqa: ARG001 - a Progress
        sys.stderr.write(f"{SAID}{done} {total}\n")
        sys.stderr.flush()

    host = open_on_cpu(task.host, task.threads)
    chains = [[open_graph(path) for path in chain] for chain in (task.prefill, task.decode)]
    emulated = run_graphs(StaticRunner(host, *chains), task, tell)
    np.savez(result, prefill=emulated.prefill, decode=emulated.decode, repeated=np.asarray(emulated.repeated))


if __name__ == "__main__":
    _main(*sys.argv[1:3])
