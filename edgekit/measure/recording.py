"""Record a meter into a file, and read it back: JSON lines, a TraceHead and then one Power per reading."""

from __future__ import annotations

import errno
from datetime import UTC, datetime
from time import monotonic, sleep
from typing import TYPE_CHECKING

from edgekit import __version__
from edgekit.errors import MeasureError
from edgekit.host.disk import make_parent, write_whole, writing
from edgekit.measure.trace import check_trace
from edgekit.record import from_json, to_json
from edgekit.types.lab import Power
from edgekit.types.power import Trace, TraceHead

if TYPE_CHECKING:
    from pathlib import Path

    from edgekit.types import PowerProbe, Progress

SCHEMA = 1
CLOCK = "CLOCK_BOOTTIME of the machine that recorded"


def record_trace(probe: PowerProbe, out: Path, seconds: float | None, progress: Progress) -> Trace:
    """Record a meter until the time is over or Ctrl-C, and write what was read, whole, at the end.

    Args:
        probe: the meter.
        out: the file; replaced if it exists.
        seconds: None records until Ctrl-C.
        progress: called every tenth of a second.

    Raises:
        MeasureError: the meter cannot be read, its readings make no sense, or the file cannot be written. If it fails
            later, the readings until then are in the file.
    """
    with writing(out, kind=MeasureError):
        make_parent(out)
        if out.is_dir():
            raise OSError(errno.EISDIR, "it is a folder")
    began = datetime.now(UTC).isoformat(timespec="milliseconds")
    probe.start()
    started = monotonic()
    trouble: MeasureError | None = None
    try:
        while seconds is None or monotonic() - started < seconds:
            sleep(min(0.1, seconds or 0.1))
            progress("recording", int(monotonic() - started), int(seconds or 0), "s")
            if getattr(probe, "failed", False):
                break
    except KeyboardInterrupt:
        pass
    try:
        probe.stop()
    except MeasureError as error:
        trouble = error
    try:
        trace = probe.trace()
    except MeasureError as error:
        raise trouble or error from error
    write_trace(out, trace, began)
    if trouble:
        raise MeasureError(f"{trouble.message}; the {len(trace.at)} readings until then are in {out}", trouble.hint)
    return trace


def write_trace(out: Path, trace: Trace, began: str) -> None:
    """Write a trace, whole or not at all."""
    head = TraceHead(
        SCHEMA, trace.meter, trace.unit, trace.covers, trace.resolution, trace.lag, CLOCK, began, __version__
    )
    lines = [to_json(head), *(to_json(Power(at, v)) for at, v in zip(trace.at, trace.values, strict=True))]
    data = "".join(f"{line}\n" for line in lines).encode()
    with writing(out, len(data), MeasureError):
        write_whole(out, data)


def read_trace(path: Path) -> Trace:
    """Read a file of record_trace().

    Raises:
        MeasureError: it is missing, damaged, of a newer version, or no trace.
    """
    try:
        first, *rest = path.read_text(encoding="utf-8").splitlines()
        head = from_json(TraceHead, first)
        readings = [from_json(Power, line) for line in rest]
    except OSError as error:
        raise MeasureError(f"{path} cannot be read: {error.strerror or error}", "check the path") from error
    except ValueError as error:
        raise MeasureError(f"{path} is no trace: {error}", "pass a file of `edgekit power record`") from error
    if head.schema != SCHEMA:
        raise MeasureError(f"{path} has version {head.schema} of the trace's format", "update edgekit")
    at, values = tuple(p.at for p in readings), tuple(p.value for p in readings)
    return check_trace(Trace(head.meter, head.unit, at, values, head.resolution, head.lag, head.covers))
