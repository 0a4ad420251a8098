"""Measurements of a bundle on a machine. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from edgekit.record import added_later
from edgekit.types.device import Precision
from edgekit.types.generation import Settings
from edgekit.types.power import Trace


@dataclass(frozen=True)
class Trial:
    """One change of the settings, measured in alternating rounds against the best settings so far.

    ``ratios`` by workload (``pp512``, ``tg32@512``): one sample per round, speed with the change / speed without.
    """

    change: str
    ratios: tuple[Series, ...]
    won: bool


@dataclass(frozen=True)
class Tuning:
    """The fastest settings on a class of machine, and the trials that show it.

    It applies if ``machine`` and ``runtime`` match those of the process. ``kept``: the defaults were fastest.
    ``left_out`` lists what was not tried and why. ``waited``: share of its running time that the process waited for a
    core, in the worst trial; None if the system does not report it.
    """

    machine: str
    runtime: str
    settings: Settings
    kept: bool
    trials: tuple[Trial, ...]
    left_out: tuple[str, ...]
    waited: float | None
    time: str


@dataclass(frozen=True)
class Series:
    """Raw samples of one quantity. Statistics are computed, never stored."""

    name: str
    unit: str
    samples: tuple[float, ...]

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.samples)

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return sum(self.samples) / len(self.samples)

    @property
    def sd(self) -> float:
        """Sample standard deviation (n - 1); 0.0 for one sample."""
        if len(self.samples) < 2:
            return 0.0
        m = self.mean
        variance = sum((x - m) ** 2 for x in self.samples) / (len(self.samples) - 1)
        return float(variance**0.5)

    def percentile(self, p: float) -> float:
        """The p-th percentile (0..100), linear between order statistics."""
        ordered = sorted(self.samples)
        at = (len(ordered) - 1) * p / 100
        low = int(at)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


@dataclass(frozen=True)
class Energy:
    """Energy of the measured work. ``kind`` is how it was obtained; missing numbers are None, never zero.

    ``gross`` joules include idle power, ``net`` joules do not. ``reason`` explains why there is none.

    ``hertz``: readings per second. ``error_joules``, ``net_error_joules``: the most by which gross and net can be wrong
    by sampling, rounding and clocks; the meter's calibration is not part of it. ``alignment_residual``: seconds, if the
    meter has a clock of its own. ``joules_per_prompt_token``, ``joules_per_answer_token``, ``tokens_per_joule`` (of
    answers): gross. ``answers_per_charge``: of the workload's prompt and answer, from the battery's own full charge.
    ``covers``: what the joules include.
    """

    kind: Literal["measured", "estimated", "none"]
    meter: str = ""
    gross_joules: float | None = None
    net_joules: float | None = None
    idle_watts_before: float | None = None
    idle_watts_after: float | None = None
    seconds: float | None = None
    tokens: int | None = None
    formula: str = ""
    reason: str = ""
    hertz: float | None = added_later(None)
    error_joules: float | None = added_later(None)
    net_error_joules: float | None = added_later(None)
    alignment_residual: float | None = added_later(None)
    joules_per_prompt_token: float | None = added_later(None)
    joules_per_answer_token: float | None = added_later(None)
    tokens_per_joule: float | None = added_later(None)
    answers_per_charge: float | None = added_later(None)
    covers: str = added_later("")


class PowerProbe(Protocol):
    """A meter. One file each in measure/power/."""

    @property
    def name(self) -> str:
        """Name of the meter: ``RAPL package-0``."""

    @property
    def kind(self) -> Literal["measured", "estimated"]:
        """How its joules are obtained."""

    @property
    def address(self) -> str:
        """What selects it among the meters of its file: ``package-0``."""

    @property
    def covers(self) -> str:
        """What its joules include."""

    def start(self) -> None:
        """Start recording."""

    def stop(self) -> float:
        """Stop recording; the joules since start()."""

    def trace(self) -> Trace:
        """What was read since start()."""


class Marking(Protocol):
    """Called at a moment that splits the work: ``pp512 begin``, ``tg128@0 end``."""

    def __call__(self, name: str) -> None:
        """Note the moment."""


def unmarked(name: str) -> None:
    """A Marking that does nothing."""


@dataclass(frozen=True)
class Environment:
    """The machine during a measurement. Unknown is None or "". ``arithmetic``: how exact its integer matmuls are."""

    host: str
    system: str
    cpu: str
    cores: int
    threads: int
    memory_bytes: int | None
    governor: str
    frequency_mhz: float | None
    temperature_c: float | None
    battery_percent: float | None
    on_battery: bool | None
    load_before: float | None
    runtime: tuple[tuple[str, str], ...]
    provider: str
    provider_options: tuple[tuple[str, str], ...]
    processor_class: str = added_later("")
    arithmetic: str = added_later("")


@dataclass(frozen=True)
class Ceilings:
    """Limits of the machine, measured in the same run: memory read bandwidth and fp32 GEMM rate."""

    bandwidth_bytes_per_s: Series
    gemm_flop_per_s: Series


@dataclass(frozen=True)
class Measurement:
    """One run of a workload on one bundle: one JSON line. Raw samples with units; statistics are computed.

    ``weight_bytes``, ``kv_bytes_per_position`` and ``flop_per_token`` are lower bounds of a decoded token by the
    formulae in estimate/needs.py; MBU and MFU follow from them and the ceilings. ``roofline`` holds, by series, the
    fraction of the ceiling that was reached: MBU for ``tg``, MFU for ``pp``. ``gemm_factor`` multiplies the fp32 GEMM
    rate to give the ceiling for the model's own arithmetic (1 in fp32), None if unknown. ``settings`` are those of the
    run; ``tuned``: they came from a tuning for this class of machine.
    """

    schema: int
    bundle_sha256: str
    model: str
    precision: Precision
    device: str
    time: str
    environment: Environment
    workload: str
    warmup: int
    series: tuple[Series, ...]
    ceilings: Ceilings | None
    peak_rss_bytes: int
    weight_bytes: int
    kv_bytes_per_position: int
    flop_per_token: float
    nodes_on_cpu: int | None
    energy: Energy
    roofline: tuple[tuple[str, float], ...] = ()
    gemm_factor: float | None = None
    settings: Settings | None = None
    tuned: bool = False

    def get(self, name: str) -> Series | None:
        """The series called ``name``, or None."""
        return next((s for s in self.series if s.name == name), None)
