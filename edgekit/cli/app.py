"""The commands. Each one parses, calls the library and prints; heavy imports wait until a command runs.

Annotations are read by Typer while it runs, so this file does without ``from __future__ import annotations``.
"""

import sys
from pathlib import Path
from time import perf_counter
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
    Json,
    Model,
    SmallMemory,
    Threads,
)
from edgekit.cli.bench_command import bench
from edgekit.cli.commands import Commands, Sections
from edgekit.cli.progress import Bars
from edgekit.cli.route_app import route
from edgekit.cli.serve_command import serve
from edgekit.cli.targets_app import targets
from edgekit.errors import ConfigError, GateFailed
from edgekit.types import Activations, Precision, Sampling, Verification

app = Commands(
    name="edgekit",
    cls=Sections,
    help="A LLaMA-family checkpoint and the name of a device in; a bundle that runs there, and proof, out.",
    epilog="Example:  edgekit build smollm2-135m --precision int4 -o smollm2-int4",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(targets, name="targets")
app.add_typer(route, name="route")
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
    """Take options that come before a command."""


@app.command(epilog="Example:  edgekit build smollm2-135m --precision int4 -o smollm2-int4")
def build(
    model: Model,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The bundle's directory; it must not exist yet.")],
    target: Annotated[str, typer.Option(help="A name of `edgekit targets list`, or a .toml file.")] = "cpu",
    precision: Annotated[
        Precision | None, typer.Option(help="Of the weights.", show_default="int4; an NPU's first")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe, in the place of --precision: fast, small, or a .toml file.")
    ] = None,
    size_mb: Annotated[
        float | None, typer.Option(min=LEAST_MB, max=MOST_MB, help="Megabytes (10^6) the whole bundle may take.")
    ] = None,
    bits: Annotated[
        float | None, typer.Option(min=1, max=32, help="True bits per weight, scales included, it may take.")
    ] = None,
    calibrate: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Fit weights to text: packaged, or files, separated by commas.")
    ] = None,
    exporter: Annotated[
        Literal["native", "optimum"], typer.Option(help="optimum: for architectures outside the native builder.")
    ] = "native",
    also: Annotated[
        list[str] | None, typer.Option(help="One more device with an NPU for the same bundle; may be given again.")
    ] = None,
    activations: Annotated[
        Activations | None, typer.Option(help="What an NPU computes in.", show_default="the device's first")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=2, max=MOST_TOKENS, help="Tokens an NPU's cache holds.", show_default="the device's"),
    ] = None,
    emulate: Annotated[
        bool, typer.Option("--emulate/--no-emulate", help="Execute an NPU's graphs on its emulator: some minutes.")
    ] = True,
    mlpackage: Annotated[
        bool, typer.Option("--mlpackage", help="Core ML's package too, for Apple's devices: needs coremltools.")
    ] = False,
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Sign it with this ssh-ed25519 key, of yours alone.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Use no network, only what is cached.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    json: Json = False,
) -> None:
    """Turn a checkpoint into a bundle for a device.

    Ctrl-C gives up and leaves nothing. A build that was killed is gone on with by the same command.
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
            model, target=target, precision=precision, recipe=recipe, out=out, exporter=exporter, size_mb=size_mb,
            bits=bits, calibrate=texts, force=force, offline=offline, revision=revision, progress=progress,
            npu=ForNpu(activations, context, tuple(also or ()), emulate, mlpackage), note=notes.append,
        )  # fmt: skip
    for note in notes:
        console.note(note)
    if signer:
        console.note(f"signed by {sign_bundle(bundle, signer)}")
    result = Built.of(bundle, perf_counter() - start)
    console.emit(result) if json else console.show(*built_lines(result))


@app.command(epilog="Example:  edgekit sign smollm2-int4 --key ~/.ssh/id_ed25519")
def sign(
    bundle: BundlePath,
    *,
    key: Annotated[
        Path | None,
        typer.Option(help="An ssh-ed25519 key, of yours alone.", show_default="none: print what is to be signed"),
    ] = None,
    json: Json = False,
) -> None:
    """Sign a bundle, in OpenSSH's format.

    Signed is what was built: the manifest with every file's sha256. What is measured later is not signed, and may still
    be recorded. Keys with a passphrase, in an agent or on a token sign through ssh-keygen: `edgekit sign BUNDLE |
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
    """Show what a model or a bundle is.

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
        list[str], typer.Argument(metavar="MODEL...", help="Folders with a config.json, hub ids, .gguf files, names.")
    ],
    *,
    target: Annotated[
        list[str] | None,
        typer.Option(help="A device, a .toml file, or `here`; may be given again.", show_default="all"),
    ] = None,
    here: Annotated[bool, typer.Option("--here", help="Measure this machine, and add it to the targets.")] = False,
    context: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_TOKENS, help="Tokens of context.", show_default="the model's, at most 4096"),
    ] = None,
    max_memory_mb: Annotated[
        float | None,
        typer.Option(
            min=LEAST_MB, max=MOST_MB, help="Megabytes (10^6) of RAM allowed.", show_default="75 % of the target's"
        ),
    ] = None,
    max_size_mb: Annotated[
        float | None, typer.Option(min=LEAST_MB, max=MOST_MB, help="Megabytes (10^6) the bundle may take.")
    ] = None,
    min_tok_s: Annotated[
        float | None, typer.Option(min=0, max=MOST, help="Tokens a second wanted, at the low end of likely.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use no network, only what is cached.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the hub ids.")] = None,
    json: Json = False,
) -> None:
    """Say which precision fits which device.

    From the configuration alone, before weights are downloaded: file size, memory at a context length, bytes and tok/s
    of decoding, and the best choice. Of several models, the one with the best quality for its bytes.
    """
    from edgekit.cli.tables import fit_tables
    from edgekit.config.recipe import list_targets
    from edgekit.inspect.fit import HERE, Limits, fit_models

    memory, size = (None if mb is None else int(mb * 1e6) for mb in (max_memory_mb, max_size_mb))
    with Bars() as progress:
        found = fit_models(
            models, targets=(*(target or list_targets()), *((HERE,) if here else ())), context=context,
            limits=Limits(memory, size, min_tok_s), revision=revision, offline=offline, progress=progress,
        )  # fmt: skip
    console.emit(found) if json else console.show(*fit_tables(found))


@app.command(epilog="Example:  edgekit verify smollm2-int4 --max-kld 0.25 --record")
def verify(
    bundle: BundlePath,
    *,
    source: Annotated[
        str | None, typer.Option(help="The FP32 source.", show_default="where it lay when it was built here")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Score on this text file.", show_default="CPython's pydoc topics")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=2, max=MOST_TOKENS, help="Tokens to score.", show_default="4096; 128 on arm64")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=2, max=MOST_TOKENS, help="Tokens per window.", show_default="512; 32 on arm64")
    ] = None,
    max_kld: Annotated[
        float | None,
        typer.Option(min=0, max=MOST, help="Fail above this mean KL divergence, in nats.", show_default="by precision"),
    ] = None,
    min_top1: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Fail below this top-1 agreement, 0 to 1.", show_default="by precision"),
    ] = None,
    on: Annotated[
        Literal["arm64"] | None,
        typer.Option(help="arm64: score on emulated ARM, with and without KleidiAI.", show_default="this machine"),
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="On arm64: another bundle of the same source to compare with; may be given again."),
    ] = None,
    npu_tokens: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_TOKENS, help="Prompt tokens to run on an NPU's emulator.", show_default="64"),
    ] = None,
    npu_steps: Annotated[
        int | None, typer.Option(min=1, max=MOST_TOKENS, help="Tokens to run there one by one.", show_default="8")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Public keys: one of them must have signed, or nothing is run.")
    ] = None,
    record: Annotated[bool, typer.Option("--record", help="Keep the result in the bundle's edgekit.json.")] = False,
    json: Json = False,
) -> None:
    """Check a bundle: files, signature, tokenizer, graph, quality.

    Quality is measured in ONNX Runtime on the file that ships, against the FP32 source. On arm64 it recommends kernels,
    accuracy level and block; with --record, opening the bundle takes those kernels. A bundle for an NPU is also run on
    that NPU's emulator. Ends with exit code 3 when a check fails.
    """
    from edgekit.bundle import load_keys
    from edgekit.cli.tables import verification_tables

    if beside and not on:
        raise ConfigError("--beside has no part in a check on this machine", "it goes with --on arm64")
    if on and (npu_tokens or npu_steps):
        raise ConfigError("--npu-tokens and --npu-steps have no part in a check on arm64", "leave out --on")
    keys = load_keys(key) if key else ()
    with Bars() as progress:
        if on:
            from edgekit.verify.arm import TOKENS, WINDOW, verify_on_arm

            verification = verify_on_arm(
                bundle, beside=beside or (), source=source, text=text, tokens=tokens or TOKENS,
                window=window or WINDOW, max_kld=max_kld, min_top1=min_top1, keys=keys, progress=progress,
            )  # fmt: skip
        else:
            from edgekit.verify.bundle import TOKENS, WINDOW, verify_bundle
            from edgekit.verify.npu import OnEmulator

            usual = OnEmulator()
            npu = OnEmulator(npu_tokens or usual.tokens, npu_steps or usual.steps)
            verification = verify_bundle(
                bundle, source=source, text=text, tokens=tokens or TOKENS, window=window or WINDOW, max_kld=max_kld,
                min_top1=min_top1, npu=npu if npu_tokens or npu_steps else None, keys=keys, progress=progress,
            )  # fmt: skip
    if record:
        _keep(bundle, verification)
    console.emit(verification) if json else console.show(*verification_tables(verification))
    _gate(verification)


def _keep(bundle: Path, verification: Verification) -> None:
    from edgekit.bundle import open_bundle, record

    if verification.quality or verification.arm or verification.npus:
        opened = open_bundle(bundle, check=False)
        record(opened, quality=verification.quality, arm=verification.arm, npus=verification.npus)


def _gate(verification: Verification) -> None:
    failed = [check for check in verification.checks if check.status == "fail"]
    if not failed:
        return
    damaged = [check for check in failed if check.name in ("manifest", "files", "signature")]
    if damaged:
        # Not a gate: the input is broken or not whose it should be, whatever is asked of it.
        from edgekit.cli.flags import name_flags

        console.complain(damaged[0].detail, name_flags(damaged[0].hint, ("verify",)))
        raise typer.Exit(1)
    names = ", ".join(check.name for check in failed)
    raise GateFailed(f"{verification.bundle}: failed: {names}", failed[0].hint)


@app.command(epilog='Example:  edgekit run smollm2-int4 "What is the capital of France?"')
def run(
    bundle: BundlePath,
    prompt: Annotated[
        str | None, typer.Argument(help="What to answer. Without it: a chat, or the text piped in.")
    ] = None,
    *,
    temperature: Annotated[float, typer.Option(min=0.0, max=100.0, help="0 takes the most likely token.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, max=MOST_TOKENS, help="Keep the k most likely tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Keep this share of the probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Drop tokens below this share of the best.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(min=0.01, max=100.0, help="Above 1 makes repeats rarer.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Random seed for sampling.")] = 0,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_TOKENS, help="Stop after this many.", show_default="as many as the context holds"),
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; may be given again.")] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="Continue the prompt as it is, without the chat template; piped in, with its last line end."
        ),
    ] = False,
    threads: Threads = None,
    context: Annotated[
        int | None, typer.Option(min=1, max=MOST_TOKENS, help="Room in the cache.", show_default="the model's")
    ] = None,
    lookup: Annotated[
        bool | None,
        typer.Option(
            "--lookup/--no-lookup",
            help="BundleWriter what was said before and check it in one run; greedy answers only.",
            show_default="where it changes no answer",
        ),
    ] = None,
    small_memory: SmallMemory = False,
    signals: Annotated[
        bool, typer.Option("--signals", help="Show each token's log-probability, margins and entropy.")
    ] = False,
    json: Json = False,
) -> None:
    """Answer one prompt, or chat at the terminal.

    In a chat, Ctrl-C stops an answer; /reset forgets, /system TEXT sets the system message, /exit or Ctrl-D leaves.
    """
    from edgekit.bundle import open_bundle
    from edgekit.cli import chat
    from edgekit.cli.tables import signals_table

    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed, max_new_tokens, tuple(stop or ()))
    with Bars() as progress:
        opened = open_bundle(bundle, progress=progress)
    if npus := opened.manifest.npus:
        console.note(
            f"this is the graph for the CPU: those for the NPU run on {', '.join(n.target.name for n in npus)}"
        )
    if prompt is None and sys.stdin and sys.stdin.isatty() and not json:
        chat.converse(
            opened, sampling, system=system, threads=threads, context=context, lookup=lookup,
            small_memory=small_memory,
        )  # fmt: skip
        return
    text = chat.piped_prompt(raw=raw) if prompt is None else prompt
    answer = chat.answer(
        opened, text, sampling, system=system, raw=raw, threads=threads,
        context=context, signals=signals, streamed=not json, lookup=lookup, small_memory=small_memory,
    )  # fmt: skip
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
    """Write an HTML page about bundles.

    One file with plots: size, quality, speed, and how each number was obtained. It loads nothing. What was not measured
    is said so; `verify --record` and `bench --record` put it into a bundle.
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
    install: Annotated[Literal["optimum", "arm64"] | None, typer.Option(help="Get a missing part.")] = None,
    json: Json = False,
) -> None:
    """Say what this machine can build, run and measure.

    And how to get what is missing.
    """
    from edgekit.cli.documents import Examined
    from edgekit.cli.tables import checks_table
    from edgekit.inspect.doctor import examine, install_part

    if install:
        console.note(f"installing {install}: some minutes")
        with Bars() as progress:
            install_part(install, progress)
    checks = examine()
    console.emit(Examined(checks)) if json else console.show(checks_table(checks))
