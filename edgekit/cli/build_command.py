"""``edgekit build``. As in app.py, Typer reads the annotations at run time."""

from pathlib import Path
from time import perf_counter
from typing import Annotated, Literal

import typer

from edgekit.cli import console
from edgekit.cli.arguments import LEAST_MB, MOST_MB, MOST_TOKENS, Json, Model, Offline, Revision
from edgekit.cli.progress import Bars
from edgekit.types import Activations, Precision

Exporter = Annotated[
    Literal["native", "optimum"], typer.Option(help="optimum: for architectures that the native builder lacks.")
]
SizeMb = Annotated[
    float | None,
    typer.Option(min=LEAST_MB, max=MOST_MB, help="Size budget for the whole bundle, in megabytes (10^6)."),
]
Calibrate = Annotated[
    str | None,
    typer.Option(
        metavar="[TEXT]",
        help="Fit weights to text: packaged (also without TEXT), or files, 'patterns' and hub:owner/name, by commas.",
    ),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out lines of the text that hold no document, and count them.")
]


def build(
    model: Model,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The bundle's directory; it must not exist yet.")],
    target: Annotated[str, typer.Option(help="A name from `edgekit targets list`, or a .toml file.")] = "cpu",
    precision: Annotated[
        Precision | None, typer.Option(help="Precision of the weights.", show_default="int4; on an NPU its first")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe instead of --precision: fast, small, tiny, or a .toml file.")
    ] = None,
    size_mb: SizeMb = None,
    bits: Annotated[
        float | None, typer.Option(min=1, max=32, help="Size budget in bits per weight, scales included.")
    ] = None,
    calibrate: Calibrate = None,
    skip_bad: SkipBad = False,
    exporter: Exporter = "native",
    also: Annotated[
        list[str] | None, typer.Option(help="Another device with an NPU to add to the bundle; repeatable.")
    ] = None,
    activations: Annotated[
        Activations | None,
        typer.Option(help="Number format of an NPU's activations.", show_default="the device's first"),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=2, max=MOST_TOKENS, help="Size of an NPU's KV cache in tokens.", show_default="the device's"),
    ] = None,
    emulate: Annotated[
        bool, typer.Option("--emulate/--no-emulate", help="Run an NPU's graphs on its emulator (minutes).")
    ] = True,
    mlpackage: Annotated[
        bool, typer.Option("--mlpackage", help="Also write a Core ML package, for Apple devices; needs coremltools.")
    ] = False,
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Sign the bundle with this ssh-ed25519 key, yours alone.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    offline: Offline = False,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Turn a checkpoint into a bundle for a device.

    Ctrl-C stops and leaves no files. Run the same command again to resume a build that was killed.
    """
    from edgekit.build.pipeline import ForNpu, build_bundle
    from edgekit.bundle import load_signer, sign_bundle
    from edgekit.cli.documents import Built
    from edgekit.cli.tables import built_lines

    signer = load_signer(sign) if sign else None
    texts = tuple(calibrate.split(",")) if calibrate else ()
    start, notes = perf_counter(), list[str]()
    with Bars() as progress:
        bundle = build_bundle(
            model,
            target=target,
            precision=precision,
            recipe=recipe,
            out=out,
            exporter=exporter,
            size_mb=size_mb,
            bits=bits,
            calibrate=texts,
            skip_bad=skip_bad,
            force=force,
            offline=offline,
            revision=revision,
            progress=progress,
            npu=ForNpu(activations, context, tuple(also or ()), emulate, mlpackage),
            note=notes.append,
        )
    for note in notes:
        console.note(note)
    if signer:
        console.note(f"signed by {sign_bundle(bundle, signer)}")
    result = Built.of(bundle, perf_counter() - start)
    console.emit(result) if json else console.show(*built_lines(result))
