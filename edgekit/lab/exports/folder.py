"""Write a night's exports beside its lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.errors import LabError
from edgekit.host.disk import write_whole, writing
from edgekit.lab.exports import junit, mlperf, trace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekit.types import LabRun


def export_night(runs: Sequence[LabRun], folder: Path) -> tuple[Path, ...]:
    """Write junit.xml, mlperf.json and a trace of each run that has samples; traces that are there already stay.

    Returns:
        The files.

    Raises:
        LabError: a file cannot be written, or a package is missing.
    """
    traces = folder / "traces"
    with writing(folder, kind=LabError):
        traces.mkdir(exist_ok=True)
        made = [folder / junit.NAME, folder / mlperf.NAME]
        write_whole(made[0], junit.export(runs))
        write_whole(made[1], mlperf.export(runs))
        for run in runs:
            if run.marks or run.samples or run.rates:
                made.append(traces / f"{run.id}.pftrace")
                if not made[-1].exists():
                    write_whole(made[-1], trace.export(run))
    return tuple(made)
