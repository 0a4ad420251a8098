"""Tables of meters and traces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.cli.layout import columns, facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType
    from rich.table import Table

    from edgekit.cli.documents import MeterList, Recorded


def meter_tables(found: MeterList) -> Iterator[RenderableType]:
    """The kinds, and the meters of this machine."""
    kinds = columns("--meter", "where", "covers", "tested")
    for kind in found.kinds:
        name = f"{kind.name}:{kind.address}" if kind.address and kind.address[0] != "[" else kind.name
        name += f"[:{kind.address[1:]}" if kind.address[:1] == "[" else ""
        kinds.add_row(name, kind.where, kind.covers, kind.tested)
    yield kinds
    yield ""
    if not found.here:
        yield "This machine has no meter of its own that edgekit knows."
        return
    here = columns("here", "covers", "state")
    for meter in found.here:
        here.add_row(meter.meter, meter.covers, meter.trouble or "readable")
    yield here


def recorded_table(result: Recorded) -> Table:
    """A trace in numbers."""
    return facts(
        [
            ("trace", str(result.path)),
            ("meter", f"{result.meter}; covers {result.covers or 'unknown'}"),
            ("readings", f"{result.readings:,} in {result.seconds:.1f} s, {result.hertz:.3g} a second"),
            ("longest gap", f"{result.longest_gap:.3g} s"),
            ("power", f"mean {result.mean_watts:.4g} W, from {result.least_watts:.4g} to {result.most_watts:.4g} W"),
            ("energy", f"{result.joules:.5g} J, wrong by at most {result.error_joules:.2g} J of sampling"),
        ]
    )
