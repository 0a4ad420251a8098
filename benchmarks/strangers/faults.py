"""A process that is killed, or whose disk is full, at a chosen step of what it writes.

A step is whatever changes the disk, or waits for it: opening a file to write, making, renaming and deleting, fsync,
locks, and each tensor that is appended. They are counted by an audit hook, which sees them before they happen, so a
task has as many points to be killed at as it has steps, and they come in the same order every time.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgekit.bundle import external
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DEADLINE = 120.0
"""Seconds after which a task counts as one that hangs."""

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_NEEDS_ROOM = ("open", "os.mkdir", "os.fsync", "append")
_FREES = ("os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "fcntl.flock", "ctypes.dlsym")

Kind = Literal["nothing", "kill", "full"]


@dataclass(frozen=True)
class Fault:
    """What happens at step ``at`` of a task: nothing, SIGKILL, or the disk is full from there on."""

    kind: Kind = "nothing"
    at: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a task ended: ``done``, ``refused`` in words with a hint, ``killed``, or ``failed``, with what it said."""

    end: Literal["done", "refused", "killed", "failed"]
    said: str
    steps: int


class _Steps:
    """The audit hook of one process; it cannot be taken out again, so the process ends with its task."""

    def __init__(self, root: Path, fault: Fault) -> None:
        self.count = 0
        self._root = str(root)
        self._fault = fault
        append, fsync = external._Sink.append, os.fsync

        def append_counted(sink: external._Sink, offset: int, data: memoryview) -> None:
            with external.writing(sink.path, sink._total):
                self._step("append")
            append(sink, offset, data)

        def fsync_counted(handle: int) -> None:
            self._step("os.fsync")
            fsync(handle)

        external._Sink.append = append_counted  # type: ignore[method-assign]
        os.fsync = fsync_counted  # type: ignore[assignment]
        sys.addaudithook(self._watch)

    def _watch(self, event: str, words: tuple[Any, ...]) -> None:
        if event == "open":
            if isinstance(words[0], str) and words[0].startswith(self._root) and words[2] & _WRITES:
                self._step(event)
        elif event in (*_NEEDS_ROOM, *_FREES) and (
            not isinstance(words[0], str) or words[0].startswith(self._root) or event == "ctypes.dlsym"
        ):
            self._step(event)

    def _step(self, event: str) -> None:
        at, self.count = self.count, self.count + 1
        if self._fault.kind == "kill" and at == self._fault.at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._fault.kind == "full" and at >= self._fault.at and event in _NEEDS_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Child:
    """A task in a process of its own, forked from this one: what is loaded here is loaded there."""

    def __init__(self, task: Callable[[], object], root: Path, fault: Fault = Fault()) -> None:
        """Begin.

        Args:
            task: what is done. An EdgekitError with a hint is a refusal; any other exception is a failure.
            root: what changes on the disk below it is a step.
            fault: what happens to it.
        """
        self._read, write = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._read)
            code = 1
            try:
                words = _perform(task, _Steps(root, fault))
                os.write(write, words.encode(errors="replace"))
                code = 0
            finally:
                os._exit(code)
        os.close(write)

    def kill(self) -> None:
        """Kill it now."""
        os.kill(self._pid, signal.SIGKILL)

    def join(self) -> Outcome:
        """Wait for its end."""
        words, deadline = b"", time.monotonic() + DEADLINE
        while True:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(self._read, 1 << 16) if ready else b""
            if not part:
                break
            words += part
        if not ready:
            self.kill()
        os.close(self._read)
        _, status = os.waitpid(self._pid, 0)
        if not ready:
            return Outcome("failed", f"it hung for {DEADLINE:.0f} seconds", 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return Outcome("killed", "", 0)
        end, _, rest = words.decode(errors="replace").partition("\n")
        steps, _, said = rest.partition("\n")
        if end not in ("done", "refused", "failed"):
            return Outcome("failed", f"it ended with status {status}", 0)
        return Outcome(end, said, int(steps))  # type: ignore[arg-type]


def perform(task: Callable[[], object], root: Path, fault: Fault = Fault()) -> Outcome:
    """Do a task in a process of its own, to its end."""
    return Child(task, root, fault).join()


def _perform(task: Callable[[], object], steps: _Steps) -> str:
    try:
        task()
    except EdgekitError as error:
        end = "refused" if error.hint else "failed"
        return f"{end}\n{steps.count}\n{error.message}; hint: {error.hint}"
    except BaseException:
        return f"failed\n{steps.count}\n{traceback.format_exc()}"
    return f"done\n{steps.count}\n"
