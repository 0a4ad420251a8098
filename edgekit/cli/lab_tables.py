"""Tables of a lab: its plan, its results, its devices."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from rich.text import Text

from edgekit import words
from edgekit.cli.documents import PlannedLab
from edgekit.cli.layout import columns, facts
from edgekit.cli.tables import energy_words
from edgekit.lab.results import decode_speed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from edgekit.lab.check import Seen
    from edgekit.lab.plan import Plan
    from edgekit.types import LabRun, Series
    from edgekit.types.fleet import Fleet, Sustained

MOST_ROWS = 20
"""Of a curve; longer ones are averaged."""

_STYLES = {"well": "green", "shaky": "yellow", "broken": "red", "result": "", "noisy": "yellow", "none": "red"}


def plan_tables(plan: Plan, done: frozenset[str]) -> Iterator[RenderableType]:
    """What a lab is about to run, and for how long."""
    found = PlannedLab.of(plan, done)
    lab = plan.lab
    yield Text.assemble(
        (plan.night, "bold"),
        f": {len(lab.bundles)} bundles x {len(lab.devices)} devices x {len(lab.workloads)} workloads, "
        f"{lab.repetitions} repetitions, {lab.order}, seed {lab.seed}",
    )
    table = columns("device", "address", "runs>", "left>", "time>", "first")
    for d in found.devices:
        time = words.seconds(d.seconds) + (" (estimated)" if d.estimated else "")
        table.add_row(d.device, d.address, str(d.runs), str(d.left), time, d.order[0] if d.order else "")
    yield table
    deadline = f"; no run starts after {words.seconds(lab.deadline)}" if lab.deadline else ""
    yield Text(f"about {words.seconds(found.seconds)} in all, and what cooling down takes{deadline}", style="dim")


def device_table(devices: Sequence[Seen]) -> Table:
    """One row per device: what it is, or why it does not answer."""
    table = columns("device", "address", "what it is", "processor", "cores>", "memory free>", "disk free>", "Python")
    for seen in devices:
        f = seen.facts
        if f is None:
            said = Text(seen.error, style="red").append(f"\nhint: {seen.hint}", style="cyan")
            table.add_row(seen.name, seen.address, said)
            continue
        memory = words.size(f.free_memory_bytes) if f.free_memory_bytes is not None else "unknown"
        disk = words.size(f.free_disk_bytes) if f.free_disk_bytes is not None else "unknown"
        what = ", ".join(filter(None, (f.model, f.system, f.machine, f.libc)))
        processor = words.processor(f.processor, f.processor_class)
        table.add_row(seen.name, seen.address, what, processor, str(f.cores or ""), memory, disk, f.python or "none")
    return table


def run_line(run: LabRun) -> str:
    """A run that has just ended, in a line."""
    speed = decode_speed(run) if run.status not in ("failed", "refused") else None
    said = f": {words.number(speed)} tok/s" if speed else ""
    reason = f" ({run.reason})" if run.reason else ""
    return f"{run.device}: {run.bundle} {run.workload} {run.repetition} {run.status}{said}{reason}"


def result_tables(fleet: Fleet) -> Iterator[RenderableType]:
    """A lab's last night: results, devices, and what changed."""
    table = columns("device", "bundle", "workload", "tok/s>", "spread>", "prompt tok/s>", "J/token>", "runs", "result")
    for r in fleet.results:
        spread = "" if r.spread is None else words.percent(r.spread)
        ended = ", ".join(f"{count} {status}" for status, count in r.ended)
        state = Text(r.status if r.status == "result" else f"{r.status}: {r.reason}", style=_STYLES[r.status])
        numbers = (_median(r.decode), spread, _median(r.prompt), _median(r.joules))
        table.add_row(r.device, r.bundle, r.workload, *numbers, ended, state)
    yield table
    yield ""
    table = columns("device", "state", "count>", "hottest>", "meter", "what is wrong")
    for d in fleet.devices:
        hottest = "unknown" if d.hottest is None else f"{d.hottest:.0f} °C"
        state = Text(d.state, style=_STYLES[d.state])
        table.add_row(d.device, state, f"{d.good} of {d.runs}", hottest, d.meter or "none", "\n".join(d.reasons))
    yield table
    changed = [change for change in fleet.changes if change.verdict in ("faster", "slower") and change.ratio]
    for c in changed:
        if c.ratio:
            interval = f"{c.ratio.value:.3f} [{c.ratio.low:.3f}, {c.ratio.high:.3f}]"
            yield Text(f"{c.device} {c.bundle} {c.workload}: {c.verdict} than in {c.before}, {interval}", style="bold")
    if fleet.changes and not changed:
        yield Text("nothing changed since the night before beyond noise", style="dim")


def sustained_tables(found: Sustained) -> Iterator[RenderableType]:
    """Show a long run over time, and where it levels off."""
    versions = ", ".join(f"{name} {version}" for name, version in found.versions)
    yield facts(
        [
            ("model", found.model),
            ("device", f"{found.device}, {words.processor(found.host, found.processor_class)}; {versions}"),
        ]
    )
    yield ""
    table = columns("after>", "tok/s>", "hottest>", "clock>", "power>")
    points = found.curve.points
    step = max(1, -(-len(points) // MOST_ROWS))
    for at in range(0, len(points), step):
        part = points[at : at + step]
        table.add_row(
            words.seconds(part[-1].seconds),
            words.number(_mean(p.tok_s for p in part)),
            _with_unit(_mean(p.celsius for p in part), "°C"),
            _with_unit(_mean(p.clock_mhz for p in part), "MHz"),
            _with_unit(_mean(p.watts for p in part), "W"),
        )
    yield table
    yield ""
    level = found.curve.level
    yield facts(
        [
            (
                "levels off",
                f"after {words.seconds(level.after)} at {words.number(level.tok_s)} tok/s "
                f"[{words.number(level.low)}, {words.number(level.high)}]"
                if level
                else "not in this time",
            ),
            ("throttled", found.curve.throttled or "no"),
            ("energy", energy_words(found.energy)),
        ]
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _with_unit(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{words.number(value)} {unit}"


def _median(series: Series | None) -> str:
    return words.number(median(series.samples)) if series else ""
