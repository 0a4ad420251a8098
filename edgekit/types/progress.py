"""Progress reports of long tasks. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Progress(Protocol):
    """A callback for the progress of long calls. ``total`` is 0 while it is unknown."""

    def __call__(self, task: str, done: int, total: int, unit: str = "B") -> None:
        """Report that ``done`` of ``total`` ``unit`` of ``task`` are finished."""


def silent(task: str, done: int, total: int, unit: str = "B") -> None:
    """A Progress that does nothing."""


RESUMED = "resumed"
"""Task of the report on how much of a killed build is reused."""


LEFT_ALONE = "left alone"
"""Task of the report on the number of unfinished builds that are not resumed because others could have written them."""


@dataclass(frozen=True)
class Resume:
    """State to resume a build: a ``key`` of its inputs, and the tensors' relative ``errors`` so far."""

    key: str
    errors: dict[str, float]
