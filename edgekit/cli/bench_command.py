"""``edgekit bench`` and its ``--tune``. As in app.py, Typer reads the annotations at run time."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.cli import console
from edgekit.cli.arguments import (
    MOST_RUNS,
    BundlePath,
    Json,
    Meter,
    OnDevice,
    Record,
    SmallMemory,
    Threads,
    duration,
    numbers,
)
from edgekit.cli.progress import Bars
from edgekit.errors import ConfigError, MeasureError
from edgekit.host.disk import add_line, writing
from edgekit.types import Bundle, Measurement


def bench(
    ctx: typer.Context,
    bundle: BundlePath,
    *,
    pp: Annotated[str, typer.Option(help="Prompt lengths to prefill, separated by commas.")] = "512",
    tg: Annotated[str, typer.Option(help="Numbers of tokens to generate, separated by commas.")] = "128",
    depth: Annotated[str, typer.Option(help="Context lengths to generate after, separated by commas.")] = "0,512,2048",
    repetitions: Annotated[int, typer.Option(min=1, max=MOST_RUNS, help="Timed runs of each workload.")] = 5,
    warmup: Annotated[int, typer.Option(min=0, max=MOST_RUNS, help="Untimed runs before those.")] = 1,
    threads: Threads = None,
    small_memory: SmallMemory = False,
    on: OnDevice = None,
    meter: Meter = "",
    sustained: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Decode for so long (10m) and show the curve: tok/s, heat, clock, power."),
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Measure the CPU graph of a bundle for an NPU.")] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="Find the fastest settings and write them into the bundle (minutes).")
    ] = False,
    record: Record = False,
    output: Annotated[Path | None, typer.Option(help="Append the JSON line to this file.")] = None,
    json: Json = False,
) -> None:
    """Measure a bundle's speed, on this machine or another.

    Prints a table; --json prints the measurement with every sample. --tune tries thread counts, spinning, pinning, and
    the graph and chunk size for prompts of --pp tokens; the fastest settings are used whenever the bundle is opened on
    this class of machine.

    The speed of an NPU cannot be measured here: for a bundle with NPU graphs, prints the estimated cost of a token.
    """
    if sustained is not None:
        _sustain(ctx, bundle, on or "local", duration("--sustained", sustained), output, json)
        return
    if tune:
        _tune(ctx, bundle, max(numbers("--pp", pp)), threads, output, json)
        return
    from edgekit.bundle import open_bundle
    from edgekit.bundle import record as keep
    from edgekit.cli.tables import bench_tables

    # What is pushed to a device is checked then.
    opened = open_bundle(bundle, check=on is None)
    if opened.manifest.npus and not cpu:
        if record or output:
            raise ConfigError(
                f"{bundle}: the speed of an NPU cannot be measured here", "pass --cpu to measure the CPU graph"
            )
        _estimate(opened, json)
        return
    with Bars() as progress:
        measurement = _bench_at(on)(
            opened,
            pp=numbers("--pp", pp),
            tg=numbers("--tg", tg),
            depth=numbers("--depth", depth, 0),
            repetitions=repetitions,
            warmup=warmup,
            threads=threads,
            small_memory=small_memory,
            progress=progress,
            **_metered(on, meter),
        )
    line = console.document_text(measurement)
    if record:
        keep(opened, latency=measurement)
    if output:
        with writing(output):
            add_line(output, line)
    console.say(line) if json else console.show(*bench_tables(measurement))


def _bench_at(device: str | None) -> Callable[..., Measurement]:
    if device is None:
        from edgekit.bench.latency import bench_bundle

        return bench_bundle
    from edgekit.lab.remote import bench_on

    return partial(bench_on, device)


def _metered(device: str | None, meter: str) -> dict[str, Any]:
    """The meter as bench_bundle and bench_on take it."""
    if device or not meter:
        return {"meter": meter} if device else {}
    from edgekit.measure import open_meter

    return {"meter": open_meter(meter)}


def _sustain(ctx: typer.Context, path: Path, device: str, seconds: float, output: Path | None, json: bool) -> None:
    from edgekit.bundle import open_bundle
    from edgekit.cli.lab_tables import sustained_tables
    from edgekit.lab.remote import sustain_on

    given = [name for name in ctx.params if (s := ctx.get_parameter_source(name)) and s.name == "COMMANDLINE"]
    if idle := [name for name in ("pp", "tg", "repetitions", "warmup", "cpu", "tune", "record") if name in given]:
        raise ConfigError(
            f"--{idle[0]} does not apply to --sustained",
            "pass only --on, --depth, --threads, --meter or --output with it",
        )
    depths = numbers("--depth", ctx.params["depth"], 0) if "depth" in given else (0,)
    if len(depths) > 1:
        raise ConfigError(f"--depth is '{ctx.params['depth']}'", "pass one depth with --sustained")
    opened = open_bundle(path, check=False)
    with Bars() as progress:
        found = sustain_on(
            device,
            opened,
            seconds,
            depth=depths[0],
            threads=ctx.params["threads"],
            small_memory=ctx.params["small_memory"],
            meter=ctx.params["meter"],
            progress=progress,
        )
    line = console.document_text(found)
    if output:
        with writing(output):
            add_line(output, line)
    console.say(line) if json else console.show(*sustained_tables(found))


def _estimate(bundle: Bundle, json: bool) -> None:
    from edgekit.cli.documents import Estimated
    from edgekit.cli.npu_tables import estimated_tables

    result = Estimated.of(bundle)
    console.emit(result) if json else console.show(*estimated_tables(result))


def _tune(ctx: typer.Context, path: Path, prompt: int, threads: int | None, output: Path | None, json: bool) -> None:
    from edgekit.bench.tune import ROUNDS, is_quiet, tune_bundle
    from edgekit.bundle import open_bundle, record
    from edgekit.cli.tables import tuning_tables

    given = [name for name in ctx.params if (s := ctx.get_parameter_source(name)) and s.name == "COMMANDLINE"]
    if idle := [name for name in ("tg", "depth", "warmup", "small_memory", "record", "on", "meter") if name in given]:
        raise ConfigError(
            f"--{idle[0].replace('_', '-')} does not apply to --tune",
            "pass only --pp, --repetitions, --threads or --output with it",
        )
    opened = open_bundle(path)
    rounds = ctx.params["repetitions"] if "repetitions" in given else ROUNDS
    with Bars() as progress:
        tuning = tune_bundle(opened, prompt=prompt, threads=threads, rounds=rounds, progress=progress)
    quiet = is_quiet(tuning)
    if quiet:
        record(opened, tuning=tuning)
    line = console.document_text(tuning)
    if output:
        with writing(output):
            add_line(output, line)
    console.emit(tuning) if json else console.show(*tuning_tables(tuning))
    if not quiet:
        raise MeasureError(
            f"{path}: nothing was written: the machine was busy, "
            f"a trial spent {100 * (tuning.waited or 0):.0f} % of its time waiting for a core",
            "stop other programs and tune again",
        )
