"""The two streams: results to stdout, talk to stderr. Everything edgekit prints goes through here."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from edgekit.record import to_json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def stdout() -> Console:
    """The console for results."""
    return _console(stderr=False)


def stderr() -> Console:
    """The console for progress, notes and errors."""
    return _console(stderr=True)


def show(*renderables: RenderableType) -> None:
    """Print results to stdout, one after another."""
    console = stdout()
    for renderable in renderables:
        console.print(renderable)


def note(text: str) -> None:
    """Say something to the person, on stderr."""
    stderr().print(text, style="dim")


def emit(document: object) -> None:
    """Print one JSON document, a dataclass, to stdout."""
    sys.stdout.write(to_json(document, indent=2) + "\n")


def stream(text: str) -> None:
    """Print a piece of a model's answer at once; a terminal gets no control characters from a model."""
    if sys.stdout.isatty():
        text = "".join(c for c in text if c.isprintable() or c in "\n\t")
    sys.stdout.write(text)
    sys.stdout.flush()


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    # A pipe has no width: tables there must not be cut at rich's 80 columns.
    width = None if terminal or "COLUMNS" in os.environ else 200
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=width)
