"""Make the measurement record of a native run: the runner's series, and what the host knows of the bundle and device.

The runner makes no record itself: weights, FLOP and the workload's words come from the manifest by formulae that exist
once, in Python. It measures no ceilings.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from edgekit import __version__
from edgekit.bench.latency import SCHEMA
from edgekit.errors import LabError
from edgekit.estimate import needs
from edgekit.lab.native.task import context_of, settings_of
from edgekit.measure.latency import plan_workloads
from edgekit.types import Energy, Environment, Measurement, Series
from edgekit.types.lab import Failed, Hello, Line, Sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.types import Bundle
    from edgekit.types.lab import DeviceFacts, Task
    from edgekit.types.npu import NpuBuild

PEAK = "peak_rss"
"""The runner's series with its peak resident memory in bytes."""


def measurement_of(
    lines: Sequence[Line], task: Task, bundle: Bundle, facts: DeviceFacts, npu: NpuBuild | None = None
) -> Measurement:
    """The record of a bench.

    Args:
        lines: everything that the runner printed.
        task: what it was asked.
        bundle: the bundle, here.
        facts: the device.
        npu: the NPU build that was run, if it was.

    Raises:
        LabError: the runner failed, or stopped before it was done.
    """
    if failed := next((line for line in lines if isinstance(line, Failed)), None):
        raise LabError(f"{facts.address}: {failed.message}", failed.hint or "look at what the device is doing")
    found = {line.name: line for line in lines if isinstance(line, Series)}
    hello = next((line for line in lines if isinstance(line, Hello)), None)
    sample = next((line for line in lines if isinstance(line, Sample)), None)
    peak = found.pop(PEAK, None)
    if hello is None or sample is None or peak is None:
        raise LabError(f"{facts.address}: the native runner stopped before it was done", "run it again")
    manifest, settings = bundle.manifest, settings_of(task, bundle)
    target = npu.target if npu else manifest.cpu_target
    options = npu.options if npu else target.provider_options
    # Such a session does not open if a node is left to the CPU (task.NO_FALLBACK).
    whole = npu is not None and bool(npu.graphs) and not npu.session
    return Measurement(
        schema=SCHEMA,
        bundle_sha256=bundle.sha256,
        model=manifest.provenance.id,
        precision=manifest.recipe.precision,
        device=target.name,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=_environment(facts, hello, sample, settings.threads, target.provider, options),
        workload=plan_workloads(context_of(bundle, npu), task.pp, task.tg, task.depth).words,
        warmup=task.warmup,
        series=tuple(found.values()),
        ceilings=None,
        peak_rss_bytes=int(peak.samples[0]),
        weight_bytes=needs.weight_bytes(manifest.tensors, tied=manifest.spec.tied),
        kv_bytes_per_position=needs.kv_bytes_per_position(manifest.spec),
        flop_per_token=needs.decode_flop(manifest.spec),
        nodes_on_cpu=0 if whole else None,
        energy=Energy("none", reason="the native runner integrates no meter"),
        settings=None if npu else settings,
    )


def _environment(
    facts: DeviceFacts,
    hello: Hello,
    sample: Sample,
    threads: int,
    provider: str,
    options: tuple[tuple[str, str], ...],
) -> Environment:
    return Environment(
        host=facts.address,
        system=facts.system,
        cpu=facts.processor,
        cores=facts.cores or 0,
        threads=threads,
        memory_bytes=facts.memory_bytes,
        governor=sample.governor,
        frequency_mhz=sample.clocks_mhz[0] if sample.clocks_mhz else None,
        temperature_c=sample.hottest,
        battery_percent=sample.battery_percent,
        on_battery=None if sample.plugged is None else sample.plugged == "",
        load_before=None,
        runtime=(("edgekit", __version__), *hello.versions),
        provider=provider,
        provider_options=options,
        processor_class=facts.processor_class,
    )
