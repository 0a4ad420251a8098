"""Write the page of a lab: what its devices reach and cost, what heat leaves of it, what changed, and who is broken."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING

from edgekit import __version__, words
from edgekit.host.disk import make_parent, write_whole, writing
from edgekit.report.environment import load_template
from edgekit.report.fleet_plot import MARKERS, plot_curves, plot_energy
from edgekit.report.plot import HUES, Ink

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekit.types import Series
    from edgekit.types.fleet import Change, DeviceHealth, Fleet, Result

_SHAPES = dict(zip(MARKERS, "●■◆▲▼✚★✖", strict=True))
"""Characters that look like matplotlib's markers."""

_AT_ONCE = 5.0
"""Seconds: a curve that is level by then was level from the start."""


@dataclass(frozen=True)
class Drawing:
    """A plot with its title; ``say`` explains each of its lines."""

    title: str
    svg: str
    say: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChangeRow:
    """A change; ``low``, ``high`` and ``at`` are places of its interval on the scale of all of them, 0..100."""

    change: Change
    text: str
    low: float
    at: float
    high: float


@dataclass(frozen=True)
class ResultRow:
    """A row of the table of results, formatted; "" is not measured."""

    result: Result
    decode: str
    spread: str
    prompt: str
    first: str
    joules: str
    ended: str


@dataclass(frozen=True)
class FleetPage:
    """All that the template lays out. ``bundles``: the shape of each, and its name."""

    fleet: Fleet
    title: str
    lead: str
    night: str
    devices: tuple[tuple[DeviceHealth, Ink], ...]
    bundles: tuple[tuple[str, str], ...]
    energy: tuple[Drawing, ...]
    curves: tuple[Drawing, ...]
    changed: tuple[ChangeRow, ...]
    noise: tuple[ChangeRow, ...]
    one: float
    rows: tuple[ResultRow, ...]
    edgekit: str


def write_fleet(fleet: Fleet, out: Path) -> Path:
    """Write one self-contained HTML page about the last night of a lab.

    Args:
        fleet: its results.
        out: the HTML file; missing parent directories are created.

    Raises:
        EdgekitError: ``out`` cannot be written.
    """
    page = load_template("fleet.html.j2").render(page=compose_fleet(fleet)).encode()
    with writing(out, len(page)):
        make_parent(out)
        write_whole(out, page)
    return out


def compose_fleet(fleet: Fleet) -> FleetPage:
    """Turn a lab's results into a page."""
    inks = {health.device: Ink(health.device, at % HUES) for at, health in enumerate(fleet.devices)}
    bundles = list(dict.fromkeys(result.bundle for result in fleet.results))
    changed = [change for change in fleet.changes if change.verdict != "noise"]
    scale = _Scale(fleet.changes)
    return FleetPage(
        fleet=fleet,
        title=fleet.lab,
        lead=_lead(fleet),
        night=_when(fleet.nights[-1]),
        devices=tuple((health, inks[health.device]) for health in fleet.devices),
        bundles=tuple((_SHAPES[MARKERS[at % len(MARKERS)]], bundle) for at, bundle in enumerate(bundles)),
        energy=tuple(_energy(fleet.results, inks, bundles)),
        curves=tuple(_curves(fleet.results, bundles)),
        changed=tuple(scale.row(c) for c in sorted(changed, key=lambda c: c.ratio.value if c.ratio else 1.0)),
        noise=tuple(scale.row(c) for c in fleet.changes if c.verdict == "noise"),
        one=scale.place(1.0),
        rows=tuple(map(_row, fleet.results)),
        edgekit=__version__,
    )


def _lead(fleet: Fleet) -> str:
    """The night in a few sentences."""
    broken = [health.device for health in fleet.devices if health.state == "broken"]
    shaky = [health.device for health in fleet.devices if health.state == "shaky"]
    good = sum(result.status == "result" for result in fleet.results)
    said = f"{good} of {len(fleet.results)} results on {len(fleet.devices)} devices."
    said += f" Broken: {', '.join(broken)}." if broken else " No device is broken."
    said += f" Shaky: {', '.join(shaky)}." if shaky else ""
    slower = sum(change.verdict == "slower" for change in fleet.changes)
    faster = sum(change.verdict == "faster" for change in fleet.changes)
    if fleet.changes:
        noise = sum(change.verdict == "noise" for change in fleet.changes)
        said += f" Since the night before: {slower} slower, {faster} faster, {noise} within noise."
    return said


def _when(night: str) -> str:
    """``30 November 2026, 21:00 UTC``."""
    moment = datetime.strptime(night.rpartition("@")[2], "%Y%m%dT%H%M%SZ")
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def _energy(results: Sequence[Result], inks: dict[str, Ink], bundles: Sequence[str]) -> list[Drawing]:
    """Speed over energy, a plot for each workload that has joules."""
    drawings = []
    for at, workload in enumerate(dict.fromkeys(result.workload for result in results)):
        lines = []
        for device, ink in inks.items():
            points = [
                (bundles.index(r.bundle), median(r.joules.samples), median(r.decode.samples))
                for r in results
                if (r.device, r.workload, r.status) == (device, workload, "result") and r.joules and r.decode
            ]
            lines += [(ink, points)] if points else []
        if lines:
            drawings.append(Drawing(workload, plot_energy(lines, f"energy{at}")))
    return drawings


def _curves(results: Sequence[Result], bundles: Sequence[str]) -> list[Drawing]:
    """Sustained runs, a plot for each device and workload."""
    drawings = []
    groups = dict.fromkeys((r.device, r.workload) for r in results if r.curve)
    for at, (device, workload) in enumerate(groups):
        found = [r for r in results if (r.device, r.workload) == (device, workload) and r.curve]
        lines = [(Ink(r.bundle, bundles.index(r.bundle) % HUES), r.curve) for r in found if r.curve]
        told = tuple(map(_told, found))
        drawings.append(Drawing(f"{device}: {workload}", plot_curves(lines, f"curve{at}"), told))
    return drawings


def _told(result: Result) -> str:
    curve = result.curve
    assert curve
    level = curve.level
    if level is None:
        said = "does not level off"
    else:
        speed = f"{words.number(level.tok_s)} tok/s [{words.number(level.low)}, {words.number(level.high)}]"
        early = level.after < _AT_ONCE
        said = f"holds {speed}" if early else f"levels off after {words.seconds(level.after)} at {speed}"
    return f"{result.bundle} {said}{f'; {curve.throttled}' if curve.throttled else ''}"


class _Scale:
    """Places of ratios on a linear scale around 1, which holds every interval."""

    def __init__(self, changes: Sequence[Change]) -> None:
        ratios = [c.ratio for c in changes if c.ratio]
        reach = max([0.02, *(abs(edge - 1) for r in ratios for edge in (r.low, r.high))])
        self._reach = min(reach, 1.0)

    def place(self, ratio: float) -> float:
        """0..100."""
        return max(0.0, min(100.0, 50 + 50 * (ratio - 1) / self._reach))

    def row(self, change: Change) -> ChangeRow:
        """Format a change."""
        ratio = change.ratio
        if ratio is None:
            return ChangeRow(change, "one run only: no interval", 50.0, 50.0, 50.0)
        text = f"{_signed(ratio.value)} [{_signed(ratio.low)}, {_signed(ratio.high)}]"
        return ChangeRow(change, text, self.place(ratio.low), self.place(ratio.value), self.place(ratio.high))


def _signed(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def _row(result: Result) -> ResultRow:
    return ResultRow(
        result,
        decode=_median(result.decode),
        spread="" if result.spread is None else words.percent(result.spread),
        prompt=_median(result.prompt),
        first=words.seconds(median(result.first.samples)) if result.first else "",
        joules=_median(result.joules),
        ended=", ".join(f"{count} {status}" for status, count in result.ended),
    )


def _median(series: Series | None) -> str:
    return words.number(median(series.samples)) if series else ""
