"""What a long task tells its caller. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Progress(Protocol):
    """What a long call tells its caller. ``total`` is 0 while it is not known."""

    def __call__(self, task: str, done: int, total: int, unit: str = "B") -> None:
        """Report that ``done`` of ``total`` ``unit`` of ``task`` are finished."""


def silent(task: str, done: int, total: int, unit: str = "B") -> None:
    """A Progress that says nothing."""


RESUMED = "resumed"
"""The task of the one report that says how much a killed build had finished."""


LEFT_ALONE = "left alone"
"""The task of the one report that says how many unfinished builds others could have put there: none is gone on with."""


@dataclass(frozen=True)
class Resume:
    """What resuming a build needs: a ``key`` of its inputs; the tensors' relative ``errors``, filled as it goes on."""

    key: str
    errors: dict[str, float]
