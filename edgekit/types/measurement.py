"""What a bundle costs on a machine. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from edgekit.record import added_later
from edgekit.types.device import Precision
from edgekit.types.generation import Settings


@dataclass(frozen=True)
class Trial:
    """One change of the settings, measured in rounds beside the settings that stood until then.

    ``ratios`` by workload (``pp512``, ``tg32@512``): one sample a round, the speed with the change over that without.
    """

    change: str
    ratios: tuple[Series, ...]
    won: bool


@dataclass(frozen=True)
class Tuning:
    """The settings that were the fastest on a class of machine, and the trials that say so.

    ``machine`` and ``runtime`` must be those of the process for it to apply. ``kept``: the default settings stayed.
    ``left_out`` says what was not tried and why. ``waited``: the share of its running time that the process waited for
    a core, in the worst trial; None where the system does not tell.
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
    """Raw samples of one quantity. Statistics are derived, never stored instead."""

    name: str
    unit: str
    samples: tuple[float, ...]

    @property
    def n(self) -> int:
        """How many samples."""
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
    """Energy of the measured work. ``kind`` says how it was obtained; absent numbers are None, never zero.

    ``gross`` joules include the idle power, ``net`` do not. ``reason`` says why there is none.
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


class PowerProbe(Protocol):
    """A meter. One file each in measure/power/."""

    @property
    def name(self) -> str:
        """What it reads, in words: ``RAPL package-0``."""

    @property
    def kind(self) -> Literal["measured", "estimated"]:
        """How its joules are obtained."""

    def start(self) -> None:
        """Begin to count."""

    def stop(self) -> float:
        """Joules since start()."""


@dataclass(frozen=True)
class Environment:
    """The machine during a measurement. Unknown is None or "". ``arithmetic``: how exact its integer matmuls were."""

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
    """What the machine can do, measured in the same run: memory read bandwidth and fp32 GEMM rate."""

    bandwidth_bytes_per_s: Series
    gemm_flop_per_s: Series


@dataclass(frozen=True)
class Measurement:
    """One run of a workload on one bundle: one JSON line. Raw samples with units; statistics are derived.

    ``bytes_per_token`` and ``flop_per_token`` are what a decoded token must at least read and compute,
    by their formulae in measure/; MBU and MFU follow from them and the ceilings. ``roofline`` holds, by series,
    the fraction of the ceiling that was reached: MBU for ``tg``, MFU for ``pp``. ``gemm_factor`` is what the fp32
    GEMM rate was multiplied by to be a ceiling for the model's own arithmetic (1 in fp32), None when not known.
    ``settings`` are those it ran with; ``tuned`` says that they came from a tuning for this class of machine.
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
