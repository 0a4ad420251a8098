"""A sandbox process for work that untrusted files ask for: chat templates, regular expressions, old tokenizers.

Work that may loop, crash or use unbounded memory runs there. The cell starts on first use, stays warm between
requests, and adds 0.1 ms to each. Its memory is limited, and so is the processor time of each request; if it ends, the
next request starts a new one. The program is cell_program.py. Standard library only.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import finalize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekit.errors import EdgekitError

MEMORY = 1 << 30
"""Address space of a cell in bytes, including the interpreter's 0.2 GB."""

LARGE_MEMORY = 8 << 30
"""The same with transformers, whose libraries map far more memory than they use."""

_PROGRAM = Path(__file__).with_name("cell_program.py")
_PATIENCE = 30.0
"""Seconds to wait for a request in addition to four times its processor time, as the machine may be busy."""


class Cell:
    """One sandbox process and its limits. Thread-safe: requests are serialized.

    Args:
        first: the request that initializes each new process, if any.
        seconds: processor time allowed for that request.
        memory: address space in bytes.
    """

    def __init__(self, first: Mapping[str, Any] | None = None, *, seconds: float = 30.0, memory: int = MEMORY) -> None:
        self._first = first
        self._seconds = seconds
        self._memory = memory
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Any = None
        self._opened: dict[str, Any] = {}

    def start(self) -> None:
        """Start the process if it is not running, without waiting for it."""
        with self._lock:
            self._ensure()

    def open(self, *, what: str, error: type[EdgekitError], hint: str) -> dict[str, Any]:
        """Return the answer to ``first``. Args and errors as in ``ask``."""
        with self._lock:
            self._ready(what, error, hint)
            return self._opened

    def ask(
        self, request: Mapping[str, Any], *, seconds: float, what: str, error: type[EdgekitError], hint: str
    ) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Args:
            request: ``do``, the name of the task, and its arguments, all JSON values.
            seconds: processor time allowed.
            what: start of error messages.
            error: class of the error to raise.
            hint: hint of the error.

        Raises:
            error: the task failed, or the process took too long, used too much memory, or ended.
        """
        with self._lock:
            self._ready(what, error, hint)
            return self._exchange(request, seconds, what, error, hint)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()

    def _ensure(self) -> bool:
        """Start the process if needed; return whether it is new."""
        if self._process is not None and self._process.poll() is None:
            return False
        self._stop()
        command = [sys.executable, "-P", "-B", str(_PROGRAM), str(self._memory)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            bufsize=0,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
        )
        self._end = finalize(self, _finish, self._process)
        self._opened = {}
        return True

    def _ready(self, what: str, error: type[EdgekitError], hint: str) -> None:
        self._ensure()
        if self._first is not None and not self._opened:
            self._opened = self._exchange(self._first, self._seconds, what, error, hint)

    def _exchange(
        self, request: Mapping[str, Any], seconds: float, what: str, error: type[EdgekitError], hint: str
    ) -> dict[str, Any]:
        try:
            data = json.dumps({**request, "seconds": seconds}).encode()
        except (TypeError, ValueError, RecursionError) as reason:
            raise error(f"{what}: {reason}", hint) from reason
        try:
            answer: dict[str, Any] = json.loads(self._send(data, monotonic() + 4 * seconds + _PATIENCE))
        except (OSError, EOFError) as reason:
            raise error(f"{what}: {self._last_words(seconds, reason)}", hint) from reason
        except BaseException:  # Ctrl-C between request and answer: the next request would read this answer
            self._stop()
            raise
        if "error" in answer:
            raise error(f"{what}: {answer['error']}", hint)
        return answer

    def _send(self, data: bytes, deadline: float) -> bytes:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise EOFError
        view = memoryview(len(data).to_bytes(8, "little") + data)
        while view:
            view = view[process.stdin.write(view) or 0 :]
        length = int.from_bytes(_read(process.stdout.fileno(), 8, deadline), "little")
        return _read(process.stdout.fileno(), length, deadline)

    def _last_words(self, seconds: float, reason: BaseException) -> str:
        """The reason why a process did not answer. Stops the process."""
        process = self._process
        if isinstance(reason, TimeoutError) or process is None:
            self._stop()
            return "the process did not answer"
        try:
            code = process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            code = None
        self._stop()
        if code == -signal.SIGPROF:
            return f"it took more than {seconds:g} s of processor time"
        return f"the process ended ({signal.Signals(-code).name if code and code < 0 else f'exit code {code}'})"

    def _stop(self) -> None:
        if self._end is not None:
            self._end()
        self._process, self._end, self._opened = None, None, {}


def _read(handle: int, count: int, deadline: float) -> bytes:
    """Read ``count`` bytes from a pipe. Raises EOFError at its end, TimeoutError at the deadline."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    data = bytearray()
    while len(data) < count:
        if not poll.poll(max(0.0, deadline - monotonic()) * 1000):
            raise TimeoutError
        part = os.read(handle, min(1 << 20, count - len(data)))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _finish(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
