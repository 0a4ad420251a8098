"""Arguments that several commands take.

Annotations are read by Typer while it runs, so this file does without ``from __future__ import annotations``.
"""

from pathlib import Path
from typing import Annotated

import typer

from edgekit.errors import ConfigError

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A directory that `edgekit build` made.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; talk goes to stderr.")]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, a hub id, a .gguf file or a packaged name (smollm2-135m).")
]


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas.

    Raises:
        ConfigError: something else.
    """
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} is '{text}'", "give whole numbers separated by commas: 0,512,2048") from None
