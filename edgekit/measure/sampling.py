"""Three kinds of meters: counters of joules, which may wrap around; readings in watts; and instruments that send both.

Each records a trace between start() and stop(). Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING, Literal

from edgekit.errors import MeasureError
from edgekit.host.clock import boottime
from edgekit.measure.trace import check_trace, joules
from edgekit.types.power import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

PATIENCE = 10.0
"""Seconds for an instrument's first reading, and for the one after the work's end."""


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


class Probe:
    """A meter that records a trace in a thread: what all kinds share.

    Args:
        name: for people: ``RAPL package-0``.
        unit: of its trace.
        address: what selects it among the meters of its file: ``package-0``.
        covers: what its joules include.
        resolution: the smallest step of a value.
        lag: seconds by which a value may be older than its reading.
    """

    kind: Literal["measured"] = "measured"

    def __init__(
        self,
        name: str,
        unit: Literal["W", "J"],
        *,
        address: str = "",
        covers: str = "",
        resolution: float = 0.0,
        lag: float = 0.0,
    ) -> None:
        self.name, self.unit, self.address, self.covers = name, unit, address, covers
        self._resolution, self._lag = resolution, lag
        self._ended = Event()
        self._error: Exception | None = None
        self._thread: Thread | None = None

    def start(self) -> None:
        """Start recording.

        Raises:
            MeasureError: it is running, or cannot be read.
        """
        if self._thread is not None:
            raise MeasureError(f"the meter {self.name} is already running", "call stop() first")
        self._error = None
        self._ended.clear()
        self._thread = Thread(target=self._guarded, name="edgekit-meter", daemon=True)
        try:
            self._begin(self._thread)
        except BaseException:
            self._ended.set()
            if self._thread.is_alive():
                self._thread.join()
            self._thread = None
            raise

    def stop(self) -> float:
        """Stop recording. Returns the joules since start().

        Raises:
            MeasureError: it is not running, a reading failed, or what was read makes no sense.
        """
        if self._thread is None:
            raise MeasureError(f"the meter {self.name} is not running", "call start() first")
        try:
            self._finish()
        finally:
            self._ended.set()
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error
        self._end()
        return joules(self.trace()).value

    def trace(self) -> Trace:
        """What was recorded so far.

        Raises:
            MeasureError: it makes no sense; see check_trace().
        """
        at, values, lag = self._readings()
        return check_trace(
            Trace(self.name, self.unit, tuple(at), tuple(values), self._resolution, self._lag + lag, self.covers)
        )

    @property
    def failed(self) -> bool:
        """Whether it has stopped by itself; stop() raises the reason."""
        return self._error is not None

    def _guarded(self) -> None:
        try:
            self._run()
        except OSError as error:
            self._error = MeasureError(
                f"{self.name}: {error}", "check the meter's cable or network, then measure again"
            )
        except Exception as error:  # it comes out of stop(), in the caller's thread
            self._error = error

    def _begin(self, thread: Thread) -> None:
        thread.start()

    def _finish(self) -> None:
        """Called before the thread is told to end."""

    def _end(self) -> None:
        """Called after the thread has ended."""

    def _run(self) -> None:
        raise AssertionError("a kind of meter runs its own thread")

    def _readings(self) -> tuple[Sequence[float], Sequence[float], float]:
        """Times, values, and seconds by which the times may be wrong."""
        raise AssertionError("a kind of meter has its own readings")


class Polled(Probe):
    """A meter that is read at start, at stop and ``hertz`` times per second in between, in a sleeping thread."""

    def __init__(
        self,
        name: str,
        unit: Literal["W", "J"],
        hertz: float,
        *,
        address: str = "",
        covers: str = "",
        resolution: float = 0.0,
        lag: float = 0.0,
    ) -> None:
        super().__init__(name, unit, address=address, covers=covers, resolution=resolution, lag=lag)
        self._period = 1 / hertz
        self._spans: list[tuple[float, float]] = []

    def _begin(self, thread: Thread) -> None:
        self._spans = []
        self._clear()
        self._take()
        thread.start()

    def _end(self) -> None:
        self._take()

    def _run(self) -> None:
        while not self._ended.wait(self._period):
            self._take()

    def _take(self) -> None:
        before = boottime()
        self._read()
        self._spans.append((before, boottime()))

    def _kept(self) -> tuple[list[int], float]:
        """Which readings to use, and half the seconds that the slowest of them took.

        A reading during which the system was busy with something else says little about when it was; the gap that it
        leaves is counted. Readings at the same time are one.
        """
        spans = self._spans[:]
        took = [b - a for a, b in spans]
        most = 4 * median(took) + 1e-4 if took else 0.0
        quick = [i for i, (a, b) in enumerate(spans) if b - a <= most]
        kept = quick[:1] + [j for i, j in pairwise(quick) if sum(spans[j]) > sum(spans[i])]
        return kept, max((took[i] for i in kept), default=0.0) / 2

    def _times(self, kept: list[int]) -> list[float]:
        return [sum(self._spans[i]) / 2 for i in kept]

    def _clear(self) -> None:
        """Forget what was read."""

    def _read(self) -> None:
        """Read once."""


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

    def count(self, at: Sequence[float], raw: Sequence[int]) -> list[float]:
        """Joules since the first of some readings at the seconds ``at``.

        Raises:
            MeasureError: it decreased without a known range, or a gap is so long that it may have wrapped twice.
        """
        total, counted = 0.0, [0.0]
        for before, now in pairwise(raw):
            total += self.since(before, now)
            counted.append(total)
        if self.last is None or len(raw) < 3:
            return counted
        steps = [(b - a, y - x) for (a, b), (x, y) in zip(pairwise(at), pairwise(counted), strict=True)]
        usual = median(joules / seconds for seconds, joules in steps)
        if any(2 * usual * seconds > self.last * self.joules for seconds, _ in steps):
            raise MeasureError(
                f"an energy counter of {self.last * self.joules:,.0f} J was not read for "
                f"{max(seconds for seconds, _ in steps):.0f} s and may have wrapped around twice",
                "read it more often: the system was suspended or busy",
            )
        return counted


class CounterProbe(Polled):
    """A PowerProbe for energy registers, read often enough that none wraps twice between readings.

    Args:
        name: see Probe.
        registers: whose joules are added.
        hertz: how often they are read.
        address: see Probe.
        covers: see Probe.
        lag: see Probe.
    """

    def __init__(
        self,
        name: str,
        registers: Sequence[Register],
        hertz: float,
        *,
        address: str = "",
        covers: str = "",
        lag: float = 0.0,
    ) -> None:
        resolution = sum(r.joules for r in registers)
        super().__init__(name, "J", hertz, address=address, covers=covers, resolution=resolution, lag=lag)
        self._registers = registers
        self._raw: list[list[int]] = []

    def _clear(self) -> None:
        self._raw = []

    def _read(self) -> None:
        self._raw.append([r.read() for r in self._registers])

    def _readings(self) -> tuple[Sequence[float], Sequence[float], float]:
        kept, doubt = self._kept()
        at = self._times(kept)
        counts = [r.count(at, [self._raw[i][n] for i in kept]) for n, r in enumerate(self._registers)]
        return at, [sum(values) for values in zip(*counts, strict=True)], doubt


class SampledProbe(Polled):
    """A PowerProbe for a reading in watts.

    Args:
        name: see Probe.
        watts: reads it.
        hertz: how often.
        address: see Probe.
        covers: see Probe.
        resolution: see Probe.
        lag: see Probe.
        scale: a factor for all readings, found out from all of them: (seconds, watts) -> factor.
    """

    def __init__(
        self,
        name: str,
        watts: Callable[[], float],
        hertz: float,
        *,
        address: str = "",
        covers: str = "",
        resolution: float = 0.0,
        lag: float = 0.0,
        scale: Callable[[Sequence[float], Sequence[float]], float] | None = None,
    ) -> None:
        name = f"{name}, sampled at {hertz:g} Hz"
        super().__init__(name, "W", hertz, address=address, covers=covers, resolution=resolution, lag=lag)
        self._watts, self._scale = watts, scale
        self._values: list[float] = []

    def _clear(self) -> None:
        self._values = []

    def _read(self) -> None:
        self._values.append(self._watts())

    def _readings(self) -> tuple[Sequence[float], Sequence[float], float]:
        kept, doubt = self._kept()
        at, values = self._times(kept), [self._values[i] for i in kept]
        factor = self._scale(at, values) if self._scale and len(at) > 1 else 1.0
        return at, [factor * v for v in values], doubt


class StreamedProbe(Probe):
    """A PowerProbe for an instrument that sends its readings.

    Args:
        name: see Probe.
        unit: see Probe.
        readings: connects, and yields (seconds of boottime(), watts or joules so far) until the event is set; a reading
            that does not come raises MeasureError or OSError.
        address: see Probe.
        covers: see Probe.
        resolution: see Probe.
        lag: see Probe.
    """

    def __init__(
        self,
        name: str,
        unit: Literal["W", "J"],
        readings: Callable[[Event], Iterator[tuple[float, float]]],
        *,
        address: str = "",
        covers: str = "",
        resolution: float = 0.0,
        lag: float = 0.0,
    ) -> None:
        super().__init__(name, unit, address=address, covers=covers, resolution=resolution, lag=lag)
        self._source = readings
        self._pairs: list[tuple[float, float]] = []

    def _begin(self, thread: Thread) -> None:
        self._pairs = []
        thread.start()
        self._await(lambda: bool(self._pairs), "sends nothing")

    def _finish(self) -> None:
        ended = boottime()
        self._await(lambda: self._pairs[-1][0] >= ended, "has stopped sending")

    def _await(self, ready: Callable[[], bool], trouble: str) -> None:
        until = monotonic() + PATIENCE
        while not ready() and self._error is None:
            if monotonic() > until:
                raise MeasureError(
                    f"{self.name} {trouble} for {PATIENCE:g} s", "check its power, cable and settings, then try again"
                )
            self._ended.wait(0.005)
        if self._error is not None and not self._pairs:
            raise self._error

    def _run(self) -> None:
        for pair in self._source(self._ended):
            self._pairs.append(pair)
        if not self._ended.is_set():
            raise MeasureError(f"{self.name} stopped by itself", "check the meter, then measure again")

    def _readings(self) -> tuple[Sequence[float], Sequence[float], float]:
        pairs = self._pairs[:]
        return [at for at, _ in pairs], [value for _, value in pairs], 0.0
