"""``edgekit route``: who answers, and why. As in app.py, Typer reads the annotations while it runs."""

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import console
from edgekit.cli.arguments import Json
from edgekit.errors import ConfigError, RouteError
from edgekit.routing import DeviceState

route = typer.Typer(
    help="Local when you can, cloud when you must: who answers, and why.",
    epilog='Example:  edgekit route explain smollm2-int4 "What is the capital of France?" --policy policy.toml',
    no_args_is_help=True,
)


@route.command(
    "explain",
    epilog='Example:  edgekit route explain smollm2-int4 "What is the capital of France?" --policy policy.toml',
)
def route_explain(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A directory that `edgekit build` made.")],
    prompt: Annotated[str, typer.Argument(help="What would be asked.")],
    *,
    policy: Annotated[Path, typer.Option(help="The rule: a .toml file such as examples/routing/policy.toml.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 256,
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
    from edgekit.explain import explain_request

    if local_only and cloud_ok:
        raise ConfigError("--local-only and --cloud-ok are both given", "keep one of them")
    explained = explain_request(
        bundle, prompt, policy, max_new_tokens=max_new_tokens,
        override="local-only" if local_only else "cloud-ok" if cloud_ok else None,
        schema=_read(schema) if schema else "", state=_state(state) if state else None,
    )  # fmt: skip
    console.emit(explained) if json else console.show(*explanation_tables(explained))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RouteError(f"{path}: not UTF-8 text: {error}", "save it as UTF-8") from error


def _state(path: Path) -> DeviceState:
    from edgekit.record import from_json

    try:
        return from_json(DeviceState, _read(path))
    except ValueError as error:
        hint = "`edgekit route explain --json` prints one as `state`; what is left out there must be null here"
        raise RouteError(f"{path}: not a state: {error}", hint) from error
