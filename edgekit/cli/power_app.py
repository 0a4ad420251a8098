"""``edgekit power``: meters alone, beside anything else. As in app.py, Typer reads the annotations at run time."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import console
from edgekit.cli.arguments import Json
from edgekit.cli.commands import Commands
from edgekit.cli.progress import Bars

MOST_SECONDS = 30 * 86400.0

power = Commands(
    help="List meters, and record one.",
    epilog="Example:  edgekit power record --meter rapl -o trace.jsonl",
    no_args_is_help=True,
)


@power.command("list", epilog="Example:  edgekit power list --json")
def power_list(json: Json = False) -> None:
    """List all kinds of meters, and those that this machine has."""
    from edgekit.cli.documents import MeterList
    from edgekit.cli.power_tables import meter_tables

    found = MeterList.here_of(Path("/"))
    console.emit(found) if json else console.show(*meter_tables(found))


@power.command(
    "record", epilog="Example:  edgekit power record --meter shelly:192.168.1.20 -o trace.jsonl --seconds 60"
)
def power_record(
    *,
    meter: Annotated[str, typer.Option(metavar="NAME[:ADDRESS]", help="A meter of `edgekit power list`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The trace: JSON lines.")],
    seconds: Annotated[
        float | None,
        typer.Option(min=0.001, max=MOST_SECONDS, help="How long to record.", show_default="until Ctrl-C"),
    ] = None,
    json: Json = False,
) -> None:
    """Record a meter until the time is over or Ctrl-C.

    The file is written at the end, whole. Its times are seconds since this machine's boot.
    """
    from edgekit.cli.documents import Recorded
    from edgekit.cli.power_tables import recorded_table
    from edgekit.measure import open_meter
    from edgekit.measure.recording import record_trace

    probe = open_meter(meter)
    with Bars() as progress, _ended_gently():
        trace = record_trace(probe, output, seconds, progress)
    result = Recorded.of(trace, output)
    console.emit(result) if json else console.show(recorded_table(result))


@power.command("show", epilog="Example:  edgekit power show trace.jsonl")
def power_show(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="A file of `edgekit power record`.")],
    json: Json = False,
) -> None:
    """Show a trace: its rate, power, and energy with the bound of its error."""
    from edgekit.cli.documents import Recorded
    from edgekit.cli.power_tables import recorded_table
    from edgekit.measure.recording import read_trace

    result = Recorded.of(read_trace(trace), trace)
    console.emit(result) if json else console.show(recorded_table(result))


@contextmanager
def _ended_gently() -> Iterator[None]:
    """SIGTERM, which ends a program that runs in the background, is as Ctrl-C."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
