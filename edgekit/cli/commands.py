"""Typer's classes, with stricter checks of every value and help that bypasses the output gate."""

from __future__ import annotations

import os
import stat
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from edgekit.cli.console import ungated

if TYPE_CHECKING:
    from collections.abc import Callable

FREE = ("prompt", "system")
"""Parameters with free text, which may be empty."""


BARE = {"--calibrate": "packaged"}
"""Options whose value may be left out, and the value then. Typer has no such options."""


SECTIONS = {
    "Choose": ("doctor", "targets", "fit"),
    "Build and check": ("build", "recover", "distill", "inspect", "verify", "sign"),
    "Run and measure": ("run", "bench", "power", "lab", "report"),
    "Serve": ("route", "serve"),
}
"""All commands, in the order of use."""


class Commands(typer.Typer):
    """A typer.Typer whose commands are CheckedCommands."""

    def __init__(self, *, cls: type[TyperGroup] | None = None, **options: Any) -> None:
        super().__init__(cls=cls or Group, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """Register a command, as Typer does."""
        return super().command(name, cls=CheckedCommand, **options)


class Group(TyperGroup):
    """A group of commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the help."""
        with ungated():
            super().format_help(ctx, formatter)


class Sections(Group):
    """The top-level group, with its commands under the headings of SECTIONS."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        places = [(section, name) for section, names in SECTIONS.items() for name in names]
        commands: Any = self.commands
        self.commands = {name: commands[name] for _, name in places}
        for section, name in places:
            commands[name].rich_help_panel = section

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands in plain text; on a terminal, rich lists them by panel."""
        del ctx
        for section, names in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(80)) for name in names])


class CheckedCommand(TyperCommand):
    """A command that refuses bad values which Typer's declarations let through, before it starts."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the help."""
        with ungated():
            super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, then check every value again.

        Raises:
            typer.BadParameter: an empty name, a NaN or infinite number, or a pipe or socket as a file.
        """
        args = _complete(args)
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        rest = super().parse_args(ctx, args)
        parameter: Any
        for parameter in self.params:
            if parameter.name in FREE:
                continue
            reasons = (_emptiness(given.get(parameter.name)), _objection(ctx.params.get(parameter.name)))
            if reason := next(filter(None, reasons), ""):
                raise typer.BadParameter(reason, ctx, parameter)
        return rest


def _complete(args: list[str]) -> list[str]:
    """Give options without a value theirs."""
    complete = []
    for arg, following in pairwise([*args, "-"]):
        complete += [arg, BARE[arg]] if arg in BARE and following.startswith("-") else [arg]
    return complete


def _emptiness(given: object) -> str:
    """Return why an empty value is refused: Path("") would be the current folder."""
    words = given if isinstance(given, list | tuple) else (given,)
    return "empty." if any(isinstance(word, str) and not word.strip() for word in words) else ""


def _objection(value: object) -> str:
    """Return what is wrong with a value, "" for nothing."""
    if isinstance(value, list | tuple):
        return next(filter(None, map(_objection, value)), "")
    if isinstance(value, float) and not isfinite(value):
        return f"{value} is not a finite number."
    if not isinstance(value, str | Path):
        return ""
    try:
        mode = os.stat(value).st_mode  # noqa: PTH116  # a str may be anything but a path
    except (OSError, ValueError):
        return ""
    # A shell's <(command) is already open; opening a named pipe could block forever.
    if stat.S_ISFIFO(mode) and not str(value).startswith(("/dev/", "/proc/")):
        return f"'{value}' is a named pipe."
    return f"'{value}' is a socket." if stat.S_ISSOCK(mode) else ""
