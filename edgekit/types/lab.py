"""The device lab: what a device is, what its driver is asked and prints, and what is kept. Standard library only.

The driver runs on the device and prints one JSON object a line, ``{"mark": {...}}``: the key is the lower-case name of
one of the classes in ``LINES``. Times ``at`` are seconds of the device's CLOCK_BOOTTIME, which no one sets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from edgekit import ranges
from edgekit.record import added_later, from_json
from edgekit.types.generation import Sampling, Settings
from edgekit.types.measurement import Energy, Measurement, Series


@dataclass(frozen=True)
class DeviceFacts:
    """What a device says about itself. Unknown is None or "".

    ``address``: ``ssh:pi@board``. ``identity`` is the same however the device is reached: its serial number or machine
    id. ``boot_id`` changes with every boot. ``libc``: ``glibc 2.36``, ``musl 1.2``, ``bionic``. ``python``: version of
    the interpreter that runs the driver, "" if there is none.
    """

    address: str
    identity: str
    model: str
    system: str
    machine: str
    libc: str
    python: str
    processor: str
    processor_class: str
    cores: int | None
    memory_bytes: int | None
    free_memory_bytes: int | None
    free_disk_bytes: int | None
    boot_id: str


@dataclass(frozen=True)
class Task:
    """What the driver is asked to do with a bundle on the device. ``bundle`` is a folder there.

    bench: as ``edgekit bench``. sustain: decode for ``seconds``, one Rate a second. generate: continue ``tokens``.
    logits: answer each line of token ids on stdin with their logits.
    """

    do: Literal["bench", "sustain", "generate", "logits"]
    bundle: str
    threads: int | None = None
    small_memory: bool = False
    pp: tuple[int, ...] = ()
    tg: tuple[int, ...] = ()
    depth: tuple[int, ...] = ()
    repetitions: int = 1
    warmup: int = 0
    seconds: float = 0.0
    tokens: tuple[int, ...] = ()
    sampling: Sampling | None = None
    max_tokens: int = 0
    stop: tuple[int, ...] = ()
    meter: str = ""
    marks: bool = False
    settings: Settings | None = None


@dataclass(frozen=True)
class Hello:
    """The driver's first line. ``processor_class``: a value of host.processor.CLASSES."""

    at: float
    driver: str
    python: str
    versions: tuple[tuple[str, str], ...]
    pid: int
    boot_id: str
    processor_class: str = added_later("")


@dataclass(frozen=True)
class Mark:
    """A moment that splits the work: ``pp512 begin``, ``tg128@0 end``, ``burst 1 begin``, ``idle begin``."""

    at: float
    name: str


@dataclass(frozen=True)
class Sample:
    """The device's state at a moment. Unknown is None.

    ``zones``: degrees Celsius by thermal zone. ``clocks_mhz``: of each core. ``background``: cores' worth of time
    that other processes take. ``plugged``: "" on battery, else ``usb``, ``ac`` or ``wireless``.
    """

    at: float
    zones: tuple[tuple[str, float], ...]
    clocks_mhz: tuple[float, ...]
    governor: str
    battery_percent: float | None
    plugged: str | None
    background: float | None
    free_memory_bytes: int | None

    @property
    def hottest(self) -> float | None:
        """Degrees Celsius of the hottest zone."""
        return max((degrees for _, degrees in self.zones), default=None)


@dataclass(frozen=True)
class Token:
    """A generated token."""

    at: float
    id: int


@dataclass(frozen=True)
class Rate:
    """Tokens decoded between the last Rate and this one."""

    at: float
    seconds: float
    tokens: int


@dataclass(frozen=True)
class Power:
    """A reading of a meter: watts now, or joules since it began to count."""

    at: float
    value: float


@dataclass(frozen=True)
class Done:
    """The driver's last line. ``measurement``: of bench. ``energy``: of a sustained run."""

    at: float
    measurement: Measurement | None = None
    energy: Energy | None = added_later(None)  # noqa: RUF009 - a field


@dataclass(frozen=True)
class Failed:
    """The driver's last line if something is wrong; as EdgekitError."""

    at: float
    message: str
    hint: str


Line = Hello | Mark | Sample | Token | Rate | Power | Series | Done | Failed
LINES: dict[str, type[Line]] = {
    cls.__name__.lower(): cls for cls in (Hello, Mark, Sample, Token, Rate, Power, Series, Done, Failed)
}
"""A Series is what the native runner measured; the host makes the Measurement, whose formulas need the manifest."""


def read_line(text: str) -> Line:
    """Read a line of a driver. Raises ValueError if it is none, as record.from_json."""
    found = re.fullmatch(r'\{"(\w+)": ?(.*)\}', text.strip())
    if not found or found[1] not in LINES:
        raise ValueError(f"$: expected a line of the driver, found {text.strip()[:60]!r}")
    return from_json(LINES[found[1]], found[2])


Status = Literal["done", "noisy", "throttled", "failed", "refused"]
"""done: a result. noisy: its spread is larger than the lab's limit. throttled: the device slowed down meanwhile.
refused: the conditions were not met in time. Only ``done`` counts."""


@dataclass(frozen=True)
class LabRun:
    """One run of a workload with a bundle on a device: one JSON line of a lab's results.

    ``id`` is that of the planned run, the same after a resume. ``started``, ``ended``: UTC, of the lab's clock.
    """

    schema: int
    id: str
    lab: str
    device: str
    facts: DeviceFacts
    bundle: str
    bundle_sha256: ranges.Digest
    workload: str
    repetition: int
    started: str
    ended: str
    status: Status
    reason: str
    hint: str
    driver: str
    measurement: Measurement | None
    energy: Energy
    marks: tuple[Mark, ...]
    samples: tuple[Sample, ...]
    rates: tuple[Rate, ...]
    power: tuple[Power, ...]
    edgekit: str
    notes: tuple[str, ...] = added_later(())
