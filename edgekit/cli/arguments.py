"""Arguments that several commands take.

Annotations are read by Typer while it runs, so this file does without ``from __future__ import annotations``.
"""

from pathlib import Path
from typing import Annotated

import typer

from edgekit.errors import ConfigError

MOST_THREADS = 1024
MOST_TOKENS = 1 << 24
"""Longer than any model's context."""
MOST_RUNS = 10_000
LAST_SEED = (1 << 32) - 1
"""The largest that all generators of random numbers take."""
LEAST_MB, MOST_MB = 0.001, 1e9
MOST = 1e9
"""Of a price or of tokens a second: beyond what anyone means."""

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A directory that `edgekit build` made.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; talk goes to stderr.")]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, a hub id, a .gguf file or a packaged name (smollm2-135m).")
]

SmallMemory = Annotated[
    bool, typer.Option("--small-memory", help="Half the memory: one graph for prompts and tokens, slower prompts.")
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MOST_THREADS,
        help="CPU threads.",
        show_default="as `bench --tune` found, else the physical cores this process may use",
    ),
]


def numbers(option: str, text: str, least: int = 1) -> tuple[int, ...]:
    """Whole numbers of tokens separated by commas, ``least`` to MOST_TOKENS.

    Raises:
        ConfigError: something else.
    """
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} is '{text}'", "give whole numbers separated by commas: 0,512,2048") from None
    if not all(least <= number <= MOST_TOKENS for number in found):
        raise ConfigError(f"{option} is '{text}'", f"give numbers from {least} to {MOST_TOKENS}")
    return found
