"""The two streams: results on stdout, messages on stderr. Everything edgekit prints goes through here.

Model output, file names, checkpoint metadata and endpoint responses are untrusted text, and terminals execute control
characters. ``gated`` replaces both streams by a SafeStream, which spells control characters out for every writer,
including library warnings and tracebacks. Two things bypass it: rich's own escape sequences for colours, bars and help,
whose text went through ``visible`` before, and a model's text to a pipe, which is passed on byte for byte.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from edgekit.record import to_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TextIO

    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text

_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters to spell out: C0 except tab and newline, DEL, C1, line separators, the controls that reorder text (bidi
embeddings, overrides and isolates), and lone surrogates, which no stream can encode. Joiners, direction marks and other
zero-width characters stay: scripts and emoji need them, and they move no text."""


def visible(text: str) -> str:
    r"""Return text with its control characters spelled out: ``\x1b``, ``\u202e``."""
    return _OBEYED.sub(_spell, text)


def _spell(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class SafeStream:
    """A text stream that passes what is written through ``visible`` on its way to ``stream``."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write text with its controls spelled out."""
        _write(self.stream, visible(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write lines with their controls spelled out."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def gated() -> Iterator[None]:
    """Send everything written to stdout and stderr through a SafeStream."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = SafeStream(_bare(sys.stdout)), SafeStream(_bare(sys.stderr))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def ungated() -> Iterator[None]:
    """Bypass the gate, for Typer's help alone: its text is edgekit's own and its escape sequences are rich's."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _bare(sys.stdout), _bare(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def stdout() -> Console:
    """The console for results."""
    return _console(_bare(sys.stdout))


def stderr() -> Console:
    """The console for progress, notes and errors."""
    return _console(_bare(sys.stderr))


def show(*renderables: RenderableType) -> None:
    """Print results to stdout; a pipe gets no trailing spaces."""
    console = stdout()
    with console.capture() as capture:
        console.print(*renderables, sep="\n")
    lines = capture.get().removesuffix("\n").split("\n")
    _write(_bare(sys.stdout), "".join(f"{line if console.is_terminal else line.rstrip()}\n" for line in lines))


def note(text: str) -> None:
    """Print a message for the user to stderr."""
    stderr().print(text, style="dim")


def complain(message: str, hint: str) -> None:
    """Print the ``error:`` and ``hint:`` lines to stderr, each if it is not empty."""
    console = stderr()
    for word, text, style in (("error", message, "bold red"), ("hint", hint, "bold cyan")):
        if text:
            console.print(f"{word}:", style=style, end=" ")
            console.print(" ".join(text.split()), soft_wrap=True)


def emit(document: object) -> None:
    """Print one JSON document, a dataclass, to stdout."""
    say(document_text(document, indent=2))


def say(text: str) -> None:
    """Print one line to stdout."""
    sys.stdout.write(text + "\n")


def document_text(document: object, *, indent: int | None = None) -> str:
    """Return a dataclass as JSON with control characters as JSON escapes, which keep the value."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", to_json(document, indent=indent, shown=True))


def stream(text: str) -> None:
    """Print a piece of a model's answer at once: unchanged to a pipe, with controls spelled out to a terminal."""
    bare = _bare(sys.stdout)
    _write(bare, visible(text) if bare.isatty() else text)
    bare.flush()


def _bare(stream: TextIO) -> TextIO:
    """The stream behind a SafeStream, or the stream itself."""
    return stream.stream if isinstance(stream, SafeStream) else stream


def _write(stream: TextIO, text: str) -> None:
    """Write text; characters that the stream cannot encode are spelled out."""
    try:
        stream.write(text)
    except UnicodeEncodeError as error:
        stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))


def _console(file: TextIO) -> Console:
    # A pipe has no width: tables there must not be cut at rich's 80 columns.
    width = None if file.isatty() or "COLUMNS" in os.environ else 200
    return _console_class()(file=file, markup=False, emoji=False, highlight=False, width=width)


@cache
def _console_class() -> type[Console]:
    """A Console that passes text through ``visible``; made on first use, because it loads rich."""
    from rich.console import Console
    from rich.segment import Segment

    class VisibleConsole(Console):
        """Applies ``visible`` to text before measuring it, and to all other segments before writing them."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(visible(text), **options)

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(visible(segment.text), segment.style)

    return VisibleConsole
