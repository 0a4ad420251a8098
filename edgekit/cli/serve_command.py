"""``edgekit serve``. As in app.py, Typer reads the annotations while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import console
from edgekit.cli.arguments import MOST_THREADS, MOST_TOKENS, BundlePath, Json
from edgekit.errors import ConfigError


def serve(
    bundle: BundlePath,
    *,
    policy: Annotated[Path, typer.Option(help="The rule: a .toml file such as examples/routing/policy.toml.")],
    host: Annotated[
        str, typer.Option(help="The address to listen on; one that other machines reach needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    queue: Annotated[
        int, typer.Option(min=1, max=1024, help="Requests under way at once; more are told when to come again.")
    ] = 32,
    token_file: Annotated[
        Path | None,
        typer.Option(help="A file with the token that clients must send.", show_default="the variable EDGEKIT_TOKEN"),
    ] = None,
    history: Annotated[
        str | None,
        typer.Option(
            metavar="URL|none",
            help="Where to write down who answered: SQLAlchemy's form.",
            show_default="SQLite in your own folder",
        ),
    ] = None,
    store_prompts: Annotated[
        bool, typer.Option("--store-prompts", help="Keep prompts and answers in the history, too.")
    ] = False,
    docs: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Answer from this folder's .txt and .md files; private ones never leave the device.",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=MOST_THREADS, help="CPU threads.", show_default="as for `run`")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, max=MOST_TOKENS, help="Room in the cache.", show_default="the model's")
    ] = None,
    small_memory: Annotated[
        bool, typer.Option("--small-memory", help="Half the memory: one graph for prompts and tokens.")
    ] = False,
    second: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="The second bundle whose opinion the calibration rests on."),
    ] = None,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="A line a request on stderr, without prompts.")
    ] = False,
    json: Json = False,
) -> None:
    """Serve the OpenAI protocol on this machine: local when you can, cloud when you must.

    Every answer says who gave it and why, in its field `edgekit` and its header x-edgekit-verdict. The page at the same
    address shows what happens. Ctrl-C finishes the answers under way; a second one stops them.
    """
    try:
        from edgekit.serve.assembly import Plan, Serving, serve_bundle
    except ModuleNotFoundError as error:
        raise ConfigError(f"edgekit serve needs {error.name}", "pip install 'edgekit[serve]'") from error

    def ready(serving: Serving) -> None:
        if json:
            console.emit(serving)
        else:
            console.show(serving.url, *serving.means)
        if serving.token and not serving.url.startswith(("http://127.", "http://[::1]")):
            console.note("plain HTTP: the token can be read on the way; put TLS in front of it")
        console.note("Ctrl-C finishes the answers under way and ends")

    with _logs(access=access_log):
        serve_bundle(
            Plan(
                bundle, policy, host, port, queue, token_file, history, store_prompts, docs, threads,
                context, small_memory, second,
            ),
            ready,
        )  # fmt: skip


@contextmanager
def _logs(*, access: bool) -> Iterator[None]:
    """Warnings of the server on stderr, and its access log where it is wanted."""
    import logging

    lines = logging.StreamHandler()
    lines.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    heard = [logging.getLogger(name) for name in ("edgekit.serve", "uvicorn.error")]
    for logger in heard:
        logger.addHandler(lines)
    accesses = logging.getLogger("edgekit.serve.access")
    before = accesses.level
    accesses.setLevel(logging.INFO if access else logging.WARNING)
    # It warns, a line each, of clients that go away while they are written to.
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
