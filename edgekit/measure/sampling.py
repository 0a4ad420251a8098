"""Two kinds of meters: counters of joules, which may wrap around, and readings in watts, which are sampled."""

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
        MeasureError: the file is missing, not readable (the hint says how to allow it), or not an integer.
    """
    try:
        return int(path.read_text())
    except PermissionError as error:
        raise MeasureError(
            f"{path}: permission denied", f"allow reading until the next reboot: sudo chmod a+r {path}"
        ) from error
    except (OSError, ValueError) as error:
        raise MeasureError(
            f"{path}: cannot be read as a number: {error}", "choose another meter, or measure without one"
        ) from error


def read_word(path: Path) -> str:
    """The text in a sysfs file without surrounding whitespace, "" if it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


class Poll:
    """Calls ``take`` at start, at stop and ``hertz`` times per second in between, in a sleeping thread."""

    def __init__(self, take: Callable[[], None], hertz: float) -> None:
        self._take = take
        self._period = 1 / hertz
        self._ended = Event()
        self._error: MeasureError | None = None
        self._thread: Thread | None = None

    def start(self) -> None:
        """Take the first sample. Raises MeasureError if the meter cannot be read."""
        if self._thread is not None:
            raise MeasureError("the meter is already running", "call stop() first")
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
        """Take the last sample. Raises MeasureError if any sample failed."""
        if self._thread is None:
            raise MeasureError("the meter is not running", "call start() first")
        self._ended.set()
        self._thread.join()
        self._thread = None
        if self._error is not None:
            raise self._error
        self._take()


@dataclass(frozen=True)
class Register:
    """An energy counter: how to read it, joules per unit, and the last value before it wraps to 0."""

    read: Callable[[], int]
    joules: float
    last: int | None = None

    def since(self, before: int, now: int) -> float:
        """Joules between two readings with at most one wrap-around between them.

        Raises:
            MeasureError: the counter decreased and has no known range.
        """
        if now >= before:
            return (now - before) * self.joules
        if self.last is None:
            raise MeasureError(
                f"an energy counter decreased from {before} to {now}",
                "measure again; the driver may have been reloaded",
            )
        return (self.last + 1 - before + now) * self.joules


class CounterProbe:
    """A PowerProbe for energy registers, read often enough that none wraps twice between readings."""

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
        """Start counting."""
        self._seen, self._joules = [], 0.0
        self._poll.start()

    def stop(self) -> float:
        """Joules since start()."""
        self._poll.stop()
        return self._joules


class SampledProbe:
    """A PowerProbe for a reading in watts, integrated with the trapezoid rule."""

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
        """Start sampling."""
        self._samples = []
        self._poll.start()

    def stop(self) -> float:
        """Joules since start()."""
        self._poll.stop()
        return trapezoid(self._samples)


def trapezoid(samples: Sequence[tuple[float, float]]) -> float:
    """The integral of (seconds, watts) samples in joules, by the trapezoid rule."""
    return sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in pairwise(samples))
