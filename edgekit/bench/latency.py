"""Measure a bundle on this machine: latency, memory and energy, and how close it comes to the machine's ceilings."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from edgekit import __version__, measure
from edgekit.estimate import needs
from edgekit.host.processor import cpu_flags
from edgekit.measure.power.battery import COVERS as WHOLE_DEVICE
from edgekit.measure.power.battery import charge_joules
from edgekit.run.runner import load_runner
from edgekit.run.runtime import onnxruntime
from edgekit.run.settings import choose_settings, find_tuning
from edgekit.run.threads import physical_cores
from edgekit.types import Bundle, Energy, Environment, Manifest, Measurement, PowerProbe, Progress, Runner, silent
from edgekit.types.measurement import unmarked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.run.runner import OnnxRunner
    from edgekit.types import Ceilings, Series, Settings
    from edgekit.types.measurement import Marking

SCHEMA = 2
"""Version of the measurement record."""

LOADS = 3
ENERGY_SECONDS = 10.0
"""Least duration of an energy reading; meters refresh one to ten times per second."""


def bench_bundle(
    bundle: Bundle,
    *,
    pp: Sequence[int] = (512,),
    tg: Sequence[int] = (128,),
    depth: Sequence[int] = (0, 512, 2048),
    repetitions: int = 5,
    warmup: int = 1,
    threads: int | None = None,
    small_memory: bool = False,
    settings: Settings | None = None,
    meter: PowerProbe | None = None,
    mark: Marking = unmarked,
    progress: Progress = silent,
) -> Measurement:
    """Measure a bundle: load, prompts, decoding at depths, memory, ceilings, energy.

    Ceilings come last, so that the probes' arrays do not count as the model's memory.

    Args:
        bundle: the opened bundle.
        pp: prompt lengths.
        tg: numbers of decoded tokens.
        depth: tokens of context before decoding; what does not fit the model is skipped and named in ``workload``.
        repetitions: timed rounds.
        warmup: untimed rounds before them.
        threads: threads of the runtime and of both probes; by default the tuned number, else the physical cores.
        small_memory: as in load_runner.
        settings: as in load_runner.
        meter: the energy meter; by default the first one that includes the processor.
        mark: called where each workload begins and ends, as in measure_latency; also ``load``, ``energy`` and
            ``ceilings``.
        progress: called for every workload.

    Raises:
        RunError: the bundle does not load.
        MeasureError: no workload fits, or a result exceeds what the machine can do.
    """
    manifest = bundle.manifest
    tuning = find_tuning(manifest)
    settings = choose_settings(manifest, settings=settings, threads=threads, small_memory=small_memory)
    weights = needs.weight_bytes(manifest.tensors, tied=manifest.spec.tied)
    time = datetime.now(UTC).isoformat(timespec="seconds")

    runner, load = _load(bundle, settings, mark, small_memory=small_memory)
    with closing(runner):
        latency = measure.measure_latency(
            runner, pp=pp, tg=tg, depth=depth, repetitions=repetitions, warmup=warmup, mark=mark, progress=progress
        )
        peak = measure.peak_memory()
        energy = _energy(runner, meter, mark, progress)
        nodes = runner.info.nodes_on_cpu
        environment = _environment(manifest, settings.threads, runner.arithmetic)
        settings = runner.settings
    mark("ceilings begin")
    ceilings, factor, fractions = _roofline(manifest, settings.threads, latency.series, weights, progress)
    mark("ceilings end")
    return Measurement(
        schema=SCHEMA,
        bundle_sha256=bundle.sha256,
        model=manifest.provenance.id,
        precision=manifest.recipe.precision,
        device=manifest.cpu_target.name,
        time=time,
        environment=environment,
        workload=latency.workload,
        warmup=warmup,
        series=(load, *latency.series),
        ceilings=ceilings,
        peak_rss_bytes=peak,
        weight_bytes=weights,
        kv_bytes_per_position=needs.kv_bytes_per_position(manifest.spec),
        flop_per_token=needs.decode_flop(manifest.spec),
        nodes_on_cpu=nodes,
        energy=energy,
        roofline=fractions,
        gemm_factor=factor,
        settings=settings,
        tuned=tuning is not None and settings == tuning.settings,
    )


def _load(bundle: Bundle, settings: Settings, mark: Marking, *, small_memory: bool) -> tuple[OnnxRunner, Series]:
    """Open the bundle LOADS times; its peak of memory counts from here."""
    measure.reset_peak_memory()
    mark("load begin")
    loaded = measure.measure_load(lambda: load_runner(bundle, settings=settings, small_memory=small_memory), LOADS)
    mark("load end")
    return loaded


def _roofline(
    manifest: Manifest, threads: int, series: Sequence[Series], weights: int, progress: Progress
) -> tuple[Ceilings, float | None, tuple[tuple[str, float], ...]]:
    """Measure the machine's ceilings; also return the int8 factor of the GEMM and the fraction each series reached."""
    progress("ceilings", 0, 1, "probes")
    ceilings = measure.measure_ceilings(threads, weights)
    progress("ceilings", 1, 1, "probes")
    factor = measure.gemm_factor(manifest.accuracy_level == 4, cpu_flags())
    return ceilings, factor, measure.roofline(series, ceilings, manifest.spec, weights, factor)


def _environment(manifest: Manifest, threads: int, arithmetic: str) -> Environment:
    return measure.read_environment(
        cores=physical_cores(),
        threads=threads,
        runtime=(("edgekit", __version__), ("onnxruntime", onnxruntime.__version__), ("numpy", np.__version__)),
        provider=manifest.cpu_target.provider,
        provider_options=manifest.cpu_target.provider_options,
        arithmetic=arithmetic,
    )


def _energy(runner: Runner, meter: PowerProbe | None, mark: Marking, progress: Progress) -> Energy:
    """Measure the joules of prompts, and of decoding from an empty cache, each repeated for ENERGY_SECONDS."""
    if meter is None:
        meter, reason = measure.choose_meter()
        if meter is None:
            return Energy("none", reason=reason)
    random = np.random.default_rng(0)
    tokens = random.integers(runner.vocab_size, size=min(128, runner.context_length))
    prompt = min(512, runner.context_length)

    def prompts() -> int:
        began, rounds = perf_counter(), 0
        while perf_counter() - began < ENERGY_SECONDS:
            runner.reset()
            runner.prefill(random.integers(runner.vocab_size, size=prompt).tolist())
            rounds += 1
        return rounds * prompt

    def work() -> int:
        seconds, rounds = 0.0, 0
        while seconds < ENERGY_SECONDS:
            runner.reset()
            seconds += sum(measure.decode(runner, tokens))
            rounds += 1
        return rounds * len(tokens)

    progress("energy", 0, 1, "readings")
    mark("energy begin")
    energy = measure.meter_energy(
        meter,
        work,
        prompt=prompts,
        what=f"decoding {len(tokens)} tokens from an empty cache, repeated",
        charge=charge_joules(Path("/")) if meter.covers == WHOLE_DEVICE else None,
        answer=(prompt, len(tokens)),
    )
    mark("energy end")
    progress("energy", 1, 1, "readings")
    return energy
