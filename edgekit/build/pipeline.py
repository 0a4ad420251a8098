"""The build pipeline: a checkpoint in, a bundle out.

    source -> graph -> quantize -> lower -> bundle            and, for a device with an NPU, npu.py:
                               quantize -> lower -> compile -> bundle

Start reading at ``build_bundle``. Modules that need onnx_ir are imported where they are used: loading it takes as long
as hashing the source, so the two run in parallel.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekit import __version__, words
from edgekit.build.learned import Learned, find_learned, read_card
from edgekit.bundle import GRAPH_NAMES, SCHEMA, write_bundle
from edgekit.config.recipe import builtin_recipe, load_recipe, load_target
from edgekit.errors import ConfigError
from edgekit.host.origins import remember_origin
from edgekit.record import to_json
from edgekit.source import complete_export, fingerprint, open_model, require_unchanged, source_stamp, try_tokenizer
from edgekit.types import (
    Bundle,
    Checkpoint,
    GridPolicy,
    Manifest,
    ModelSpec,
    NpuBuild,
    Precision,
    Prefill,
    Progress,
    Provenance,
    Recipe,
    Resume,
    Target,
    Weights,
    silent,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from edgekit.bundle import BundleWriter
    from edgekit.corpus import Corpus, Sample
    from edgekit.quantize.model import Rounded
    from edgekit.run.npu import Compiler
    from edgekit.types.device import Activations
    from edgekit.types.learning import RunCard

Exporter = Literal["native", "optimum"]

CALIBRATION_TOKENS = 8192
"""How many tokens weights are fitted to. Twice as many gain little (docs/benchmarks.md)."""


@dataclass(frozen=True)
class ForNpu:
    """Options for targets with an NPU.

    ``activations`` is the type it computes in, by default the first one in its file that supports the precision.
    ``context`` is the cache size in tokens, by default the file's. ``also`` names more devices whose binaries go into
    the same bundle. ``emulate``: run the graphs on the emulator and fail if they miss the limits in the device's file;
    if the device compiles graphs itself, run them on the CPU. ``mlpackage``: also write a Core ML package.
    ``compiler``: a fake in place of the vendor's.
    """

    activations: Activations | None = None
    context: int | None = None
    also: tuple[str | Target, ...] = ()
    emulate: bool = True
    mlpackage: bool = False
    compiler: Compiler | None = None


def build_bundle(
    model: str,
    *,
    out: Path | str,
    target: str | Target = "cpu",
    precision: Precision | None = None,
    recipe: str | Recipe | None = None,
    exporter: Exporter = "native",
    size_mb: float | None = None,
    bits: float | None = None,
    revision: str | None = None,
    offline: bool = False,
    force: bool = False,
    calibrate: Sequence[str] = (),
    skip_bad: bool = False,
    learned: Path | None = None,
    npu: ForNpu = ForNpu(),
    progress: Progress = silent,
    note: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Build a bundle from a checkpoint. Calling it again with the same inputs resumes a killed build.

    Args:
        model: a Hugging Face folder, a hub id, a .gguf file, or the name of a packaged model.
        out: the bundle's folder; must not exist, unless it is a bundle and ``force`` is set.
        target: a target's name or TOML file.
        precision: int4, int8, fp16 or fp32; must agree with ``recipe`` if that is given. By default int4, or the first
            one in the file of a target with an NPU.
        recipe: a recipe's TOML file, instead of the default recipe of the precision.
        exporter: "native" for the LLaMA family, "optimum" for any decoder that optimum-onnx exports.
        size_mb: maximum size of the whole bundle in MB (10**6); 8-bit tensors are chosen by sensitivity.
        bits: target bits per weight, all scales included, reached in the same way.
        revision: of a hub id.
        offline: never contact the hub.
        force: replace an existing bundle.
        calibrate: text that weights are calibrated on with GPTQ, as named in ``corpus.read_corpus``. Without it they
            are quantized without data.
        skip_bad: leave out lines of that text which hold no document.
        learned: the folder of a training run of this model (see build/learned.py), whose codes are built in; by default
            the model's own folder, if it holds one with the recipe.
        npu: options for a target with an NPU.
        progress: called with the bytes done in each step.
        note: called with what the user should know about the checkpoint.

    Raises:
        EdgekitError: a step failed; nothing is left at ``out``.
    """
    chosen = load_target(target) if isinstance(target, str) else target
    devices = _devices(chosen, npu)
    plan = choose_recipe(precision, recipe, size_mb, bits, chosen, npu.activations)
    if skip_bad and not calibrate:
        raise ConfigError("`skip_bad` needs `calibrate`", "name the text, or leave it out")
    if exporter == "optimum":
        if devices:
            raise ConfigError(
                f"graphs exported by optimum cannot be lowered for the NPU of {chosen.title}", "use `exporter=native`"
            )
        # Its graphs append to the cache and use other names: passes that rely on our own graphs are off.
        chosen, plan = replace(chosen, shared_kv=False), replace(plan, smooth=0.0, rotate=False, w8a8_prefill=False)

    sample = sampler_of(model, exporter, revision=revision, offline=offline, progress=progress)
    with write_bundle(out, force=force) as bundle, ThreadPoolExecutor(1) as beside:
        checkpoint, exported = _open(model, exporter, chosen.opset, revision, offline, progress)
        if checkpoint.left_aside:
            note(f"left aside: {words.left_aside(checkpoint.left_aside)}")
        stamp = source_stamp(checkpoint)
        tried = beside.submit(try_tokenizer, checkpoint)
        provenance = beside.submit(fingerprint, checkpoint)
        model_graph, weights, codes = exported, checkpoint.weights, None
        if model_graph is None:
            found = None if calibrate else find_learned(checkpoint, plan, learned, note)
            plan = found.recipe if found else plan
            spec, weights = prepare_weights(checkpoint, plan, chosen.opset)
            codes = Learned(found.path, weights) if found else None
            model_graph = _graph(checkpoint, spec, codes or weights, chosen.opset)
        tried.result()
        card = read_card(learned or Path(checkpoint.provenance.location))
        text = _read_text(calibrate, checkpoint, skip_bad, offline, sample, progress, note) if calibrate else None
        order = _Order(plan, chosen, devices, exporter, npu, stamp, text, codes, card)
        return _write(bundle, order, checkpoint, model_graph, codes or weights, provenance, progress)


def _open(
    model: str, exporter: Exporter, opset: int, revision: str | None, offline: bool, progress: Progress
) -> tuple[Checkpoint, ir.Model | None]:
    """The checkpoint, and its graph if optimum exports it."""
    if exporter == "native":
        return open_model(model, revision=revision, offline=offline, progress=progress), None
    from edgekit.graph import export_with_optimum

    export = export_with_optimum(model, opset=opset, offline=offline, progress=progress)
    return complete_export(export.checkpoint), export.graph


def sampler_of(
    model: str,
    exporter: Exporter = "native",
    *,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress = silent,
) -> Sample:
    """What writes the text ``self`` of a model: a temporary INT8 bundle of it, sampled (see sample_text.py)."""

    def plain(folder: Path) -> Bundle:
        return build_bundle(model, out=folder, precision="int8", exporter=exporter, revision=revision, offline=offline)

    def sample(tokens: int, seed: int) -> Sequence[str]:
        from edgekit.build.sample_text import sampler  # brings ONNX Runtime, which other builds do without

        return sampler(plain, progress)(tokens, seed)

    return sample


@dataclass(frozen=True)
class _Order:
    """What to build, with every name resolved."""

    recipe: Recipe
    target: Target
    devices: tuple[Target, ...]
    exporter: Exporter
    npu: ForNpu
    stamp: str
    text: Corpus | None
    learned: Learned | None
    card: RunCard | None

    @property
    def windows(self) -> NDArray[np.int64] | None:
        """The text that weights are fitted to, token ids [n, tokens]."""
        return self.text.train if self.text else None

    @property
    def cpu_target(self) -> Target:
        """The target that the CPU graph is lowered for."""
        return load_target(self.target.fallback) if self.devices else self.target


def _read_text(
    named: Sequence[str],
    checkpoint: Checkpoint,
    skip_bad: bool,
    offline: bool,
    sample: Sample,
    progress: Progress,
    note: Callable[[str], None],
) -> Corpus:
    """The text that weights are fitted to."""
    from edgekit.corpus import read_corpus

    found = read_corpus(
        named,
        checkpoint,
        tokens=CALIBRATION_TOKENS,
        skip_bad=skip_bad,
        offline=offline,
        sample=sample,
        progress=progress,
    )
    for source in found.card.sources:
        if source.bad_lines:
            note(f"{source.name}: left out {source.left_out}")
    return found


def _write(
    bundle: BundleWriter,
    order: _Order,
    checkpoint: Checkpoint,
    model_graph: ir.Model,
    weights: Weights,
    provenance: Future[Provenance],
    progress: Progress,
) -> Bundle:
    """From the float graph to the finished bundle."""
    from edgekit.lower import lower
    from edgekit.quantize import Calibration, Kept, fit_budget, most_bytes, quantize

    plan, cpu, wanted = order.recipe, order.cpu_target, order.npu
    beside = bytes_beside(checkpoint, plan)
    for_npu = (order.devices, wanted.activations, checkpoint, plan)
    if order.devices:
        from edgekit.build.npu_plan import require_buildable

        budget = most_bytes(model_graph, weights, plan, beside)
        require_buildable(*for_npu, budget, compiler=_compiler(wanted), mlpackage=wanted.mlpackage)
    rounded: Rounded | None = order.learned
    if order.learned:
        policy: GridPolicy = order.learned.policy
    else:
        policy = fit_budget(model_graph, weights, plan, beside, text=order.windows, progress=progress)
    key = _key(order, weights, policy)
    if order.windows is not None:
        kept = Kept(bundle.workshop_file("calibrated"), key)
        rounded = Calibration(
            model_graph.clone(), weights, policy, order.windows, method=plan.method, kept=kept, progress=progress
        )
    small = quantize(model_graph, weights, plan, accuracy_level=cpu.accuracy_level, policy=policy, rounded=rounded)
    if order.learned:
        small.errors.update(order.learned.float_errors())
    quantized = small.model.clone() if order.devices else None
    lowered = lower(small.model, cpu)
    if quantized is not None:
        from edgekit.build.npu_plan import require_lowerable

        require_lowerable(*for_npu, quantized, mlpackage=wanted.mlpackage)
    # Nothing is quantized yet: weights are lazy, and write_graph evaluates each in turn.
    graph = GRAPH_NAMES[plan.precision]
    bundle.write_graph(lowered, graph, resume=Resume(key, small.errors) if key else None, progress=progress)
    prefill = _write_prefill(bundle, lowered, graph) if plan.w8a8_prefill else None
    bundle.write_side_files(checkpoint.files, checkpoint.spec, cpu, graph, plan.precision)
    npus: tuple[NpuBuild, ...] = ()
    if quantized is not None:
        npus = _compile(bundle, order, checkpoint, quantized, lowered, progress)
    origin = provenance.result()
    require_unchanged(checkpoint, order.stamp)
    made = bundle.finish(
        Manifest(
            schema=SCHEMA,
            edgekit=__version__,
            provenance=replace(origin, location=""),  # local paths stay private
            spec=checkpoint.spec,
            recipe=plan,
            target=order.target,
            graph=graph,
            exporter=order.exporter,
            tools=_tools(),
            tensors=small.entries(),
            files=(),
            prefill=prefill,
            calibrated=order.text.card if order.text else None,
            learned=order.card,
            fallback=order.cpu_target if order.devices else None,
            npus=npus,
        )
    )
    remember_origin(origin, made.sha256)
    return made


def _compiler(npu: ForNpu) -> Compiler:
    from edgekit.run.npu import VendorCompiler

    return npu.compiler or VendorCompiler()


def _compile(
    bundle: BundleWriter,
    order: _Order,
    checkpoint: Checkpoint,
    quantized: ir.Model,
    written: ir.Model,
    progress: Progress,
) -> tuple[NpuBuild, ...]:
    """Compile for the NPUs of all devices; ``written`` is the model as in the CPU graph's file."""
    from edgekit.build.npu import compile_for
    from edgekit.build.npu_plan import NpuInputs

    graph = GRAPH_NAMES[order.recipe.precision]
    sources = NpuInputs(checkpoint, order.recipe, quantized, written, graph, order.windows)
    wanted = order.npu
    return compile_for(
        bundle,
        sources,
        order.devices,
        wanted.activations,
        compiler=_compiler(wanted),
        emulate=wanted.emulate,
        mlpackage=wanted.mlpackage,
        progress=progress,
    )


def _devices(target: Target, npu: ForNpu) -> tuple[Target, ...]:
    """The target and ``npu.also`` as devices with an NPU; empty if the target has none.

    Raises:
        ConfigError: NPU options are set but a device has no NPU, or two devices have different CPU fallbacks.
    """
    named = (target, *(load_target(t) if isinstance(t, str) else t for t in npu.also))
    without = next((t for t in named if t.npu is None), None)
    if without is not None and (npu.also or npu.activations or npu.context or npu.mlpackage):
        raise ConfigError(
            f"target '{without.name}' has no NPU to compile for", "run `edgekit targets list` to see targets with one"
        )
    if without is not None:
        return ()
    other = next((t for t in named if t.fallback != target.fallback), None)
    if other is not None:
        raise ConfigError(
            f"{other.name} and {target.name} cannot share a bundle: their CPU graphs differ ('{other.fallback}' and "
            f"'{target.fallback}')",
            "build one bundle for each",
        )
    return tuple(replace(t, npu=replace(t.npu, context=npu.context)) if npu.context and t.npu else t for t in named)


def _tools() -> tuple[tuple[str, str], ...]:
    return tuple((name, version(name)) for name in ("onnx", "onnx-ir", "numpy"))


def _key(order: _Order, weights: Weights, policy: GridPolicy) -> str:
    """Hash everything that determines a bundle's bytes: a killed build with the same key can be resumed.

    Empty if the source has no stamp.
    """
    if not order.stamp:
        return ""
    grids = [repr(policy(name, weights.shape(name))) for name in weights.names()]
    text = to_json(order.text.card) if order.text else order.learned.sha256 if order.learned else ""
    plan = (to_json(order.recipe), to_json(order.target), order.exporter, text)
    words = (__version__, repr(_tools()), order.stamp, *plan, *grids)
    return sha256("\n".join(words).encode()).hexdigest()


def draw(checkpoint: Checkpoint, recipe: Recipe, opset: int) -> tuple[ir.Model, Weights]:
    """The float graph of a checkpoint and its weights, smoothed and rotated if the recipe says so."""
    spec, weights = prepare_weights(checkpoint, recipe, opset)
    return _graph(checkpoint, spec, weights, opset), weights


def prepare_weights(checkpoint: Checkpoint, recipe: Recipe, opset: int) -> tuple[ModelSpec, Weights]:
    """The weights that the recipe's grids are fitted to, smoothed and rotated if it says so, and their spec."""
    from edgekit.quantize import RotatedWeights, smooth

    spec, weights = checkpoint.spec, checkpoint.weights
    if recipe.smooth:
        weights = smooth(_graph(checkpoint, spec, weights, opset), weights, recipe.smooth)
    if recipe.rotate:
        spec, weights = replace(spec, tied=False), RotatedWeights(weights)
    return spec, weights


def _graph(checkpoint: Checkpoint, spec: ModelSpec, weights: Weights, opset: int) -> ir.Model:
    from edgekit.graph import build_graph

    return build_graph(spec, weights, opset=opset, name=checkpoint.provenance.id.rsplit("/", 1)[-1])


def _write_prefill(bundle: BundleWriter, written: ir.Model, graph: str) -> Prefill | None:
    """Write the prompt graph next to the decoder's; None if there is no matmul to expand."""
    from edgekit.lower import prefill_graph

    prompts, expansions = prefill_graph(written)
    if not expansions:
        return None
    prefill = Prefill(graph.replace(".onnx", "_prefill.onnx"), expansions)
    bundle.write_graph(prompts, prefill.graph)
    return prefill


def choose_recipe(
    precision: Precision | None,
    recipe: str | Recipe | None,
    size_mb: float | None,
    bits: float | None,
    target: Target,
    activations: Activations | None,
) -> Recipe:
    """The recipe to use, with the budget from the arguments."""
    if recipe is None:
        wanted: Precision = precision or (target.precisions[0] if target.npu else "int4")
        scheme = None
        if target.npu and wanted in target.precisions:
            from edgekit.build.npu_plan import choose_scheme

            scheme = choose_scheme(target, wanted, activations)
        plan = builtin_recipe(wanted, scheme)
    else:
        plan = load_recipe(recipe) if isinstance(recipe, str) else recipe
        if precision is not None and precision != plan.precision:
            raise ConfigError(
                f"`precision={precision}` contradicts recipe '{plan.name}', whose precision is {plan.precision}",
                "give only one of them",
            )
    if plan.precision not in target.precisions:
        raise ConfigError(
            f"target '{target.name}' does not support {plan.precision}",
            f"supported: {', '.join(target.precisions)}",
        )
    if plan.narrowest < 4 and (target.npu or "op:MatMulNBits" in target.lacks):
        raise ConfigError(
            f"target '{target.name}' has no kernel for the {plan.narrowest}-bit weights of recipe '{plan.name}'",
            "use a recipe without them, such as `recipe=small`, or `target=cpu`",
        )
    if size_mb is not None and bits is not None:
        raise ConfigError("`size_mb` and `bits` cannot be used together", "give only one of them")
    if size_mb is not None:
        plan = replace(plan, size_bytes=int(size_mb * 1e6), bits_per_weight=None)
    if bits is not None:
        plan = replace(plan, bits_per_weight=bits, size_bytes=None)
    if (plan.size_bytes or plan.bits_per_weight) and plan.precision != "int4":
        raise ConfigError(
            f"a budget mixes widths from the recipe's own to 8 bits per weight, but the precision is {plan.precision}",
            "use `precision=int4` with `size_mb` or `bits`",
        )
    return plan


GRAPH_BYTES, LAYER_BYTES = 40_000, 13_000
"""Bytes of a size budget reserved for a graph's protobuf, edgekit.json and alignment, and for each layer of a graph."""


def bytes_beside(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """Bytes of a bundle other than quantized weights: tokenizer and configuration, norms, graphs."""
    files = sum(len(f.data) for f in checkpoint.files)
    small = sum(
        4 * prod(checkpoint.weights.shape(n))
        for n in checkpoint.weights.names()
        if len(checkpoint.weights.shape(n)) != 2
    )
    graphs = 2 if recipe.w8a8_prefill else 1
    return files + small + graphs * (GRAPH_BYTES + LAYER_BYTES * checkpoint.spec.layers)
