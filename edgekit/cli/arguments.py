"""Arguments that several commands take.

Typer reads annotations at run time, so this file does without ``from __future__ import annotations``.
"""

from pathlib import Path
from typing import Annotated

import typer

from edgekit import words
from edgekit.errors import ConfigError

MOST_THREADS = 1024
MOST_TOKENS = 1 << 24
"""Longer than any model's context."""
MOST_RUNS = 10_000
LAST_SEED = (1 << 32) - 1
"""The largest seed that all random generators accept."""
LEAST_MB, MOST_MB = 0.001, 1e9
MOST = 1e9
"""Upper limit of prices and of tokens per second."""

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A directory that `edgekit build` made.")]
Context = Annotated[
    int | None,
    typer.Option(min=1, max=MOST_TOKENS, help="Size of the KV cache in tokens.", show_default="the model's"),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; messages go to stderr.")]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(min=1, max=MOST_TOKENS, help="Most tokens to generate.", show_default="as many as the context holds"),
]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, a hub id, a .gguf file or a packaged name (smollm2-135m).")
]
Offline = Annotated[bool, typer.Option("--offline", help="Use no network, only what is cached.")]
OnDevice = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICE",
        help="Another device: ssh:USER@HOST, adb:SERIAL, adb:HOST:PORT, place:NAME (labgrid).",
        show_default="this machine",
    ),
]
Meter = Annotated[
    str,
    typer.Option(
        metavar="NAME[:ADDRESS]",
        help="A meter of `edgekit power list`, on the device or beside it.",
        show_default="the device's own",
    ),
]
Policy = Annotated[Path, typer.Option(help="The routing policy: a .toml file such as examples/routing/policy.toml.")]
Record = Annotated[bool, typer.Option("--record", help="Write the result into the bundle's edgekit.json.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
SecondOpinion = Annotated[
    Path | None, typer.Option(metavar="BUNDLE", help="The second bundle that the calibration was made with.")
]
SmallMemory = Annotated[
    bool,
    typer.Option("--small-memory", help="Use half the memory: one graph for prompts and tokens, with slower prompts."),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MOST_THREADS,
        help="CPU threads.",
        show_default="tuned by `bench --tune`, else the physical cores this process may use",
    ),
]


def duration(option: str, text: str) -> float:
    """Parse a duration in seconds.

    Raises:
        ConfigError: the text is no duration.
    """
    found = words.duration(text)
    if found is None:
        raise ConfigError(f"{option} is '{text}'", "pass a duration such as 90s, 10m or 8h")
    return found


def numbers(option: str, text: str, least: int = 1) -> tuple[int, ...]:
    """Parse whole numbers of tokens separated by commas, from ``least`` to MOST_TOKENS.

    Raises:
        ConfigError: the text is anything else.
    """
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} is '{text}'", "pass whole numbers separated by commas: 0,512,2048") from None
    if not all(least <= number <= MOST_TOKENS for number in found):
        raise ConfigError(f"{option} is '{text}'", f"pass numbers from {least} to {MOST_TOKENS}")
    return found
