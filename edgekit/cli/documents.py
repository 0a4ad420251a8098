"""The documents of ``--json`` that are not a library type, one dataclass each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekit.estimate.npu_cost import Estimate
    from edgekit.lab.check import Seen
    from edgekit.lab.file import LabDevice
    from edgekit.lab.plan import Plan
    from edgekit.learn.distill import Distilled
    from edgekit.types import Bundle, Check, Emitted, LabRun, Manifest, Target
    from edgekit.types.device import AccuracyLimits, Evidence, Npu, NpuScheme
    from edgekit.types.fleet import Fleet, MeasuredSpeed
    from edgekit.types.learning import RunCard
    from edgekit.types.power import Trace


@dataclass(frozen=True)
class Refusal:
    """An error and the exit code."""

    error: str
    hint: str
    exit_code: int


@dataclass(frozen=True)
class Built:
    """The outcome of ``build``. ``ratio``: 4 bytes per parameter over the bytes of the graph and its weights.

    ``estimates``: costs of the NPU graphs.
    """

    path: Path
    sha256: str
    bytes: int
    ratio: float
    parameters: int
    bits_per_weight: float
    seconds: float
    manifest: Manifest
    estimates: tuple[Estimate, ...] = ()

    @classmethod
    def of(cls, bundle: Bundle, seconds: float) -> Self:
        """Read the numbers off a bundle."""
        from edgekit.estimate.npu_cost import estimate_build
        from edgekit.estimate.sizes import graph_bytes

        m = bundle.manifest
        ratio = 4 * m.parameters / graph_bytes(m)
        estimates = tuple(e for npu in m.npus for e in estimate_build(npu))
        return cls(bundle.path, bundle.sha256, m.bytes, ratio, m.parameters, m.bits_per_weight, seconds, m, estimates)


@dataclass(frozen=True)
class Trained:
    """The outcome of ``recover``: the bundle, and the card of the run."""

    path: Path
    sha256: str
    bytes: int
    seconds: float
    card: RunCard


@dataclass(frozen=True)
class Student:
    """The outcome of ``distill``: the folder, its shape, the teacher's layers in it, and the card of the run.

    ``recipe`` is what it was sized for or trained with, "" for none.
    """

    path: Path
    layers: int
    ffn: int
    kept_layers: tuple[int, ...]
    recipe: str
    seconds: float
    card: RunCard

    @classmethod
    def of(cls, made: Distilled, recipe: str, seconds: float) -> Self:
        """Read the shape off a student."""
        spec = made.spec
        return cls(made.path, spec.layers, spec.intermediate_size, made.kept, recipe, seconds, made.card)


@dataclass(frozen=True)
class Signed:
    """The outcome of ``sign``: the fingerprint of the key."""

    path: Path
    signed_by: str


@dataclass(frozen=True)
class Estimated:
    """The outcome of ``bench`` on a bundle for an NPU, with a ``note`` that nothing was measured."""

    bundle: Path
    note: str
    estimates: tuple[Estimate, ...]

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """Estimate the graphs of every device."""
        from edgekit.estimate.npu_cost import estimate_build

        note = "the speed of an NPU cannot be measured here; estimated from the DRAM bytes that the compiler reports"
        return cls(bundle.path, note, tuple(e for npu in bundle.manifest.npus for e in estimate_build(npu)))


@dataclass(frozen=True)
class Token:
    """One token of an answer; the numbers are None without ``--signals``."""

    token: int
    text: str
    logprob: float | None
    logprob_margin: float | None
    prob_margin: float | None
    entropy: float | None

    @classmethod
    def of(cls, emitted: Emitted, text: str) -> Self:
        """Turn NaN, which stands for "not computed", into None."""
        numbers = (emitted.logprob, emitted.logprob_margin, emitted.prob_margin, emitted.entropy)
        return cls(emitted.token, text, *(number if isfinite(number) else None for number in numbers))


@dataclass(frozen=True)
class Answer:
    """The outcome of ``run`` with one prompt. ``finish``: eos, stop, length, context or cancelled.

    ``drafted`` counts the tokens drafted by lookup, ``accepted`` those that were right.
    """

    text: str
    finish: str
    prompt_tokens: int
    new_tokens: int
    seconds: float
    drafted: int
    accepted: int
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Reported:
    """The outcome of ``report``."""

    path: Path
    bundles: tuple[Path, ...]


@dataclass(frozen=True)
class PlannedOn:
    """The runs of a lab on a device, in order. ``seconds`` of those left; ``estimated``: some from assumed speeds."""

    device: str
    address: str
    runs: int
    left: int
    seconds: float
    estimated: bool
    order: tuple[str, ...]

    @classmethod
    def of(cls, plan: Plan, device: LabDevice, done: frozenset[str]) -> Self:
        """The runs on one device of a plan."""
        runs = plan.of(device.name)
        left = [run for run in runs if run.id not in done]
        order = tuple(f"{run.bundle.name} {run.workload.name} {run.repetition}" for run in left)
        seconds, estimated = sum(run.seconds for run in left), any(run.estimated for run in left)
        return cls(device.name, device.address, len(runs), len(left), seconds, estimated, order)


@dataclass(frozen=True)
class PlannedLab:
    """The outcome of ``lab run --plan``. ``seconds``: of the device with the most work left; cooling comes on top."""

    night: str
    seconds: float
    devices: tuple[PlannedOn, ...]

    @classmethod
    def of(cls, plan: Plan, done: frozenset[str]) -> Self:
        """What is left of a plan."""
        devices = tuple(PlannedOn.of(plan, device, done) for device in plan.lab.devices)
        return cls(plan.night, max(d.seconds for d in devices), devices)


@dataclass(frozen=True)
class LabNight:
    """The outcome of ``lab run``: the night's folder, its runs by how they ended, and its results."""

    folder: Path
    ended: tuple[tuple[str, int], ...]
    noisy: int
    fleet: Fleet

    @classmethod
    def of(cls, folder: Path, fleet: Fleet, runs: Sequence[LabRun]) -> Self:
        """Count the runs."""
        ended = tuple(sorted(Counter(run.status for run in runs).items()))
        return cls(folder, ended, sum(result.status == "noisy" for result in fleet.results), fleet)


@dataclass(frozen=True)
class SeenDevices:
    """The outcome of ``lab devices``."""

    devices: tuple[Seen, ...]


@dataclass(frozen=True)
class FleetReported:
    """The outcome of ``lab report``."""

    path: Path
    fleet: Fleet


@dataclass(frozen=True)
class TargetList:
    """The outcome of ``targets list``."""

    targets: tuple[Target, ...]


@dataclass(frozen=True)
class Rewrite:
    """A lack or quirk of a target, and the file with the rewrite for it (None if there is none)."""

    cures: str
    file: str | None


@dataclass(frozen=True)
class SchemeCard:
    """A quantization scheme of an NPU: each accuracy limit with its source, and its rewrites."""

    scheme: NpuScheme
    limits: tuple[tuple[AccuracyLimits, Evidence | None], ...]
    rewrites: tuple[Rewrite, ...]


@dataclass(frozen=True)
class TargetCard:
    """The outcome of ``targets show``. ``rewrites`` apply to the CPU graph; those of NPU graphs are in ``schemes``.

    ``measured``: what this user's lab measured on such devices.
    """

    target: Target
    rewrites: tuple[Rewrite, ...]
    schemes: tuple[SchemeCard, ...]
    measured: tuple[MeasuredSpeed, ...] = ()

    @classmethod
    def of(cls, target: Target, fixes: dict[str, str], measured: tuple[MeasuredSpeed, ...] = ()) -> Self:
        """Pair the lacks and quirks of a target and its schemes with the files of their rewrites."""
        npu = target.npu
        return cls(
            target,
            _rewrites(target, fixes),
            tuple(_scheme(npu, scheme, fixes) for scheme in npu.schemes) if npu else (),
            measured,
        )


def _scheme(npu: Npu, scheme: NpuScheme, fixes: dict[str, str]) -> SchemeCard:
    sources = {source.key: source for source in npu.sources}
    limits = tuple((each, sources.get(f"{scheme.activations}.limits.{each.precision}")) for each in scheme.limits)
    return SchemeCard(scheme, limits, _rewrites(scheme, fixes))


def _rewrites(place: Target | NpuScheme, fixes: dict[str, str]) -> tuple[Rewrite, ...]:
    return tuple(Rewrite(name, fixes.get(name)) for name in sorted(place.lacks | place.quirks))


@dataclass(frozen=True)
class Examined:
    """The outcome of ``doctor``."""

    checks: tuple[Check, ...]


@dataclass(frozen=True)
class MeterKind:
    """A kind of meter: ``--meter NAME[:ADDRESS]``. ``where``: ``device`` or ``beside`` it."""

    name: str
    address: str
    where: str
    covers: str
    default: bool
    tested: str


@dataclass(frozen=True)
class MeterHere:
    """A meter of this machine. ``trouble``: why it cannot be read, "" if it can."""

    meter: str
    title: str
    covers: str
    trouble: str


@dataclass(frozen=True)
class MeterList:
    """The outcome of ``power list``."""

    kinds: tuple[MeterKind, ...]
    here: tuple[MeterHere, ...]

    @classmethod
    def here_of(cls, root: Path) -> Self:
        """Look at the meters of the machine whose ``sys`` is under a folder, and try each."""
        from edgekit.errors import MeasureError
        from edgekit.measure.energy import meter_files

        kinds, here = [], []
        for file in meter_files():
            name = file.__name__.rpartition(".")[2]
            kinds.append(MeterKind(name, file.ADDRESS, file.WHERE, file.COVERS, file.WHOLE, file.TESTED))
            for probe in file.find(root):
                trouble = ""
                try:
                    probe.start()
                    probe.stop()
                except MeasureError as error:
                    trouble = f"{error.message}: {error.hint}"
                meter = f"{name}:{probe.address}" if file.ADDRESS else name
                here.append(MeterHere(meter, probe.name, probe.covers, trouble))
        return cls(tuple(kinds), tuple(here))


@dataclass(frozen=True)
class Recorded:
    """The outcome of ``power record`` and ``power show``."""

    path: Path
    meter: str
    covers: str
    readings: int
    seconds: float
    hertz: float
    longest_gap: float
    mean_watts: float
    least_watts: float
    most_watts: float
    joules: float
    error_joules: float

    @classmethod
    def of(cls, trace: Trace, path: Path) -> Self:
        """Sum up a trace."""
        from itertools import pairwise

        from edgekit.measure.trace import joules, period, watts

        energy, seconds = joules(trace), trace.at[-1] - trace.at[0]
        power = [w for _, w in watts(trace)]
        return cls(
            path,
            trace.meter,
            trace.covers,
            len(trace.at),
            seconds,
            1 / period(trace),
            max(b - a for a, b in pairwise(trace.at)),
            energy.value / seconds,
            min(power),
            max(power),
            energy.value,
            energy.error,
        )
