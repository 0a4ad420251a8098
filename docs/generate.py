"""Write the documents that a program knows better, so that they cannot drift. ``--check`` only compares.

docs/cli.md comes from the command line itself. docs/benchmarks.md comes from the records in benchmarks/results, and so
does what stands between ``<!-- generated: NAME -->`` and ``<!-- end -->`` in README.md and docs/learn.md.
"""

from __future__ import annotations

import sys
from inspect import cleandoc, unwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from typer.main import get_command

from benchmarks.page import RecordError, figures, fill_placeholders, fill_regions
from edgekit.cli.app import app

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"

INTRODUCTION = """\
# The command line

Written by `make docs` from `edgekit --help`. Do not edit.

Every command takes `--json`: one JSON document on stdout, talk on stderr. A number that is infinite or undefined, such
as the perplexity of a broken model, is the text `"inf"`, `"-inf"` or `"nan"` there. `NO_COLOR` and `COLUMNS` are
honoured; where stdout is no terminal there are no bars and no colours. Control characters of what strangers wrote
(model output, names, metadata, answers of endpoints) are shown and not obeyed, ESC as `\\x1b`, by a terminal and in a
pipe; the text of `edgekit run` to a pipe is the model's, byte for byte. `EDGEKIT_CACHE` names the folder for fetched
models and cached references. `edgekit --install-completion` sets up completion for your shell.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | something you can fix: an `error:` line and a `hint:` line on stderr |
| 2 | a bug in edgekit: a traceback and where to report it |
| 3 | a gate failed: everything ran and a limit was not met |
| 130 | interrupted with Ctrl-C |
| 141 | the reader of a pipe has gone |
"""


def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command below ``command`` and itself, in the order of the help."""
    yield path, command
    for word, child in getattr(command, "commands", {}).items():
        yield from walk(child, f"{path} {word}")


def section(path: str, command: Any) -> str:
    """A command: what it does, an example, its arguments and options."""
    lines = [
        f"\n## {path}\n",
        cleandoc(command.help),
        "",
        "```sh",
        command.epilog.removeprefix("Example:").strip(),
        "```",
    ]
    rows = [row(parameter, hints(command)) for parameter in command.params if getattr(parameter, "help", None)]
    children = [
        f"| `{path} {word}` | {child.help.splitlines()[0]} |"
        for word, child in getattr(command, "commands", {}).items()
    ]
    if children:
        lines += ["", "| command | |", "|---|---|", *children]
    if rows:
        lines += ["", "| argument or option | meaning | default |", "|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def hints(command: Any) -> dict[str, Any]:
    """The annotations of the function behind a command; Typer hides it under a wrapper."""
    return get_type_hints(unwrap(command.callback)) if command.callback else {}


def row(parameter: Any, annotations: dict[str, Any]) -> str:
    """One line of the table."""
    argument = parameter.param_type_name == "argument"
    names = (
        [(parameter.metavar or parameter.name.upper()).replace("|", "\\|")]
        if argument
        else [*parameter.opts, *parameter.secondary_opts]
    )
    choices = " \\| ".join(choice for choice in words(annotations.get(parameter.name)))
    name = ", ".join(f"`{n}`" for n in names) + (f" {choices}" if choices else "")
    return f"| {name} | {parameter.help} | {default(parameter)} |"


def words(annotation: Any) -> list[str]:
    """The words of a Literal, wherever it is in a union."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [word for part in get_args(annotation) for word in words(part)]


def default(parameter: Any) -> str:
    """What holds when an option is not given."""
    if parameter.required:
        return "required"
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    value = parameter.default
    # 0 is a default that is said; 0 == False, so the comparison is of identity.
    return "" if value is None or value is False else f"`{value}`"


def command_line() -> str:
    """docs/cli.md."""
    return INTRODUCTION + "".join(section(path, command) for path, command in walk(get_command(app), "edgekit"))


def generate() -> dict[Path, str]:
    """What each document should be."""
    found = figures()
    template = (DOCS / "benchmarks.md.in").read_text(encoding="utf-8")
    return {
        DOCS / "cli.md": command_line(),
        DOCS / "benchmarks.md": fill_placeholders(template, found),
        **{path: fill_regions(path.read_text(encoding="utf-8"), found) for path in (README, DOCS / "learn.md")},
    }


def main() -> None:
    """Write the files, or fail when one is not what would be written."""
    try:
        documents = generate()
    except RecordError as error:
        sys.exit(f"error: {error}")
    for path, text in documents.items():
        if sys.argv[1:] != ["--check"]:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path.relative_to(DOCS.parent)} is not up to date: run `make docs`")


if __name__ == "__main__":
    main()
