"""The NPU pipeline: static graphs -> compile -> check that every node runs on the NPU -> run on the emulator.

It starts from the quantized model of ``build`` and writes the device's files into ``npu/<target>/``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgekit import measure
from edgekit.build.npu_emulate import STEPS, TOKENS, emulate_build, make_probe, require_accuracy
from edgekit.build.npu_plan import NpuInputs, choose_scheme, npu_of, plugin_of
from edgekit.build.npu_static import export_static_graphs
from edgekit.bundle.external import write_model
from edgekit.bundle.pipeline import CONFIG, pipeline_config, tokenizer_files
from edgekit.bundle.reading import node_names, read_context
from edgekit.errors import GateFailed, RunError
from edgekit.lower import cache_graph, fixes, lower_static, share_bytes
from edgekit.quantize import observed, quantize_activations
from edgekit.record import to_json
from edgekit.run import physical_cores
from edgekit.run.npu import (
    Compiler,
    observe_ranges,
)
from edgekit.source import source_tokenizer
from edgekit.types import Progress, silent
from edgekit.types.npu import ROLES, CompiledGraph, NpuBuild, Placed, Placement, Role, file_names, width

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from edgekit.build.npu_emulate import Probe
    from edgekit.bundle import BundleWriter
    from edgekit.run.npu import Compilation
    from edgekit.types import Checkpoint
    from edgekit.types.device import Activations, Npu, NpuScheme, Precision, Target

CALIBRATION_TOKENS, WINDOW, CALIBRATION_CHARACTERS = 2048, 128, 60_000
"""The calibration data: total tokens, tokens per window, and the characters of text they are taken from."""


def compile_for(
    bundle: BundleWriter,
    sources: NpuInputs,
    targets: Sequence[Target],
    activations: Activations | None,
    *,
    compiler: Compiler,
    emulate: bool,
    mlpackage: bool = False,
    progress: Progress = silent,
) -> tuple[NpuBuild, ...]:
    """Compile a model for the NPUs of several devices, into one bundle.

    Args:
        bundle: its CPU graph is already written.
        sources: the model.
        targets: devices with an NPU.
        activations: as in ``choose_scheme``.
        compiler: the vendor's, or a fake.
        emulate: also run the graphs.
        mlpackage: also write a Core ML package for devices that use one.
        progress: called at each step.

    Raises:
        ConfigError: a device has no matching scheme.
        RunError: the compiler is missing or failed.
        GateFailed: see ``NpuLine.build``.
    """
    precision = sources.recipe.precision
    slots = min(npu_of(t).context for t in targets)
    count = min(TOKENS + STEPS, slots)
    probe = make_probe(sources.checkpoint, count, progress=progress) if emulate else None
    windows = calibration_windows(sources.checkpoint, slots, sources.windows)
    line = NpuLine(bundle, sources, windows, compiler, progress)
    builds = []
    for target in targets:
        scheme = choose_scheme(target, precision, activations)
        if npu_of(target).plugin:
            build = line.build(target, scheme, precision, probe)
            _write_pipeline(bundle, build, sources.checkpoint)
        else:
            build = export_static_graphs(bundle, sources, target, scheme, probe, mlpackage=mlpackage, progress=progress)
        builds.append(build)
    return tuple(builds)


def _write_pipeline(bundle: BundleWriter, build: NpuBuild, checkpoint: Checkpoint) -> None:
    """Add what onnxruntime-genai needs to open a device's folder: its configuration and copies of tokenizer files."""
    npu, folder = npu_of(build.target), bundle.folder / build.folder
    if npu.runtime is None:
        return
    config = pipeline_config(folder, build, npu.runtime, checkpoint.spec, npu.prefill_tokens)
    bundle.write_file(f"{build.folder}/{CONFIG}", config)
    for name in tokenizer_files([file.name for file in checkpoint.files]):
        bundle.write_file(f"{build.folder}/{name}", (bundle.folder / name).read_bytes())


def calibration_windows(
    checkpoint: Checkpoint, longest: int, text: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Tokens that an NPU's scales are calibrated on.

    They come from ``text`` [n, tokens], which the weights were fitted to; without it from the end of CPython's help
    topics, since probes use the beginning.

    Returns:
        [windows, tokens], of at most ``longest`` tokens each.
    """
    length = min(WINDOW, longest)
    if text is not None:
        pieces = text[:, : text.shape[1] // length * length].reshape(-1, length)
        return pieces[:: -(-len(pieces) * length // CALIBRATION_TOKENS)]
    topics = measure.embedded_text()
    tail = measure.Text(f"the end of {topics.name}", topics.content[-CALIBRATION_CHARACTERS:])
    return measure.cut_windows(tail, source_tokenizer(checkpoint), length, CALIBRATION_TOKENS)


class NpuLine:
    """Builds one model for the NPUs of one or more devices. Graphs that devices share are written once."""

    def __init__(
        self,
        bundle: BundleWriter,
        sources: NpuInputs,
        windows: NDArray[np.int64],
        compiler: Compiler,
        progress: Progress,
    ) -> None:
        """Reuse the CPU graph's weight bytes and calibrate scales on ``windows`` [windows, tokens]."""
        self._bundle, self._model, self._windows, self._progress = bundle, sources.quantized, windows, progress
        self._compiler = compiler
        self._stem = sources.graph.removesuffix(".onnx")
        self._bytes = dict(sources.written.graph.initializers)
        self._static: dict[str, dict[Role, tuple[_Static, ...]]] = {}
        self._caches: dict[str, ir.Model] = {}

    def build(self, target: Target, scheme: NpuScheme, precision: Precision, probe: Probe | None) -> NpuBuild:
        """Compile for one device, check where each node runs and, with a probe, run the emulator.

        Raises:
            RunError: the compiler is missing or failed.
            GateFailed: a node would run on the CPU, or the emulator's logits miss the target's accuracy limits.
        """
        npu, folder = npu_of(target), f"npu/{target.name}"
        static = self._write_static(target, npu, scheme, folder)
        options = (*npu.options, *scheme.options)
        placements: list[Placement] = []
        graphs = [
            compiled
            for jobs, place in ((_apart(static), folder), (_together(static), f"{folder}/shared"))
            for job in jobs
            for compiled in self._compile(target, options, job, place, placements)
        ]
        self._bundle.write_file(f"{folder}/placement.json", _document(placements))
        made = NpuBuild(
            target=target,
            activations=scheme.activations,
            options=tuple(sorted(options)),
            tools=self._compiler.versions(plugin_of(target)),
            host=f"{folder}/host.onnx",
            past=npu.context,
            graphs=tuple(graphs),
            placement=f"{folder}/placement.json",
        )
        if probe is None:
            return made
        emulations = emulate_build(self._bundle.folder, made, probe, progress=self._progress)
        require_accuracy(target, scheme.limits_for(precision), emulations)
        return made.emulated(emulations)

    def attempt(self, target: Target, scheme: NpuScheme) -> tuple[Attempt, ...]:
        """Compile each graph separately, keep no files and report the results, failures included.

        Raises:
            RunError: the compiler is missing or crashed.
        """
        npu = npu_of(target)
        static = self._write_static(target, npu, scheme, f"npu/{target.name}/{npu.context}")
        attempts = []
        for job in _apart(static):
            with TemporaryDirectory(dir=self._bundle.folder) as scratch:
                done = self._run_compiler(target, (*npu.options, *scheme.options), job, Path(scratch))[0]
            placement = Placement(done.output.name, _with_folded(done))
            attempts.append(Attempt(job[0].role, job[0].part, width(npu, job[0].role), placement, done))
        return tuple(attempts)

    def _write_static(
        self, target: Target, npu: Npu, scheme: NpuScheme, folder: str
    ) -> dict[Role, tuple[_Static, ...]]:
        """Write the chip-independent graphs once, and the CPU-side graphs into each device's folder."""
        lowered = lower_static(self._model, target, npu, scheme)
        self._bundle.write_graph(lowered.host, f"{folder}/host.onnx")
        self._bundle.write_graph(lowered.chunk, f"{folder}/chunk.onnx")
        prefill, decode = lowered.prefill, lowered.decode
        key = f"{self._stem}.{scheme.activations}.{npu.prefill_tokens}x{npu.context}"
        if key not in self._static:
            if scheme.calibrated:
                prefill, decode = self._calibrated(prefill, decode, f"{folder}/host.onnx")
            self._static[key] = {
                "prefill": self._write_chain(prefill, "prefill", key),
                "decode": self._write_chain(decode, "decode", key),
            }
            self._caches[key] = cache_graph(prefill)
        self._bundle.write_graph(self._caches[key].clone(), f"{folder}/cache.onnx")
        return self._static[key]

    def _calibrated(
        self, prefill: Sequence[ir.Model], decode: Sequence[ir.Model], host: str
    ) -> tuple[tuple[ir.Model, ...], tuple[ir.Model, ...]]:
        """Both chains with quantized activations. Weight bytes are written once, with the first chain."""
        root = self._bundle.folder
        with TemporaryDirectory(dir=root) as folder:
            paths = [Path(folder) / f"observed.{i}.onnx" for i in range(len(prefill))]
            for model, path in zip(prefill, paths, strict=True):
                write_model(observed(model), path)
            ranges = observe_ranges(root / host, paths, self._windows, physical_cores(), self._progress)
        coded = [tuple(quantize_activations(m, ranges) for m in chain) for chain in (prefill, decode)]
        return coded[0], coded[1]

    def _write_chain(self, chain: Sequence[ir.Model], role: Role, key: str) -> tuple[_Static, ...]:
        names = file_names(role, len(chain))
        written = tuple(_Static(role, part, f"{key}.{name}", name) for part, name in enumerate(names))
        for model, graph in zip(chain, written, strict=True):
            share_bytes(model, self._bytes)
            self._bundle.write_graph(model, graph.path, progress=self._progress)
            self._bytes = {**model.graph.initializers, **self._bytes}
        return written

    def _compile(
        self,
        target: Target,
        options: Sequence[tuple[str, str]],
        job: Sequence[_Static],
        place: str,
        placements: list[Placement],
    ) -> list[CompiledGraph]:
        """Compile the graphs of one job; if there are several, they share the weights of the first."""
        npu, share = npu_of(target), len(job) > 1
        with TemporaryDirectory(dir=self._bundle.folder) as folder:
            done = self._run_compiler(target, options, job, Path(folder))
            placed = [Placement(c.output.name, _with_folded(c)) for c in done]
            for placement, compilation in zip(placed, done, strict=True):
                require_placed(target, placement, compilation.error)
            if not share:
                placements += placed
            compiled = []
            for graph, c, placement in zip(job, done, placed, strict=True):
                facts = read_context(c.output)
                if facts.others:
                    raise GateFailed(
                        f"{graph.path}: {', '.join(sorted(set(facts.others)))} would run on the CPU", _CURE
                    )
                self._bundle.adopt_file(f"{place}/{c.output.name}", c.output)
                if (c.output.parent / facts.binary).is_file():
                    self._bundle.adopt_file(f"{place}/{facts.binary}", c.output.parent / facts.binary)
                compiled.append(
                    CompiledGraph(
                        role=graph.role,
                        part=graph.part,
                        tokens=width(npu, graph.role),
                        source=graph.path,
                        context=f"{place}/{c.output.name}",
                        binary=f"{place}/{facts.binary}",
                        shared=share,
                        executed=False,
                        nodes=len(placement.nodes),
                        compatibility=facts.compatibility,
                        traffic=c.traffic,
                        seconds=c.seconds,
                        peak_rss_bytes=c.peak_rss_bytes,
                    )
                )
        return compiled

    def _run_compiler(
        self, target: Target, options: Sequence[tuple[str, str]], job: Sequence[_Static], folder: Path
    ) -> tuple[Compilation, ...]:
        root = self._bundle.folder
        pairs = [(root / graph.path, folder / graph.compiled) for graph in job]
        return self._compiler.compile(
            plugin_of(target),
            target.provider,
            options,
            pairs,
            share=len(job) > 1,
            threads=physical_cores(),
            progress=self._progress,
        )


@dataclass(frozen=True)
class _Static:
    """A static graph at ``path`` in the bundle; ``compiled`` is the file name of the compiler's output."""

    role: Role
    part: int
    path: str
    compiled: str


@dataclass(frozen=True)
class Attempt:
    """The result of compiling one graph, whose files were not kept."""

    role: Role
    part: int
    tokens: int
    placement: Placement
    compilation: Compilation


_CURE = "add the operator to `lacks` in targets/families; `edgekit targets show` lists the rewrites edgekit has"


def require_placed(target: Target, placement: Placement, error: str) -> None:
    """Raise unless a graph compiled with every node on the target's provider.

    Raises:
        GateFailed: a node would run elsewhere; names the provider's reason and the rewrite in lower/ that helps.
        RunError: it failed to compile for another reason.
    """
    off = placement.off(target.provider)
    if off:
        first, known = off[0], fixes()
        file = known.get(f"op:{first.operator}")
        cure = f"add 'op:{first.operator}' to the scheme's `lacks`: edgekit/{file} rewrites it" if file else _CURE
        raise GateFailed(
            f"{placement.graph} for {target.name}: {len(off)} of {len(placement.nodes)} nodes would run on the CPU, "
            f"first {first.operator} '{first.node}': {first.reason or 'no reason given'}",
            cure,
        )
    if error:
        raise RunError(
            f"{placement.graph} cannot be compiled for {target.name}: {error}",
            "run `edgekit targets check` to try one layer and the head in seconds",
        )


def _apart(static: dict[Role, tuple[_Static, ...]]) -> list[list[_Static]]:
    """One job per graph, since the emulator cannot load binaries with shared weights."""
    return [[graph] for role in ROLES for graph in static[role]]


def _together(static: dict[Role, tuple[_Static, ...]]) -> list[list[_Static]]:
    """One job per part: its prefill and decode graphs, which have the same weights."""
    return [list(part) for part in zip(*(static[role] for role in ROLES), strict=True)]


def _with_folded(compilation: Compilation) -> tuple[Placed, ...]:
    """The nodes of a static graph, including those folded into constants before the provider saw them."""
    asked = {placed.node: placed for placed in compilation.placed}
    mine = [asked.pop(node, Placed(node, operator, "")) for node, operator in node_names(compilation.source)]
    return (*mine, *asked.values())


def _document(placements: Sequence[Placement]) -> bytes:
    return ("[\n" + ",\n".join(to_json(p, indent=1) for p in placements) + "\n]\n").encode()
