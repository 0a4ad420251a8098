"""``edgekit lab``: runs on other devices. As in app.py, Typer reads the annotations at run time."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import console
from edgekit.cli.arguments import Json
from edgekit.cli.commands import Commands
from edgekit.cli.progress import Bars
from edgekit.errors import GateFailed

if TYPE_CHECKING:
    from edgekit.cli.documents import LabNight

lab = Commands(
    help="Run bundles on your devices at night, and see what they cost.",
    epilog="Example:  edgekit lab run nightly.toml",
    no_args_is_help=True,
)

LabFile = Annotated[Path, typer.Argument(metavar="LAB", help="A lab file, such as examples/lab/nightly.toml.")]


@lab.command("run", epilog="Example:  edgekit lab run nightly.toml -o results")
def lab_run(
    file: LabFile,
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder of the results.", show_default="NAME-results"),
    ] = None,
    database: Annotated[
        str,
        typer.Option(metavar="URL", help="A database for the table of runs.", show_default="SQLite in the folder"),
    ] = "",
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin a new night, whatever the last one has left.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would run, and how long it takes.")] = False,
    json: Json = False,
) -> None:
    """Run bundles x devices x workloads, as a lab file says.

    Shows the plan and its time, then works on all devices at once, one run at a time on each. Started again, it makes
    the runs that are left. Writes one JSON line per run, a table in a database, JUnit XML, MLPerf's names and a
    Perfetto trace per run into the folder. Exits with code 3 when a run is no result.
    """
    from edgekit.cli.documents import LabNight, PlannedLab
    from edgekit.cli.lab_tables import plan_tables, result_tables, run_line
    from edgekit.lab.exports.folder import export_night
    from edgekit.lab.file import load_lab
    from edgekit.lab.night import run_lab
    from edgekit.lab.plan import plan_runs
    from edgekit.lab.records import keep_records
    from edgekit.lab.results import summarize
    from edgekit.lab.seat import open_seat
    from edgekit.lab.store import durations, opened

    with Bars() as progress:
        described = load_lab(file, progress=progress)
    folder = out or Path(f"{described.name}-results")
    with opened(folder, database) as store:
        night = store.begin(described.name, fresh=fresh)
        planned = plan_runs(described, night, durations(store.runs()))
        done = store.done(night)
        if plan:
            found = PlannedLab.of(planned, done)
            console.emit(found) if json else console.show(*plan_tables(planned, done))
            return
        console.stderr().print(*plan_tables(planned, done), sep="\n")
        run_lab(planned, store, open_seat, told=lambda run: console.note(run_line(run)))
        runs = store.night(night)
        if store.behind:
            console.note(f"the database lacks runs, and gets them at the next start: {store.behind}")
        fleet = summarize(store.runs(), described.limits.most_spread, described.name)
    export_night(runs, folder / night)
    keep_records(described, fleet, runs)
    result = LabNight.of(folder / night, fleet, runs)
    console.emit(result) if json else console.show(*result_tables(fleet))
    _require_results(result)


def _require_results(night: "LabNight") -> None:
    """Raise GateFailed if a run or a result does not count."""
    bad = [f"{count} {status}" for status, count in night.ended if status != "done"]
    bad += [f"{night.noisy} with too much spread between runs"] if night.noisy else []
    if bad:
        raise GateFailed(
            f"not everything is a result: {', '.join(bad)}", f"see `edgekit lab report {night.folder.parent}`"
        )


@lab.command("devices", epilog="Example:  edgekit lab devices nightly.toml")
def lab_devices(
    devices: Annotated[
        list[str] | None,
        typer.Argument(metavar="[LAB|DEVICE]...", help="Lab files and addresses.", show_default="this machine"),
    ] = None,
    json: Json = False,
) -> None:
    """Show who is there and what they are.

    Asks every device of a lab file, or at an address such as ssh:pi@board or adb:SERIAL. Exits with code 3 when one
    does not answer.
    """
    from edgekit.cli.documents import SeenDevices
    from edgekit.cli.lab_tables import device_table
    from edgekit.lab.check import find_devices

    found = find_devices(devices or ["local"])
    console.emit(SeenDevices(found)) if json else console.show(device_table(found))
    if gone := [seen for seen in found if seen.facts is None]:
        raise GateFailed(f"{len(gone)} of {len(found)} devices do not answer: {gone[0].error}", gone[0].hint)


@lab.command("check", epilog="Example:  edgekit lab check ssh:pi@board")
def lab_check(
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="An address: ssh:pi@board, adb:SERIAL, place:NAME.")],
    json: Json = False,
) -> None:
    """Check whether a device can measure.

    What it is, its temperature, clocks, governor, battery, load and meters, and whether the driver runs there. Exits
    with code 3 when it cannot run a bundle.
    """
    from edgekit.cli.tables import checks_table
    from edgekit.lab.check import check_device

    with Bars() as progress:
        checked = check_device(device, progress)
    console.emit(checked) if json else console.show(checks_table(checked.checks))
    if failed := [check for check in checked.checks if check.status == "fail"]:
        raise GateFailed(f"{device}: {failed[0].name}: {failed[0].detail}", failed[0].hint)


@lab.command("report", epilog="Example:  edgekit lab report nightly-results -o fleet.html")
def lab_report(
    results: Annotated[str, typer.Argument(metavar="RESULTS", help="A folder of results, or the URL of a database.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")] = Path("fleet.html"),
    name: Annotated[
        str, typer.Option("--lab", metavar="NAME", help="Which lab.", show_default="that of the last night")
    ] = "",
    max_spread: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="Most spread between the runs of a result.", show_default="the lab's"),
    ] = None,
    json: Json = False,
) -> None:
    """Write an HTML page about a lab's last night.

    Speed over energy on each device, sustained curves, what changed since the night before and whether that is noise,
    and which devices are broken.
    """
    from edgekit.cli.documents import FleetReported
    from edgekit.lab.results import load_fleet
    from edgekit.report.fleet import write_fleet

    fleet = load_fleet(results, name, max_spread)
    path = write_fleet(fleet, out)
    console.emit(FleetReported(path, fleet)) if json else console.show(str(path))
