"""What a lab's runs say: results, curves, and what changed since the night before. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgekit.types.device import Precision
from edgekit.types.interval import Interval
from edgekit.types.lab import Status
from edgekit.types.measurement import Energy, Measurement, Series


@dataclass(frozen=True)
class Level:
    """Where a sustained curve levels off: seconds after its start, and the tok/s from there with a 95 % interval."""

    after: float
    tok_s: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """A moment of a sustained run. ``seconds`` since its start; unknown is None."""

    seconds: float
    tok_s: float | None
    celsius: float | None
    clock_mhz: float | None
    watts: float | None


@dataclass(frozen=True)
class Curve:
    """A sustained run. ``level``: None if it did not level off; ``throttled``: how it slowed down, "" if it did not."""

    points: tuple[Point, ...]
    level: Level | None
    throttled: str


@dataclass(frozen=True)
class Sustained:
    """Decoding for a long time on a device. ``host``: its processor. ``time``: UTC."""

    device: str
    host: str
    processor_class: str
    bundle_sha256: str
    model: str
    versions: tuple[tuple[str, str], ...]
    time: str
    seconds: float
    tokens: int
    curve: Curve
    energy: Energy


@dataclass(frozen=True)
class Result:
    """The runs of one workload with one bundle on one device in one night.

    Series have one sample per run that counts: ``decode`` and ``prompt`` in tok/s, ``first`` in s, ``joules`` per
    decoded token net of idle. ``status``: a result, noisy (the spread of ``decode`` is larger than the lab's limit), or
    none (no run counts); ``reason`` says why. ``ended`` counts the night's runs by how they ended.
    """

    night: str
    device: str
    bundle: str
    workload: str
    status: Literal["result", "noisy", "none"]
    reason: str
    decode: Series | None
    prompt: Series | None
    first: Series | None
    joules: Series | None
    meter: str
    spread: float | None
    ended: tuple[tuple[Status, int], ...]
    curve: Curve | None


@dataclass(frozen=True)
class Change:
    """Speed of one night over that of the night before it. ``ratio`` is None if there is no interval: one run only."""

    device: str
    bundle: str
    workload: str
    before: str
    after: str
    quantity: str
    ratio: Interval | None
    verdict: Literal["faster", "slower", "noise", "unknown"]


@dataclass(frozen=True)
class DeviceHealth:
    """A device in the last night: whether it can be relied on, and what is wrong."""

    device: str
    model: str
    system: str
    address: str
    good: int
    runs: int
    state: Literal["well", "shaky", "broken"]
    reasons: tuple[str, ...]
    hottest: float | None
    meter: str


@dataclass(frozen=True)
class Fleet:
    """All that a page shows: results of the last night, its changes, its devices. ``nights``: oldest first."""

    lab: str
    nights: tuple[str, ...]
    results: tuple[Result, ...]
    changes: tuple[Change, ...]
    devices: tuple[DeviceHealth, ...]


@dataclass(frozen=True)
class DeviceRecord:
    """The newest measurement of a bundle with a workload on a device, kept in this machine's cache.

    ``target``: the device file that describes it, "" for none. ``identity``: as in DeviceFacts. ``joules_per_token``:
    net, of decoding, None if there was no meter.
    """

    schema: int
    target: str
    device: str
    identity: str
    workload: str
    run: str
    joules_per_token: float | None
    meter: str
    measurement: Measurement


@dataclass(frozen=True)
class MeasuredSpeed:
    """A decode speed that was measured on a device of a target.

    ``efficiency``: the fraction of the target's memory bandwidth that decoding read, None if that is unknown.
    """

    precision: Precision
    model: str
    device: str
    host: str
    time: str
    tok_s: float
    efficiency: float | None
    joules_per_token: float | None
    meter: str
