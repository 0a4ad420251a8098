"""``edgekit route``: who answers, and why. As in app.py, Typer reads the annotations while it runs."""

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import console
from edgekit.cli.arguments import Json
from edgekit.cli.progress import Bars

route = typer.Typer(
    help="Local when you can, cloud when you must: who answers, and why.",
    epilog="Example:  edgekit route calibrate smollm2-int4 --data dev.jsonl --guarantee 0.05@0.95",
    no_args_is_help=True,
)


@route.command(
    "calibrate", epilog="Example:  edgekit route calibrate smollm2-int4 --data dev.jsonl --guarantee 0.05@0.95"
)
def route_calibrate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A directory that `edgekit build` made.")],
    *,
    data: Annotated[Path, typer.Option(help="Questions with their answers, a JSON object a line.")],
    guarantee: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE@CONFIDENCE",
            help="Most of the served answers that may be wrong: 0.05@0.95.",
            show_default="none: what is likelier right than wrong is served",
        ),
    ] = None,
    prefix_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens after which a bad answer may be given up; 0: never.")
    ] = 16,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads.", show_default="the bundle's own choice")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Keep the answers in this file, and take from it what is there.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the splits.")] = 0,
    record: Annotated[bool, typer.Option("--record/--no-record", help="Keep it in the bundle's edgekit.json.")] = True,
    json: Json = False,
) -> None:
    """Learn what the bundle's own signals say about its answers, and when one is good enough to serve.

    The bundle answers every question. One part of the answers fits the probability of being wrong, the other sets the
    threshold and says how good it is. With --guarantee the threshold keeps its promise by an exact binomial bound, or
    there is none: exit code 3, and how many examples it would take. The calibration is valid for this artefact only.
    """
    from edgekit.bundle import open_bundle
    from edgekit.bundle import record as keep
    from edgekit.calibrate import calibrate_bundle, parse_guarantee, require_guarantee
    from edgekit.cli.calibration_tables import calibrated_tables

    promise = parse_guarantee(guarantee) if guarantee else None
    with Bars() as progress:
        opened = open_bundle(bundle, progress=progress)
        calibrated = calibrate_bundle(
            opened, data, guarantee=promise, prefix_tokens=prefix_tokens, threads=threads, store=store,
            seed=seed, progress=progress,
        )  # fmt: skip
    if record and calibrated.calibration:
        keep(opened, calibration=calibrated.calibration)
    console.emit(calibrated) if json else console.show(*calibrated_tables(calibrated))
    require_guarantee(calibrated)
