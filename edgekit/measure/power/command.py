"""Any program that prints lines ``<seconds> <watts>``: a meter that has no file here.

The seconds are of any clock that does not stop; they are moved to this machine's by the first line's arrival. Lines
that begin with ``#`` are passed over.
"""

from __future__ import annotations

import os
import selectors
import shlex
import signal
import subprocess
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING

from edgekit.errors import MeasureError
from edgekit.host.clock import boottime
from edgekit.measure.sampling import StreamedProbe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from threading import Event

    from edgekit.types import PowerProbe

COVERS = "whatever the program measures"
WHOLE = False
WHERE = "beside"
ADDRESS = "'PROGRAM ARGUMENTS'"
TESTED = "protocol-tested"
LAG = 0.02
"""Seconds; what a pipe and a busy system add to the first line."""

_MOST = 1 << 16


def find(root: Path) -> list[PowerProbe]:
    """None: no program is known."""
    del root
    return []


def connect(address: str, root: Path) -> PowerProbe:
    """The meter whose program is run with its arguments; no shell is between.

    Raises:
        MeasureError: there is no program, or a quote without its end.
    """
    del root
    try:
        words = shlex.split(address)
    except ValueError as error:
        raise MeasureError(f"command:{address}: {error}", "close the quote") from error
    if not words:
        raise MeasureError("command: names no program", "write command:'my-meter 5'")
    readings = _Readings(words)
    return StreamedProbe(f"command {words[0]}", "W", readings.follow, address=address, covers=COVERS, lag=LAG)


class _Readings:
    def __init__(self, words: list[str]) -> None:
        self._words = words

    def follow(self, ended: Event) -> Iterator[tuple[float, float]]:
        try:
            program = subprocess.Popen(self._words, stdout=subprocess.PIPE, start_new_session=True)
        except OSError as error:
            raise MeasureError(
                f"{self._words[0]} cannot be run: {error.strerror or error}", "check the program's name and path"
            ) from error
        offset, before = None, -inf
        try:
            for arrived, line in _lines(program, ended):
                seconds, watts = self._read(line)
                offset = arrived - seconds if offset is None else offset
                if not seconds > before:  # or NaN
                    raise MeasureError(
                        f"{self._words[0]}: its time goes from {before:g} s to {seconds:g} s",
                        "print the time of each reading first: 12.5 3.7",
                    )
                before = seconds
                yield seconds + offset, watts
            if not ended.is_set():
                code = program.wait()
                raise MeasureError(f"{self._words[0]} ended with exit code {code}", "run it by hand and look why")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                program.wait(2)
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            program.wait()
            if program.stdout:
                program.stdout.close()

    def _read(self, line: bytes) -> tuple[float, float]:
        words = line.split()
        try:
            seconds, watts = (float(word) for word in words)
        except ValueError:
            raise MeasureError(
                f"{self._words[0]} printed {line[:60].decode(errors='replace')!r}",
                "print lines of two numbers: 12.5 3.7",
            ) from None
        return seconds, watts


def _lines(program: subprocess.Popen[bytes], ended: Event) -> Iterator[tuple[float, bytes]]:
    """(when it arrived, line) until the program ends or ``ended`` is set."""
    assert program.stdout
    left = b""
    with selectors.DefaultSelector() as selector:
        selector.register(program.stdout, selectors.EVENT_READ)
        while not ended.is_set():
            if not selector.select(0.05):
                continue
            found, arrived = os.read(program.stdout.fileno(), _MOST), boottime()
            if not found:
                return
            *lines, left = (left + found).split(b"\n")
            if len(left) > _MOST:
                raise MeasureError("the program's line has no end", "print lines of two numbers: 12.5 3.7")
            yield from ((arrived, line) for line in lines if line.strip() and not line.lstrip().startswith(b"#"))
