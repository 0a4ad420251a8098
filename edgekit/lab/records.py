"""Hand a night's results to the rest of edgekit: to `targets`, `fit` and the router."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.config.measured import SCHEMA, write_record
from edgekit.lab.results import joules_per_token
from edgekit.types.fleet import DeviceRecord

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgekit.lab.file import Lab
    from edgekit.types import LabRun
    from edgekit.types.fleet import Fleet


def keep_records(lab: Lab, fleet: Fleet, runs: Iterable[LabRun]) -> int:
    """Keep the last run of each result of a night; return how many. Noisy ones are no results.

    Raises:
        ConfigError: the cache is not safe.
        OSError: a record cannot be written.
    """
    targets = {device.name: device.target for device in lab.devices}
    good = {(r.night, r.device, r.bundle, r.workload) for r in fleet.results if r.status == "result"}
    last: dict[tuple[str, str, str], DeviceRecord] = {}
    for run in runs:
        if (run.lab, run.device, run.bundle, run.workload) in good and run.status == "done" and run.measurement:
            last[run.device, run.bundle, run.workload] = DeviceRecord(
                schema=SCHEMA,
                target=targets.get(run.device, ""),
                device=run.device,
                identity=run.facts.identity,
                workload=run.workload,
                run=run.id,
                joules_per_token=joules_per_token(run),
                meter=run.energy.meter,
                measurement=run.measurement,
            )
    for record in last.values():
        write_record(record)
    return len(last)
