"""The commands. Each one parses, calls the library and prints; heavy imports wait until a command runs.

Typer reads annotations at run time, so this file does without ``from __future__ import annotations``.
"""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from edgekit import __version__
from edgekit.cli import console
from edgekit.cli.arguments import (
    LAST_SEED,
    LEAST_MB,
    MOST,
    MOST_MB,
    MOST_TOKENS,
    BundlePath,
    Context,
    Json,
    MaxNewTokens,
    Offline,
    OnDevice,
    Revision,
    SmallMemory,
    Threads,
)
from edgekit.cli.bench_command import bench
from edgekit.cli.build_command import build
from edgekit.cli.commands import Commands, Sections
from edgekit.cli.distill_command import distill
from edgekit.cli.lab_app import lab
from edgekit.cli.power_app import power
from edgekit.cli.progress import Bars
from edgekit.cli.recover_command import recover
from edgekit.cli.route_app import route
from edgekit.cli.serve_command import serve
from edgekit.cli.targets_app import targets
from edgekit.cli.verify_command import verify
from edgekit.types import Sampling

app = Commands(
    name="edgekit",
    cls=Sections,
    help="Quantize a LLaMA-family checkpoint into a bundle that runs on a named device, and verify and measure it.",
    epilog="Example:  edgekit build smollm2-135m --precision int4 -o smollm2-int4",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(targets, name="targets")
app.add_typer(power, name="power")
app.add_typer(route, name="route")
app.add_typer(lab, name="lab")
app.command(epilog="Example:  edgekit serve smollm2-int4 --policy policy.toml")(serve)


def _version(wanted: bool) -> None:
    if wanted:
        console.say(f"edgekit {__version__}")
        raise typer.Exit


@app.callback()
def edgekit(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""


app.command(epilog="Example:  edgekit build smollm2-135m --precision int4 -o smollm2-int4")(build)


app.command(epilog="Example:  edgekit recover smollm2-135m --minutes 30 -o smollm2-recovered")(recover)


app.command(epilog="Example:  edgekit distill smollm2-135m --keep 0.8 -o smollm2-108m")(distill)


@app.command(epilog="Example:  edgekit sign smollm2-int4 --key ~/.ssh/id_ed25519")
def sign(
    bundle: BundlePath,
    *,
    key: Annotated[
        Path | None,
        typer.Option(help="An ssh-ed25519 key, readable by you alone.", show_default="none: print what to sign"),
    ] = None,
    json: Json = False,
) -> None:
    """Sign a bundle, in OpenSSH's format.

    The signature covers the build: the manifest with every file's sha256. Measurements are not signed, so they can be
    recorded later. For a key with a passphrase, in an agent or on a token, use ssh-keygen: `edgekit sign BUNDLE |
    ssh-keygen -Y sign -n edgekit-bundle -f KEY > BUNDLE/edgekit.json.sig`.
    """
    from edgekit.bundle import load_signer, open_bundle, sign_bundle, statement
    from edgekit.cli.documents import Signed

    signer = load_signer(key) if key else None
    with Bars() as progress:
        opened = open_bundle(bundle, progress=progress)
    if signer is None:
        console.stream(statement(opened.manifest).decode())
        return
    signed = Signed(bundle, sign_bundle(opened, signer))
    console.emit(signed) if json else console.show(f"signed by {signed.signed_by}")


@app.command(epilog="Example:  edgekit inspect smollm2-int4 --tensors")
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL|BUNDLE", help="A checkpoint, or a bundle's directory.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    json: Json = False,
) -> None:
    """Show what a model or a bundle is made of.

    Architecture, parameters, true bits per weight, precision by layer, size by part.
    """
    from edgekit.cli.tables import inspection_tables
    from edgekit.inspect.model import inspect_model

    with Bars() as progress:
        inspection = inspect_model(model, progress=progress)
    console.emit(inspection) if json else console.show(*inspection_tables(inspection, tensors=tensors))


@app.command(epilog="Example:  edgekit fit smollm2-135m --target raspberry-pi-5 --min-tok-s 20")
def fit(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Folders with a config.json, hub ids, .gguf files or packaged names."),
    ],
    *,
    target: Annotated[
        list[str] | None,
        typer.Option(help="A device, a .toml file, or `here`; repeatable.", show_default="all"),
    ] = None,
    here: Annotated[bool, typer.Option("--here", help="Measure this machine and add it to the targets.")] = False,
    context: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_TOKENS, help="Tokens of context.", show_default="the model's, at most 4096"),
    ] = None,
    max_memory_mb: Annotated[
        float | None,
        typer.Option(
            min=LEAST_MB, max=MOST_MB, help="RAM limit, in megabytes (10^6).", show_default="75 % of the target's"
        ),
    ] = None,
    max_size_mb: Annotated[
        float | None, typer.Option(min=LEAST_MB, max=MOST_MB, help="Size limit for the bundle, in megabytes (10^6).")
    ] = None,
    min_tok_s: Annotated[
        float | None, typer.Option(min=0, max=MOST, help="Least tokens per second, at the low end of the estimate.")
    ] = None,
    offline: Offline = False,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Show which precision fits which device.

    Works from the configuration alone, before weights are downloaded: file size, memory at a context length, bytes and
    tok/s of decoding, and the best choice. For several models, also the one with the best quality for its bytes.
    """
    from edgekit.cli.tables import fit_tables
    from edgekit.config.recipe import list_targets
    from edgekit.inspect.fit import HERE, Limits, fit_models

    memory, size = (None if mb is None else int(mb * 1e6) for mb in (max_memory_mb, max_size_mb))
    with Bars() as progress:
        found = fit_models(
            models,
            targets=(*(target or list_targets()), *((HERE,) if here else ())),
            context=context,
            limits=Limits(memory, size, min_tok_s),
            revision=revision,
            offline=offline,
            progress=progress,
        )
    console.emit(found) if json else console.show(*fit_tables(found))


app.command(epilog="Example:  edgekit verify smollm2-int4 --max-kld 0.25 --record")(verify)


@app.command(epilog='Example:  edgekit run smollm2-int4 "What is the capital of France?"')
def run(
    bundle: BundlePath,
    prompt: Annotated[str | None, typer.Argument(help="The prompt. Without it: a chat, or the text piped in.")] = None,
    *,
    temperature: Annotated[float, typer.Option(min=0.0, max=100.0, help="0 always takes the most likely token.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, max=MOST_TOKENS, help="Keep the k most likely tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Keep this share of the probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Drop tokens below this share of the best.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(min=0.01, max=100.0, help="Above 1 makes repeats rarer.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Random seed for sampling.")] = 0,
    max_new_tokens: MaxNewTokens = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; repeatable.")] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Continue the prompt without the chat template; piped text keeps its last newline."),
    ] = False,
    threads: Threads = None,
    context: Context = None,
    lookup: Annotated[
        bool | None,
        typer.Option(
            "--lookup/--no-lookup",
            help="Draft tokens from the text so far and verify them in one run; greedy decoding only.",
            show_default="on where it changes no answer",
        ),
    ] = None,
    small_memory: SmallMemory = False,
    on: OnDevice = None,
    signals: Annotated[
        bool, typer.Option("--signals", help="Show each token's log-probability, margins and entropy.")
    ] = False,
    json: Json = False,
) -> None:
    """Answer one prompt, or chat at the terminal.

    In a chat, Ctrl-C stops an answer, /reset starts over, /system TEXT sets the system message, /exit or Ctrl-D quits.
    """
    from edgekit.bundle import open_bundle
    from edgekit.cli import chat
    from edgekit.cli.tables import signals_table

    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed, max_new_tokens, tuple(stop or ()))
    chat.require_possible(on, prompt, context=context, lookup=lookup, signals=signals)
    with Bars() as progress:
        opened = open_bundle(bundle, check=on is None, progress=progress)
    if npus := opened.manifest.npus:
        names = ", ".join(npu.target.name for npu in npus)
        console.note(f"running the bundle's CPU graph; its NPU graphs are for {names}")
    session = chat.Session(opened, sampling, system, threads, context, lookup, small_memory, on)
    if prompt is None and sys.stdin and sys.stdin.isatty() and not json and not on:
        session.converse()
        return
    text = chat.piped_prompt(raw=raw) if prompt is None else prompt
    answer = session.answer(text, raw=raw, signals=signals, streamed=not json)
    if json:
        console.emit(answer)
    elif signals:
        console.stderr().print(signals_table(answer))


app.command(epilog="Example:  edgekit bench smollm2-int4 --depth 0,512,2048 --record")(bench)


@app.command(epilog="Example:  edgekit report smollm2-int4 smollm2-int8 -o report.html")
def report(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="One or more bundles to compare.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")] = Path("report.html"),
    json: Json = False,
) -> None:
    """Write an HTML page that compares bundles.

    One self-contained file with plots: size, quality, speed, and how each number was obtained. `verify --record` and
    `bench --record` write measurements into a bundle; the page marks the missing ones as not measured.
    """
    from edgekit.bundle import open_bundle
    from edgekit.cli.documents import Reported
    from edgekit.report import write_report

    with Bars() as progress:
        opened = [open_bundle(path, progress=progress) for path in bundles]
    path = write_report(opened, out)
    console.emit(Reported(path, tuple(bundles))) if json else console.show(str(path))


@app.command(epilog="Example:  edgekit doctor --install optimum")
def doctor(
    install: Annotated[Literal["optimum", "arm64"] | None, typer.Option(help="Install a missing part.")] = None,
    json: Json = False,
) -> None:
    """Show what this machine can do, and how to get the rest."""
    from edgekit.cli.documents import Examined
    from edgekit.cli.tables import checks_table
    from edgekit.inspect.doctor import examine, install_part

    if install:
        console.note(f"installing {install}: this takes some minutes")
        with Bars() as progress:
            install_part(install, progress)
    checks = examine()
    console.emit(Examined(checks)) if json else console.show(checks_table(checks))
