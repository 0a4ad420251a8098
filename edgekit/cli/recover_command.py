"""``edgekit recover``. As in app.py, Typer reads the annotations at run time."""

from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from edgekit.cli import console
from edgekit.cli.arguments import LAST_SEED, LEAST_MB, MOST_MB, Json, Model, Offline, Revision
from edgekit.cli.progress import Bars
from edgekit.types import Precision

MOST_MINUTES = 60 * 24 * 365
MOST_STEPS = 10_000_000
SmallTraining = Annotated[
    bool,
    typer.Option("--small-memory", help="Hold one window at a time and compute its layers again: slower."),
]


def recover(
    model: Model,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The bundle's directory; it must not exist yet.")],
    target: Annotated[str, typer.Option(help="A name from `edgekit targets list`, or a .toml file.")] = "cpu",
    precision: Annotated[Precision | None, typer.Option(help="Precision of the weights.", show_default="int4")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe instead of --precision: fast, small, or a .toml file.")
    ] = None,
    size_mb: Annotated[
        float | None, typer.Option(min=LEAST_MB, max=MOST_MB, help="Size budget for the whole bundle, in MB (10^6).")
    ] = None,
    bits: Annotated[float | None, typer.Option(min=1, max=32, help="Size budget in bits per weight.")] = None,
    text: Annotated[
        str,
        typer.Option(metavar="TEXT", help="What to train on: packaged, self (the model's own), or files, by commas."),
    ] = "packaged",
    minutes: Annotated[
        float, typer.Option(min=0.1, max=MOST_MINUTES, help="Time to train, with the trials of step sizes.")
    ] = 30.0,
    steps: Annotated[
        int | None, typer.Option(min=1, max=MOST_STEPS, help="Steps to train.", show_default="what fits into --minutes")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Windows of 512 tokens a step.")] = 2,
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Seed of the order of the text.")] = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out damaged lines, and count them.")] = False,
    divide_teacher: Annotated[
        bool, typer.Option("--divide-teacher", help="Under torchrun: divide the FP32 model among the processes.")
    ] = False,
    small_memory: SmallTraining = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    offline: Offline = False,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Train the weights on the grids that ship, and build the bundle.

    The teacher is the model itself in FP32. The run is kept in OUT.run: Ctrl-C stops, and the same command goes on. A
    bundle that is no better than a calibrated one is not written (exit code 3). Needs the extra `learn`.
    """
    from edgekit.learn import require_packages

    require_packages()
    from edgekit.cli.documents import Trained
    from edgekit.cli.learn_tables import point_line, trained_lines
    from edgekit.learn.plan import Effort
    from edgekit.learn.recover import Wish
    from edgekit.learn.recover import recover as run

    start = perf_counter()
    wish = Wish(model, target, precision, recipe, size_mb, bits, revision, offline)
    effort = Effort(tuple(text.split(",")), minutes, steps, batch, seed, skip_bad, divide_teacher, small_memory)
    with Bars() as progress:
        made = run(
            wish,
            effort,
            out=out,
            force=force,
            progress=progress,
            report=lambda point: console.note(point_line(point)),
            note=console.note,
        )
    if made is None:  # not the first of several processes
        return
    result = Trained(
        made.bundle.path, made.bundle.sha256, made.bundle.manifest.bytes, perf_counter() - start, made.card
    )
    console.emit(result) if json else console.show(*trained_lines(result))
