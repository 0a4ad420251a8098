"""Progress on stderr: bars after one second on a terminal, elsewhere one plain line every ten seconds."""

from __future__ import annotations

import sys
from time import monotonic
from typing import TYPE_CHECKING

from edgekit.cli.console import stderr
from edgekit.types import LEFT_ALONE, RESUMED
from edgekit.words import count, size

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress, ProgressColumn, Task, TaskID
    from rich.text import Text

PATIENCE = 1.0
"""Seconds before a bar appears."""
INTERVAL = 10.0
"""Seconds between two plain lines."""


class Bars:
    """A types.Progress that draws one bar per task. Use it as a context manager around the call."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._began = self._said = monotonic()
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def __call__(self, task: str, done: int, total: int, unit: str = "B") -> None:
        """Report that ``done`` of ``total`` ``unit`` of ``task`` are finished."""
        now = monotonic()
        if task == RESUMED:
            stderr().print(f"resuming a killed build: {amount(done, total, unit)} already done")
            return
        if task == LEFT_ALONE:
            stderr().print(f"not resuming: other users can write to {done} unfinished builds next to it; remove them")
            return
        if not self._terminal:
            if now - self._said >= INTERVAL:
                self._said = now
                stderr().print(f"{task}: {amount(done, total, unit)}")
            return
        if self._bars is None:
            if now - self._began < PATIENCE:
                return
            self._bars = _bars()
            self._bars.start()
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total or None, unit=unit)
        self._bars.update(self._tasks[task], completed=done, total=total or None)


def amount(done: float, total: float | None, unit: str) -> str:
    """``230 MB / 538 MB`` or ``3 / 8 windows``; ``230 MB`` while the total is unknown."""
    if unit == "B":
        return f"{size(done)} / {size(total)}" if total else size(done)
    return f"{count(done)} / {count(total)} {unit}" if total else f"{count(done)} {unit}"


def _bars() -> Progress:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        _amounts(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=stderr(),
        transient=True,
        expand=True,
        # rich's redirection would interpret escape sequences in untrusted text.
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _amounts() -> ProgressColumn:
    from rich.progress import ProgressColumn
    from rich.text import Text

    class Amounts(ProgressColumn):
        """The amount done, in the task's unit."""

        def render(self, task: Task) -> Text:
            return Text(amount(task.completed, task.total, task.fields["unit"]), justify="right")

    return Amounts()
