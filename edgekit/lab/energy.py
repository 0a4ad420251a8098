"""The energy of a task on a device, by a meter of its own or by one beside it that this machine reads.

A meter beside has another clock. The times that the driver prints are first moved by what they are behind when its
first line arrives; the rest is found by the bursts of load that it leaves (measure/alignment.py).
"""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from edgekit.errors import MeasureError
from edgekit.host.clock import boottime
from edgekit.measure.alignment import align
from edgekit.measure.energy import account_marks, open_meter, sits_beside
from edgekit.measure.trace import watts
from edgekit.types.lab import Done, Hello, Mark, Power, Rate
from edgekit.types.measurement import Energy

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from edgekit.types import PowerProbe, Task
    from edgekit.types.lab import Line
    from edgekit.types.power import Trace

LEAD = 6.0
"""Seconds that a meter runs before a task and after it: more than its clock may be away from this one's."""

MOST_READINGS = 100_000
"""Of a meter, that are handed on as Power lines; of faster ones every n-th."""


def metered(
    lines_of: Callable[[Task], Generator[Line]], task: Task, meter: str, pause: Callable[[float], object]
) -> Generator[Line]:
    """Do a task, yielding the driver's lines; its Done has the energy, and its Measurement the same.

    Args:
        lines_of: does a task on the device.
        task: without meter and marks.
        meter: NAME[:ADDRESS] of a meter of the device, or of one beside it that this machine reads; "" for the default
            of the device.
        pause: sleeps, while the meter runs alone.

    Raises:
        MeasureError: the meter beside cannot be opened or started. If it fails later, the run is kept, without energy.
    """
    if not meter or not sits_beside(meter):
        yield from lines_of(replace(task, meter=meter))
        return
    probe = open_meter(meter)
    probe.start()
    heard: list[Mark] = []
    ahead, tokens = 0.0, 0
    try:
        pause(LEAD)
        with closing(lines_of(replace(task, marks=True))) as lines:
            for line in lines:
                if isinstance(line, Done):
                    pause(LEAD)
                    yield from _finish(probe, line, heard, ahead, tokens)
                    continue
                if isinstance(line, Hello):
                    ahead = boottime() - line.at
                elif isinstance(line, Mark):
                    heard.append(replace(line, at=line.at + ahead))
                elif isinstance(line, Rate):
                    tokens += line.tokens
                yield line
    finally:
        with suppress(MeasureError):
            probe.stop()


def _finish(probe: PowerProbe, done: Done, marks: list[Mark], ahead: float, tokens: int) -> Iterator[Line]:
    """The meter's readings by the device's clock, and Done with the energy."""
    try:
        probe.stop()
        trace = probe.trace()
        alignment = align(trace, marks)
    except MeasureError as error:
        energy = Energy("none", meter=probe.name, reason=f"{error.message} ({error.hint})")
    else:
        energy = account_marks(trace, marks, alignment=alignment, sustained=tokens)
        yield from readings(trace, -ahead - alignment.offset)
    measured = done.measurement and replace(done.measurement, energy=energy)
    yield replace(done, measurement=measured, energy=energy)


def readings(trace: Trace, shift: float = 0.0) -> Iterator[Power]:
    """A trace as lines in watts, moved by ``shift`` seconds."""
    points = watts(trace)
    step = -(-len(points) // MOST_READINGS)
    for at, value in points[::step]:
        yield Power(at + shift, value)
