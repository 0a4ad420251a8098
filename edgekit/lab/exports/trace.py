"""A Perfetto trace of a run: tokens and marks as slices, clock, temperature and power as counters.

Opens in https://ui.perfetto.dev, without upload. The track and packet formats are those of perfetto's
protos/perfetto/trace/track_event/track_event.proto.
"""

from __future__ import annotations

import re
from itertools import count
from typing import TYPE_CHECKING, Any

from edgekit.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgekit.types import LabRun
    from edgekit.types.lab import Mark

Slice = tuple[float, float, str]
"""Begin and end in seconds, and a name."""
_SEQUENCE = 1


def export(run: LabRun) -> bytes:
    """The serialized trace.

    Raises:
        LabError: the perfetto package is missing.
    """
    try:
        from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent
    except ImportError as error:
        raise LabError("a trace needs the perfetto package", "pip install 'edgekit[lab]'") from error
    trace = Trace()
    tracks = count(1)
    for name, slices in (("work", _work(run.marks)), ("tokens", _tokens(run))):
        _add_slices(trace, TrackEvent, next(tracks), name, slices)
    for name, unit, points in _counters(run):
        _add_counter(trace, TrackEvent, next(tracks), f"{name} ({unit})", points)
    return bytes(trace.SerializeToString())


def _work(marks: Sequence[Mark]) -> list[Slice]:
    """What lies between ``NAME begin`` and the next ``NAME end``."""
    begun: dict[str, float] = {}
    slices = []
    for mark in marks:
        name, _, edge = mark.name.rpartition(" ")
        if edge == "begin":
            begun[name] = mark.at
        elif edge == "end" and name in begun:
            slices.append((begun.pop(name), mark.at, name))
    return slices


def _tokens(run: LabRun) -> list[Slice]:
    """Each decoded token of a bench, laid out from the mark at which its round began; each Rate of a sustained run."""
    slices = [(rate.at - rate.seconds, rate.at, f"{rate.tokens} tokens") for rate in run.rates]
    series = {s.name: s for s in run.measurement.series} if run.measurement else {}
    for name, speeds in series.items():
        if not (found := re.fullmatch(r"tg(\d+)@(\d+)", name)) or f"tpot@{found[2]}" not in series:
            continue
        each = int(found[1])
        starts = [mark.at for mark in run.marks if mark.name == f"{name} begin"][-speeds.n :]
        steps = series[f"tpot@{found[2]}"].samples
        if len(steps) != each * len(starts):  # several lengths at one depth share a series
            continue
        for round_, start in enumerate(starts):
            at = start
            for number, seconds in enumerate(steps[round_ * each : (round_ + 1) * each]):
                slices.append((at, at + seconds, f"token {number + 1}"))
                at += seconds
    return slices


def _counters(run: LabRun) -> Iterator[tuple[str, str, list[tuple[float, float]]]]:
    for zone in dict.fromkeys(name for s in run.samples for name, _ in s.zones):
        yield f"temperature {zone}", "°C", [(s.at, v) for s in run.samples for n, v in s.zones if n == zone]
    for core in range(max((len(s.clocks_mhz) for s in run.samples), default=0)):
        points = [(s.at, s.clocks_mhz[core]) for s in run.samples if core < len(s.clocks_mhz)]
        yield f"clock {core}", "MHz", points
    yield "background", "cores", [(s.at, s.background) for s in run.samples if s.background is not None]
    yield "speed", "tok/s", [(r.at, r.tokens / r.seconds) for r in run.rates if r.seconds]
    yield "power", "W", [(p.at, p.value) for p in run.power]


def _packet(trace: Any, at: float) -> Any:
    packet = trace.packet.add()
    packet.timestamp = round(1e9 * at)
    packet.trusted_packet_sequence_id = _SEQUENCE
    return packet


def _describe(trace: Any, track: int, name: str) -> Any:
    packet = trace.packet.add()
    packet.trusted_packet_sequence_id = _SEQUENCE
    packet.track_descriptor.uuid = track
    packet.track_descriptor.name = name
    return packet.track_descriptor


def _add_slices(trace: Any, event: Any, track: int, name: str, slices: Sequence[Slice]) -> None:
    if not slices:
        return
    _describe(trace, track, name)
    for begin, end, text in sorted(slices):
        packet = _packet(trace, begin)
        packet.track_event.type = event.TYPE_SLICE_BEGIN
        packet.track_event.track_uuid = track
        packet.track_event.name = text
        packet = _packet(trace, max(begin, end))
        packet.track_event.type = event.TYPE_SLICE_END
        packet.track_event.track_uuid = track


def _add_counter(trace: Any, event: Any, track: int, name: str, points: Sequence[tuple[float, float]]) -> None:
    if not points:
        return
    # The presence of the counter descriptor makes the track a counter's.
    _describe(trace, track, name).counter.SetInParent()
    for at, value in points:
        packet = _packet(trace, at)
        packet.track_event.type = event.TYPE_COUNTER
        packet.track_event.track_uuid = track
        packet.track_event.double_counter_value = value
