"""``edgekit route``: who answers, and why. As in app.py, Typer reads the annotations at run time."""

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import console
from edgekit.cli.arguments import (
    LAST_SEED,
    MOST,
    MOST_TOKENS,
    BundlePath,
    Json,
    MaxNewTokens,
    Policy,
    SecondOpinion,
    Threads,
)
from edgekit.cli.commands import Commands
from edgekit.cli.progress import Bars
from edgekit.errors import ConfigError, RouteError
from edgekit.host.disk import make_parent, write_whole, writing
from edgekit.types.routing import DeviceState, Price

_LARGEST = 1_000_000
"""Most bytes of a state or a schema."""

route = Commands(
    help="Local when you can, cloud when you must.",
    epilog='Example:  edgekit route explain smollm2-int4 "What is the capital of France?" --policy policy.toml',
    no_args_is_help=True,
)


@route.command(
    "explain",
    epilog='Example:  edgekit route explain smollm2-int4 "What is the capital of France?" --policy policy.toml',
)
def route_explain(
    bundle: BundlePath,
    prompt: Annotated[str, typer.Argument(help="The prompt to route.")],
    *,
    policy: Policy,
    max_new_tokens: MaxNewTokens = None,
    local_only: Annotated[bool, typer.Option("--local-only", help="The request must not leave the device.")] = False,
    cloud_ok: Annotated[
        bool, typer.Option("--cloud-ok", help="The request may leave the device, whatever the policy's ceiling.")
    ] = False,
    schema: Annotated[Path | None, typer.Option(help="A file with a JSON schema that the answer must satisfy.")] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            help="A JSON file with a device state, in the form of `state` in --json.",
            show_default="this machine's, now",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show who would answer a prompt, without calling anyone.

    Prints every check of the device and of each tier with its numbers, the reason for the decision, the expected
    seconds, joules and cost, and the tiers to fall back to.
    """
    from edgekit.cli.route_tables import explanation_tables
    from edgekit.routing.explain import explain_request

    if local_only and cloud_ok:
        raise ConfigError("--local-only and --cloud-ok exclude each other", "drop one of them")
    explained = explain_request(
        bundle,
        prompt,
        policy,
        max_new_tokens=max_new_tokens,
        override="local-only" if local_only else "cloud-ok" if cloud_ok else None,
        schema=_read(schema) if schema else "",
        state=_state(state) if state else None,
    )
    console.emit(explained) if json else console.show(*explanation_tables(explained))


@route.command(
    "calibrate", epilog="Example:  edgekit route calibrate smollm2-int4 --data dev.jsonl --guarantee 0.05@0.95"
)
def route_calibrate(
    bundle: BundlePath,
    *,
    data: Annotated[Path, typer.Option(help="Questions with answers, one JSON object per line.")],
    guarantee: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE@CONFIDENCE",
            help="Largest share of served answers that may be wrong: 0.05@0.95.",
            show_default="none: serve answers that are more likely right than wrong",
        ),
    ] = None,
    prefix_tokens: Annotated[
        int, typer.Option(min=0, max=MOST_TOKENS, help="Tokens after which a bad answer may be abandoned; 0: never.")
    ] = 16,
    threads: Threads = None,
    store: Annotated[Path | None, typer.Option(help="Cache the answers in this file.")] = None,
    second: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Another bundle that scores each answer."),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=LAST_SEED, help="Random seed for the splits. Picking one that passes voids the guarantee."
        ),
    ] = 0,
    record: Annotated[
        bool, typer.Option("--record/--no-record", help="Write the result into the bundle's edgekit.json.")
    ] = True,
    json: Json = False,
) -> None:
    """Calibrate when a bundle's own answer is good enough to serve.

    The bundle answers every question. One part of the answers is used to fit the probability of being wrong from the
    bundle's signals, the other to set the threshold and measure it. With --guarantee, the threshold satisfies an exact
    binomial bound; if none does, exits with code 3 and prints how many examples it would take. The calibration is valid
    for this bundle only.
    """
    from edgekit.bundle import open_bundle
    from edgekit.bundle import record as keep
    from edgekit.cli.calibration_tables import calibrated_tables
    from edgekit.routing.evaluation.calibrate import calibrate_bundle, parse_guarantee, require_guarantee

    promise = parse_guarantee(guarantee) if guarantee else None
    with Bars() as progress:
        opened = open_bundle(bundle, progress=progress)
        calibrated = calibrate_bundle(
            opened,
            data,
            guarantee=promise,
            prefix_tokens=prefix_tokens,
            threads=threads,
            store=store,
            second=open_bundle(second, progress=progress) if second else None,
            seed=seed,
            progress=progress,
        )
    if record and calibrated.calibration:
        keep(opened, calibration=calibrated.calibration)
    console.emit(calibrated) if json else console.show(*calibrated_tables(calibrated))
    require_guarantee(calibrated)


@route.command("bench", epilog="Example:  edgekit route bench smollm2-int4 --data test.jsonl --cloud answers.jsonl")
def route_bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A calibrated bundle.")],
    *,
    data: Annotated[Path, typer.Option(help="Questions with answers, not used for the calibration.")],
    cloud: Annotated[
        str,
        typer.Option(
            metavar="URL|FILE|TIER",
            help="An OpenAI-compatible endpoint to ask, a file of its answers, or a tier of the policy.",
            show_default="the policy's first tier",
        ),
    ] = "",
    model: Annotated[str, typer.Option(metavar="NAME", help="Model name to request from the URL.")] = "",
    key_env: Annotated[
        str, typer.Option(metavar="NAME", help="Environment variable that holds the API key for the URL.")
    ] = "",
    key_file: Annotated[
        str, typer.Option(metavar="FILE", help="File that holds the API key, readable by you alone.")
    ] = "",
    policy: Annotated[
        Path | None, typer.Option(help="A routing policy: privacy, tiers, and checks that answers must pass.")
    ] = None,
    price_in: Annotated[float | None, typer.Option(min=0, max=MOST, help="Price per million prompt tokens.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, max=MOST, help="Price per million answer tokens.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write the full record to this file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg|png", help="Plot quality and risk to this file.")
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Cache all answers in this folder."),
    ] = None,
    threads: Threads = None,
    second: SecondOpinion = None,
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Random seed for the bootstrap.")] = 0,
    json: Json = False,
) -> None:
    """Measure what routing costs and saves on questions with known answers.

    Compares the calibrated router with raw entropy, raw log-probability, random, always local, always cloud and the
    oracle: quality, cost, coverage, wrong answers among those served, and latency including wasted local time.
    Questions that the policy keeps on the device are not sent.
    """
    from edgekit.bundle import open_bundle
    from edgekit.cli.route_bench_tables import bench_tables
    from edgekit.record import to_json
    from edgekit.report.routing_plot import check_ending, draw_routing
    from edgekit.routing.evaluation.bench import bench_routing, choose_cloud, panel_of
    from edgekit.routing.policy_file import load_policy

    if plot:
        check_ending(plot)
    rule = load_policy(policy) if policy else None
    price = _price(price_in, price_out)
    chosen = choose_cloud(cloud, rule, model=model, key_env=key_env, key_file=key_file, price=price)
    with Bars() as progress:
        bench = bench_routing(
            open_bundle(bundle, progress=progress),
            data,
            chosen,
            policy=rule,
            price=price,
            threads=threads,
            store=store,
            second=open_bundle(second, progress=progress) if second else None,
            seed=seed,
            progress=progress,
        )
    if out:
        with writing(out):
            make_parent(out)
            write_whole(out, f"{to_json(bench, indent=2)}\n".encode())
    if plot:
        draw_routing([panel_of(f"{data.name}, {bench.cloud}", bench.proof)], plot)
    console.emit(bench) if json else console.show(*bench_tables(bench))


def _price(price_in: float | None, price_out: float | None) -> Price | None:
    if (price_in is None) != (price_out is None):
        given, missing = ("--price-out", "--price-in") if price_in is None else ("--price-in", "--price-out")
        raise ConfigError(f"{given} needs {missing}", f"pass {missing}; 0 for a free one")
    return None if price_in is None or price_out is None else Price(price_in, price_out)


def _read(path: Path) -> str:
    from edgekit.strangers import read_plain

    data = read_plain(path, _LARGEST, error=RouteError)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RouteError(f"{path}: not UTF-8 text: {error}", "save it as UTF-8") from error


def _state(path: Path) -> DeviceState:
    from edgekit.record import from_json

    try:
        return from_json(DeviceState, _read(path))
    except ValueError as error:
        hint = "start from the `state` that `edgekit route explain --json` prints; set unknown values to null"
        raise RouteError(f"{path}: not a state: {error}", hint) from error
