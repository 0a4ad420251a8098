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
    """Print results to stdout, one after another; a pipe gets no trailing spaces."""
    console = stdout()
    with console.capture() as capture:
        console.print(*renderables, sep="\n")
    lines = capture.get().splitlines()
    sys.stdout.write("".join(f"{line if console.is_terminal else line.rstrip()}\n" for line in lines))


def note(text: str) -> None:
    """Say something to the person, on stderr."""
    stderr().print(text, style="dim")


def complain(message: str, hint: str) -> None:
    """The two lines of an error, on stderr; the second only when there is something to say."""
    console = stderr()
    for word, text, style in (("error", message, "bold red"), ("hint", hint, "bold cyan")):
        if text:
            console.print(f"{word}:", style=style, end=" ")
            console.print(" ".join(text.split()), soft_wrap=True)


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
