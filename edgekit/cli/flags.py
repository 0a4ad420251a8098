"""Turn the parameters that library errors name, `` `precision=int4` ``, into flags of the running command."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAMED = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`\s]+))?`")


def name_flags(text: str, arguments: Sequence[str]) -> str:
    """Replace the parameters that a text names by flags.

    Args:
        text: an error's message or hint. `` `emulate=False` `` becomes the flag that switches it off.
        arguments: the command line; parameters without a flag in its command stay as they are.
    """
    if not _NAMED.search(text):
        return text
    flags = _flags(arguments)

    def flag(found: re.Match[str]) -> str:
        on, off = flags.get(found[1], ("", ""))
        if not on or (found[2] == "False" and not off):
            return found[0]
        return {None: on, "True": on, "False": off}.get(found[2], f"{on} {found[2]}")

    return _NAMED.sub(flag, text)


def _flags(arguments: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The flags of the command that a command line calls, by parameter: (flag, flag that switches it off or "")."""
    from typer.main import get_command

    from edgekit.cli.app import app

    command = get_command(app)
    for word in arguments:
        command = getattr(command, "commands", {}).get(word, command)
    options = [p for p in command.params if p.opts and p.opts[0].startswith("-")]
    return {p.name: (max(p.opts, key=len), max(p.secondary_opts, key=len, default="")) for p in options if p.name}
