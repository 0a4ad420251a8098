"""Two kinds of meters: one that counts joules and may wrap around, one that shows watts and must be sampled."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from threading import Event, Thread
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from edgekit.errors import MeasureError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def read_number(path: Path) -> int:
    """The integer in a sysfs file.

    Raises:
        MeasureError: the file is not readable (the hint says how to allow it), is gone, or holds no integer.
    """
    try:
        return int(path.read_text())
    except PermissionError as error:
        raise MeasureError(
            f"{path}: permission denied", f"only root may read it; allow it once with: sudo chmod a+r {path}"
        ) from error
    except (OSError, ValueError) as error:
        raise MeasureError(
            f"{path}: cannot be read as a number: {error}", "leave this meter out: the kernel gives no number here"
        ) from error


def read_word(path: Path) -> str:
    """The text in a sysfs file without the white space around it, or "" where there is none to read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


class Poll:
    """Calls ``take`` at start, at stop and ``hertz`` times a second between, in a thread that sleeps."""

    def __init__(self, take: Callable[[], None], hertz: float) -> None:
        self._take = take
        self._period = 1 / hertz
        self._ended = Event()
        self._error: MeasureError | None = None
        self._thread: Thread | None = None

    def start(self) -> None:
        """Take the first sample. Raises MeasureError when the meter cannot be read."""
        if self._thread is not None:
            raise MeasureError("the meter counts already", "call stop() first")
        self._error = None
        self._ended.clear()
        self._take()
        self._thread = Thread(target=self._run, name="edgekit-meter", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(self._period):
            try:
                self._take()
            except MeasureError as error:
                self._error = error
                return

    def stop(self) -> None:
        """Take the last sample. Raises MeasureError when any sample could not be taken."""
        if self._thread is None:
            raise MeasureError("the meter was not started", "call start() first")
        self._ended.set()
        self._thread.join()
        self._thread = None
        if self._error is not None:
            raise self._error
        self._take()


@dataclass(frozen=True)
class Register:
    """A counter of energy: how to read it, joules per unit, and the value after which it starts at 0 again."""

    read: Callable[[], int]
    joules: float
    last: int | None = None

    def since(self, before: int, now: int) -> float:
        """Joules between two readings with at most one wrap-around between them.

        Raises:
            MeasureError: the counter went back and has no known range.
        """
        if now >= before:
            return (now - before) * self.joules
        if self.last is None:
            raise MeasureError(f"an energy counter went back from {before} to {now}", "was the driver reloaded?")
        return (self.last + 1 - before + now) * self.joules


class CounterProbe:
    """A PowerProbe over energy registers, read often enough that none wraps twice between two readings."""

    kind: Literal["measured"] = "measured"

    def __init__(self, name: str, registers: Sequence[Register], hertz: float) -> None:
        self.name = name
        self._registers = registers
        self._seen: list[int] = []
        self._joules = 0.0
        self._poll = Poll(self._take, hertz)

    def _take(self) -> None:
        now = [r.read() for r in self._registers]
        if self._seen:
            self._joules += sum(r.since(b, n) for r, b, n in zip(self._registers, self._seen, now, strict=True))
        self._seen = now

    def start(self) -> None:
        """Begin to count."""
        self._seen, self._joules = [], 0.0
        self._poll.start()

    def stop(self) -> float:
        """Joules since start()."""
        self._poll.stop()
        return self._joules


class SampledProbe:
    """A PowerProbe over a reading in watts: trapezoids between samples."""

    kind: Literal["measured"] = "measured"

    def __init__(self, name: str, watts: Callable[[], float], hertz: float) -> None:
        self.name = f"{name}, sampled at {hertz:g} Hz, trapezoid rule"
        self._watts = watts
        self._samples: list[tuple[float, float]] = []
        self._poll = Poll(self._take, hertz)

    def _take(self) -> None:
        watts = self._watts()
        self._samples.append((perf_counter(), watts))

    def start(self) -> None:
        """Begin to sample."""
        self._samples = []
        self._poll.start()

    def stop(self) -> float:
        """Joules since start()."""
        self._poll.stop()
        return trapezoid(self._samples)


def trapezoid(samples: Sequence[tuple[float, float]]) -> float:
    """The area under (seconds, watts) samples in joules, straight lines between them."""
    return sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in pairwise(samples))
