"""``edgekit serve``. As in app.py, Typer reads the annotations at run time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import console
from edgekit.cli.arguments import BundlePath, Context, Json, Policy, SecondOpinion, SmallMemory, Threads
from edgekit.errors import ConfigError

if TYPE_CHECKING:
    from edgekit.serve.assembly import Serving


def serve(
    bundle: BundlePath,
    *,
    policy: Policy,
    host: Annotated[
        str, typer.Option(help="Address to listen on; one that other machines can reach needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8080,
    queue: Annotated[
        int, typer.Option(min=1, max=1024, help="Requests in flight; further ones are told when to retry.")
    ] = 32,
    token_file: Annotated[
        Path | None,
        typer.Option(help="A file with the token that clients must send.", show_default="$EDGEKIT_TOKEN"),
    ] = None,
    history: Annotated[
        str | None,
        typer.Option(
            metavar="URL|none",
            help="Database for the routing history, as a SQLAlchemy URL.",
            show_default="SQLite in your data folder",
        ),
    ] = None,
    store_prompts: Annotated[
        bool, typer.Option("--store-prompts", help="Also keep prompts and answers in the history.")
    ] = False,
    docs: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Answer from this folder's .txt and .md files; private ones never leave the device.",
        ),
    ] = None,
    threads: Threads = None,
    context: Context = None,
    small_memory: SmallMemory = False,
    second: SecondOpinion = None,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="Log one line per request on stderr, without prompts.")
    ] = False,
    json: Json = False,
) -> None:
    """Serve the OpenAI protocol on this machine, routed.

    Each response names the tier that answered and the reason, in its field `edgekit` and its header x-edgekit-verdict.
    The page at the same address shows the requests. Ctrl-C finishes the running answers; a second Ctrl-C stops them.
    """
    try:
        from edgekit.serve.assembly import Plan, serve_bundle
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"edgekit serve needs {error.name}", "install edgekit[serve]: pip install 'edgekit[serve]'"
        ) from error

    options = (token_file, history, store_prompts, docs, threads, context, small_memory, second)
    plan = Plan(bundle, policy, host, port, queue, *options)
    with _logs(access=access_log):
        serve_bundle(plan, lambda serving: _announce(serving, json))


def _announce(serving: "Serving", json: bool) -> None:
    console.emit(serving) if json else console.show(serving.url, *serving.means)
    if serving.token and not serving.url.startswith(("http://127.", "http://[::1]")):
        console.note("plain HTTP: the token is sent unencrypted; put a TLS proxy in front")
    console.note("Ctrl-C finishes the running answers and exits")


@contextmanager
def _logs(*, access: bool) -> Iterator[None]:
    """Show the server's warnings, and its access log if ``access``, on stderr."""
    import logging

    lines = logging.StreamHandler()
    lines.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    heard = [logging.getLogger(name) for name in ("edgekit.serve", "uvicorn.error")]
    for logger in heard:
        logger.addHandler(lines)
    accesses = logging.getLogger("edgekit.serve.access")
    before = accesses.level
    accesses.setLevel(logging.INFO if access else logging.WARNING)
    # asyncio warns about each client that disconnects during a write.
    loop = logging.getLogger("asyncio")
    loop_before = loop.level
    loop.setLevel(logging.ERROR)
    try:
        yield
    finally:
        loop.setLevel(loop_before)
        accesses.setLevel(before)
        for logger in heard:
            logger.removeHandler(lines)
