"""A program of this package in a process of its own, heard line by line: what it logs is long, and is not kept."""

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
        given: a file it reads; it runs in that folder, where vendors' libraries may drop what they like.
        outcome: the file it writes, absent when it crashed.
        hear: takes each line of its stderr and says whether the program meant it for us.

    Returns:
        Its exit status, and the last line that was not for us and not blank.
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
