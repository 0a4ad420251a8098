"""Write docs/cli.md from the command line itself, so that it cannot drift. ``--check`` only compares."""

from __future__ import annotations

import sys
from inspect import cleandoc, unwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from typer.main import get_command

from edgekit.cli.app import app

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE = Path(__file__).with_name("cli.md")

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


def generate() -> str:
    """The whole document."""
    return INTRODUCTION + "".join(section(path, command) for path, command in walk(get_command(app), "edgekit"))


def main() -> None:
    """Write the file, or fail when it is not what would be written."""
    text = generate()
    if sys.argv[1:] == ["--check"]:
        if FILE.read_text(encoding="utf-8") != text:
            sys.exit(f"{FILE} is not what the command line says: run `make docs`")
        return
    FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
