"""Run a program of this package in a subprocess and read its log line by line, without keeping it."""

from __future__ import annotations

import sys
from subprocess import DEVNULL, PIPE, Popen
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def run_program(module: str, given: Path, outcome: Path, hear: Callable[[str], bool]) -> tuple[int, str]:
    """Run ``python -m <module> <given> <outcome>`` to its end.

    Args:
        module: the program.
        given: the file it reads; its folder is the working directory, where vendors' libraries may leave files.
        outcome: the file it writes, missing if it crashed.
        hear: called with each line of its stderr; returns whether the line is one of the program's own messages.

    Returns:
        Its exit status, and the last non-blank line that was not one of its own messages.
    """
    last = ""
    command = [sys.executable, "-P", "-m", module, str(given), str(outcome)]
    with Popen(
        command, stderr=PIPE, stdout=DEVNULL, stdin=DEVNULL, cwd=given.parent, encoding="utf-8", errors="replace"
    ) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if not hear(line.rstrip("\n")) and not line.isspace():
                last = line.strip()
        status = child.wait()
    return status, last
