"""Run a graph in another Python, on this processor or an emulated one, with ``predictor_worker.py``.

The results are those of that processor's kernels. Nothing is timed, since an emulator's speed says nothing about a
device.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import RunError
from edgekit.host.processor import processor_class
from edgekit.run.threads import physical_cores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

DRIVER = Path(__file__).with_name("predictor_worker.py")
_INSTALL = "run `edgekit doctor --install arm64` again"


@dataclass(frozen=True)
class Interpreter:
    """A Python with numpy and onnxruntime, and how to start it.

    ``name`` describes what it runs on; ``processor_class`` is one of machine.CLASSES.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] | None = field(default=None, hash=False)
    processor_class: str = ""


def this_interpreter() -> Interpreter:
    """The Python that runs edgekit."""
    return Interpreter("this machine", (sys.executable,), processor_class=processor_class())


class DrivenGraph:
    """A Predictor over a process that holds the graph. Results are cached, 4 V bytes per token.

    Attributes:
        processor_class: the interpreter's.
        machine: the architecture that the interpreter reports, such as ``aarch64``.
        runtime: the version of its ONNX Runtime.
    """

    def __init__(
        self,
        interpreter: Interpreter,
        graph: Path,
        folder: Path,
        vocab_size: int,
        entries: Sequence[tuple[str, str]] = (),
        weights: Path | None = None,
    ) -> None:
        """Start the process and load the graph.

        Args:
            interpreter: the Python to run it with.
            graph: the ONNX file.
            folder: the folder of its external data.
            vocab_size: columns of its logits.
            entries: session config entries.
            weights: an .npz of initializers that are not in the folder.

        Raises:
            RunError: the process does not start, or the graph does not load there.
        """
        self._name = f"{graph.name} on {interpreter.name}"
        self.processor_class = interpreter.processor_class
        self._vocab = vocab_size
        self._kept: dict[tuple[int, ...], NDArray[np.float32]] = {}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        settings = [f"{key}={value}" for key, value in entries]
        command = [
            *interpreter.command,
            str(DRIVER),
            str(graph),
            str(folder),
            str(weights or ""),
            str(physical_cores()),
            *settings,
        ]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=interpreter.environment,
            )
        except OSError as error:
            self._log.close()
            raise RunError(f"{interpreter.command[0]}: {error.strerror}", _INSTALL) from error
        try:
            about = self._line()
        except BaseException:
            self.close()
            raise
        self.machine: str = about["machine"]
        self.runtime: str = about["runtime"]

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._vocab

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits [S, V] of every position of a fresh sequence.

        Raises:
            RunError: the process ended.
        """
        key = tuple(tokens)
        if key not in self._kept:
            assert self._process.stdin and self._process.stdout
            try:
                self._process.stdin.write(json.dumps(key).encode() + b"\n")
                self._process.stdin.flush()
            except OSError as error:
                raise self._ended() from error
            shape = self._line()
            size = 4 * shape[0] * shape[1]
            data = self._process.stdout.read(size)
            if len(data) != size:
                raise self._ended()
            self._kept[key] = np.frombuffer(data, "<f4").reshape(shape)
        return self._kept[key]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with contextlib.suppress(OSError):  # the process may have ended before reading everything
                    pipe.close()
        self._process.wait()
        self._log.close()

    def _line(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        return json.loads(line)

    def _ended(self) -> RunError:
        code = self._process.wait()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()
        reason = said[-1] if said else "no output"
        return RunError(f"{self._name}: the process ended with status {code}: {reason}", _INSTALL)
