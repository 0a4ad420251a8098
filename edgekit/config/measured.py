"""What this user's lab measured on devices: a file in the cache for each device, bundle and workload, the newest."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from edgekit.host.cache import cache_folder, foreign, make_own
from edgekit.host.disk import write_whole
from edgekit.record import from_json, to_json
from edgekit.types.device import Evidence, Target
from edgekit.types.fleet import DeviceRecord, MeasuredSpeed

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from edgekit.types import Precision

SCHEMA = 1
_LARGEST = 50_000_000


def write_record(record: DeviceRecord) -> None:
    """Keep a record in place of the one before it.

    Raises:
        ConfigError: the cache is not safe.
        OSError: it cannot be written.
    """
    what = f"{record.identity}\0{record.device}\0{record.measurement.bundle_sha256}\0{record.workload}"
    digest = hashlib.sha256(what.encode()).hexdigest()[:16]
    name = f"{record.measurement.bundle_sha256[:16]}-{digest}.json"
    write_whole(make_own(_folder()) / name, f"{to_json(record)}\n".encode())


def read_records(bundle_sha256: str = "") -> tuple[DeviceRecord, ...]:
    """The records, newest first: all, or those of a bundle. Files that are damaged or another user's do not count."""
    folder = _folder()
    found = []
    for path in sorted(folder.glob(f"{bundle_sha256[:16]}*.json")):
        if foreign(path) or path.stat().st_size > _LARGEST:
            continue
        try:
            record = from_json(DeviceRecord, path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if record.measurement.bundle_sha256.startswith(bundle_sha256):
            found.append(record)
    return tuple(sorted(found, key=lambda record: record.measurement.time, reverse=True))


def measured_speeds(target: Target, records: Iterable[DeviceRecord]) -> tuple[MeasuredSpeed, ...]:
    """The records of a target's devices, newest first. Measured on a CPU, they say nothing about an NPU: none there."""
    return tuple(
        speed
        for record in records
        if record.target == target.name and target.npu is None
        if (speed := _speed(target, record))
    )


def with_measured(target: Target, speeds: Iterable[MeasuredSpeed]) -> Target:
    """The target as verified by what was measured on such devices; unchanged if nothing was."""
    found = tuple(speeds)
    if not found:
        return target
    words = "; ".join(f"{s.model} {s.precision} on {s.device} ({s.host}), {s.time[:10]}" for s in found[:3])
    return replace(target, verified="measured", sources=(*target.sources, Evidence("verified", "measured", words)))


def efficiency_range(speeds: Iterable[MeasuredSpeed], precision: Precision) -> tuple[float, float] | None:
    """The lowest and highest measured efficiency at a precision, None if there is none."""
    known = [s.efficiency for s in speeds if s.precision == precision and s.efficiency is not None]
    return (min(known), max(known)) if known else None


def _speed(target: Target, record: DeviceRecord) -> MeasuredSpeed | None:
    """The speed of decoding at the smallest depth."""
    m = record.measurement
    found = [((int(t[2]), int(t[1])), s) for s in m.series if (t := re.fullmatch(r"tg(\d+)@(\d+)", s.name))]
    if not found:
        return None
    (depth, tokens), series = min(found, key=lambda pair: pair[0])
    # The bytes that a token reads on average, as estimate/needs.py has them, without sliding windows.
    read = m.weight_bytes + m.kv_bytes_per_position * (depth + (tokens + 1) / 2)
    efficiency = series.mean * read / target.bandwidth_bytes_per_s if target.bandwidth_bytes_per_s else None
    return MeasuredSpeed(
        precision=m.precision,
        model=m.model,
        device=record.device,
        host=m.environment.host,
        time=m.time,
        tok_s=series.mean,
        efficiency=efficiency,
        joules_per_token=record.joules_per_token,
        meter=record.meter,
    )


def _folder() -> Path:
    return cache_folder() / "measured"
