"""``edgekit route``: who answers, and why. As in app.py, Typer reads the annotations while it runs."""

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import console
from edgekit.cli.arguments import LAST_SEED, MOST, MOST_THREADS, MOST_TOKENS, BundlePath, Json
from edgekit.cli.commands import Commands
from edgekit.cli.progress import Bars
from edgekit.errors import ConfigError, RouteError
from edgekit.host.disk import make_parent, write_whole, writing
from edgekit.types.routing import DeviceState, Price

_LARGEST = 1_000_000
"""Bytes of a state or a schema."""

route = Commands(
    help="Local when you can, cloud when you must: who answers, and why.",
    epilog='Example:  edgekit route explain smollm2-int4 "What is the capital of France?" --policy policy.toml',
    no_args_is_help=True,
)


@route.command(
    "explain",
    epilog='Example:  edgekit route explain smollm2-int4 "What is the capital of France?" --policy policy.toml',
)
def route_explain(
    bundle: BundlePath,
    prompt: Annotated[str, typer.Argument(help="What would be asked.")],
    *,
    policy: Annotated[Path, typer.Option(help="The rule: a .toml file such as examples/routing/policy.toml.")],
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_TOKENS, help="Most tokens of the answer.", show_default="as many as fit"),
    ] = None,
    local_only: Annotated[bool, typer.Option("--local-only", help="The request must not leave the device.")] = False,
    cloud_ok: Annotated[
        bool, typer.Option("--cloud-ok", help="The request may leave it, whatever the policy's ceiling.")
    ] = False,
    schema: Annotated[
        Path | None, typer.Option(help="A file with the JSON schema that the answer must satisfy.")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            help="A JSON file in the place of this machine's state, as `state` in --json.", show_default="now"
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Say who would answer a prompt, without calling anyone.

    Every check of the device and of every tier with its numbers, the reason, the expected seconds, joules and cost, and
    who may be gone on with.
    """
    from edgekit.cli.route_tables import explanation_tables
    from edgekit.routing.explain import explain_request

    if local_only and cloud_ok:
        raise ConfigError("--local-only and --cloud-ok are both given", "keep one of them")
    explained = explain_request(
        bundle, prompt, policy, max_new_tokens=max_new_tokens,
        override="local-only" if local_only else "cloud-ok" if cloud_ok else None,
        schema=_read(schema) if schema else "", state=_state(state) if state else None,
    )  # fmt: skip
    console.emit(explained) if json else console.show(*explanation_tables(explained))


@route.command(
    "calibrate", epilog="Example:  edgekit route calibrate smollm2-int4 --data dev.jsonl --guarantee 0.05@0.95"
)
def route_calibrate(
    bundle: BundlePath,
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
        int, typer.Option(min=0, max=MOST_TOKENS, help="Tokens after which a bad answer may be given up; 0: never.")
    ] = 16,
    threads: Annotated[
        int | None, typer.Option(min=1, max=MOST_THREADS, help="CPU threads.", show_default="the bundle's own choice")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Keep the answers in this file, and take from it what is there.")
    ] = None,
    second: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Another bundle that says how likely it finds each answer."),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(min=0, max=LAST_SEED, help="Of the splits. To try several until one passes undoes a guarantee."),
    ] = 0,
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
    from edgekit.cli.calibration_tables import calibrated_tables
    from edgekit.routing.evaluation.calibrate import calibrate_bundle, parse_guarantee, require_guarantee

    promise = parse_guarantee(guarantee) if guarantee else None
    with Bars() as progress:
        opened = open_bundle(bundle, progress=progress)
        calibrated = calibrate_bundle(
            opened, data, guarantee=promise, prefix_tokens=prefix_tokens, threads=threads, store=store,
            second=open_bundle(second, progress=progress) if second else None, seed=seed, progress=progress,
        )  # fmt: skip
    if record and calibrated.calibration:
        keep(opened, calibration=calibrated.calibration)
    console.emit(calibrated) if json else console.show(*calibrated_tables(calibrated))
    require_guarantee(calibrated)


@route.command("bench", epilog="Example:  edgekit route bench smollm2-int4 --data test.jsonl --cloud answers.jsonl")
def route_bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A calibrated bundle.")],
    *,
    data: Annotated[Path, typer.Option(help="Questions with their answers, which the calibration has not seen.")],
    cloud: Annotated[
        str,
        typer.Option(
            metavar="URL|FILE|TIER",
            help="An OpenAI-compatible endpoint to ask, a file of its answers, or a tier of the policy.",
            show_default="the policy's first tier",
        ),
    ] = "",
    model: Annotated[str, typer.Option(metavar="NAME", help="The model to ask for at the URL.")] = "",
    key_env: Annotated[str, typer.Option(metavar="NAME", help="The variable that holds the URL's key.")] = "",
    key_file: Annotated[str, typer.Option(metavar="FILE", help="A file, of yours alone, that holds it.")] = "",
    policy: Annotated[
        Path | None, typer.Option(help="A rule: its privacy, tiers, and what an answer must pass.")
    ] = None,
    price_in: Annotated[float | None, typer.Option(min=0, max=MOST, help="Of a million tokens of prompt.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, max=MOST, help="Of a million tokens of answer.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write the whole record here.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg|png", help="Draw quality and risk here.")] = None,
    store: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep all answers in this folder, and take from it what is there."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=MOST_THREADS, help="CPU threads.", show_default="the bundle's own choice")
    ] = None,
    second: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="The second bundle whose opinion the calibration rests on."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Of the bootstrap.")] = 0,
    json: Json = False,
) -> None:
    """Show what the rule costs and saves on questions whose answers are known.

    The calibrated router beside raw entropy, raw log-probability, random, always local, always cloud and the oracle:
    quality, cost, coverage, failures among what is served, and latency with wasted local time counted. What privacy
    keeps on the device is not sent.
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
    whom = choose_cloud(cloud, rule, model=model, key_env=key_env, key_file=key_file, price=price)
    with Bars() as progress:
        bench = bench_routing(
            open_bundle(bundle, progress=progress), data, whom, policy=rule, price=price, threads=threads, store=store,
            second=open_bundle(second, progress=progress) if second else None, seed=seed, progress=progress,
        )  # fmt: skip
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
        raise ConfigError(f"{given} is given and {missing} is not", f"give {missing}; 0 where it is free")
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
        hint = "`edgekit route explain --json` prints one as `state`; what is left out there must be null here"
        raise RouteError(f"{path}: not a state: {error}", hint) from error
