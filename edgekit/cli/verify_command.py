"""``edgekit verify``. As in app.py, Typer reads the annotations at run time."""

from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.cli import console
from edgekit.cli.arguments import MOST, MOST_TOKENS, BundlePath, Json, Record
from edgekit.cli.progress import Bars
from edgekit.errors import ConfigError, GateFailed
from edgekit.types import Verification

ARM = "arm64"
"""The device that is emulated here."""


def verify(
    bundle: BundlePath,
    *,
    source: Annotated[
        str | None,
        typer.Option(help="The FP32 source.", show_default="where it was when this machine built the bundle"),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="The text file to score on.", show_default="CPython's pydoc topics")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=2, max=MOST_TOKENS, help="Tokens to score.", show_default="4096; 1024 on a device; 128 on arm64"
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            min=2, max=MOST_TOKENS, help="Tokens per window.", show_default="512; 128 on a device; 32 on arm64"
        ),
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
        str | None,
        typer.Option(
            metavar="DEVICE",
            help="Another device, as for `bench`; arm64: emulated ARM, with and without KleidiAI.",
            show_default="this machine",
        ),
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="With --on arm64: another bundle of the same source to compare with; repeatable."),
    ] = None,
    npu_tokens: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_TOKENS, help="Prompt tokens to run on an NPU's emulator.", show_default="64"),
    ] = None,
    npu_steps: Annotated[
        int | None, typer.Option(min=1, max=MOST_TOKENS, help="Tokens to decode on it.", show_default="8")
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Public keys, one of which must have signed the bundle before it is run."),
    ] = None,
    record: Record = False,
    json: Json = False,
) -> None:
    """Check a bundle: files, signature, tokenizer, graph, quality.

    Quality is measured in ONNX Runtime on the file that ships, against the FP32 source; with --on DEVICE, by that
    device's own kernels, and only files and quality are checked. --on arm64 recommends kernels, accuracy level and
    block size; with --record, the bundle is opened with those kernels from then on. A bundle for an NPU is also run on
    that NPU's emulator. Exits with code 3 when a check fails.
    """
    from edgekit.bundle import load_keys
    from edgekit.cli.tables import verification_tables

    if beside and on != ARM:
        raise ConfigError("--beside needs --on arm64", "add --on arm64, or drop --beside")
    if on and (npu_tokens or npu_steps):
        raise ConfigError("--npu-tokens and --npu-steps do not apply to --on", "drop --on")
    options: dict[str, Any] = {"source": source, "text": text, "max_kld": max_kld, "min_top1": min_top1}
    options |= {name: value for name, value in (("tokens", tokens), ("window", window)) if value}
    options["keys"] = load_keys(key) if key else ()
    verification = _verify(bundle, on, beside or [], (npu_tokens or 0, npu_steps or 0), options)
    if record:
        _keep(bundle, verification)
    console.emit(verification) if json else console.show(*verification_tables(verification))
    _gate(verification)


def _verify(
    bundle: Path, on: str | None, beside: list[Path], emulated: tuple[int, int], options: dict[str, Any]
) -> Verification:
    """Verify on a device, on emulated ARM or here, where ``emulated`` tokens and steps, if any, run on the emulator."""
    with Bars() as progress:
        if on and on != ARM:
            from edgekit.lab.quality import verify_on

            return verify_on(on, bundle, progress=progress, **options)
        if on:
            from edgekit.verify.arm import verify_on_arm

            return verify_on_arm(bundle, beside=beside, progress=progress, **options)
        from edgekit.verify.bundle import verify_bundle
        from edgekit.verify.npu import OnEmulator

        usual = OnEmulator()
        npu = OnEmulator(emulated[0] or usual.tokens, emulated[1] or usual.steps)
        return verify_bundle(bundle, npu=npu if any(emulated) else None, progress=progress, **options)


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
        # Not a gate: the input is broken, or its signer is not trusted.
        from edgekit.cli.flags import name_flags

        console.complain(damaged[0].detail, name_flags(damaged[0].hint, ("verify",)))
        raise typer.Exit(1)
    names = ", ".join(check.name for check in failed)
    raise GateFailed(f"{verification.bundle}: failed: {names}", failed[0].hint)
