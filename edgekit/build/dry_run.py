"""Check in seconds whether a model compiles for a device's NPU, by compiling one layer and the head.

It runs the build's NPU pipeline on a one-layer model: the middle layer, whose weights use the same grids as most
others. Recipe overrides for numbered layers are ignored. ``whole`` compiles all layers, to estimate bytes per token.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgekit.build.npu import NpuLine, calibration_windows, require_placed
from edgekit.build.npu_plan import NpuInputs, choose_scheme, npu_of, plugin_of, require_context
from edgekit.build.pipeline import draw
from edgekit.bundle import GRAPH_NAMES, write_bundle
from edgekit.config.recipe import builtin_recipe, load_target
from edgekit.estimate.npu_cost import estimate
from edgekit.lower import fixes, lower
from edgekit.quantize import quantize
from edgekit.run.npu import Compiler, VendorCompiler
from edgekit.source import CutWeights, keep_layers, open_model
from edgekit.types import Progress, silent
from edgekit.types.npu import ROLES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgekit.bundle import BundleWriter
    from edgekit.estimate.npu_cost import Estimate
    from edgekit.types import Activations, Checkpoint, Precision, Recipe, Target
    from edgekit.types.device import NpuScheme
    from edgekit.types.npu import Placement, Role, Traffic

_NUMBERED = re.compile(r"layers\.(\d|\{last\})")


@dataclass(frozen=True)
class Tried:
    """One graph given to the compiler, with ``context`` cache slots. ``error`` is "" if it compiled.

    ``part`` is the 0-based index of the graph in a split model. ``traffic`` is the DRAM traffic of one run in bytes,
    None if the compiler did not report it. Seconds and peak RSS were measured on this machine.
    """

    context: int
    role: Role
    part: int
    tokens: int
    placement: Placement
    traffic: Traffic | None
    seconds: float
    peak_rss_bytes: int
    error: str


@dataclass(frozen=True)
class TargetTried:
    """The results for one device. ``estimates`` is empty unless all layers were compiled."""

    target: Target
    precision: Precision
    activations: Activations
    recipe: str
    graphs: tuple[Tried, ...]
    estimates: tuple[Estimate, ...]


@dataclass(frozen=True)
class TargetCheck:
    """The results for all devices: ``layers`` of the model's ``all_layers`` and the head were compiled.

    ``cures`` lists each operator that an NPU refused, with the file in lower/ that rewrites it, "" if there is none.
    """

    model: str
    layers: int
    all_layers: int
    targets: tuple[TargetTried, ...]
    cures: tuple[tuple[str, str], ...]


def check_targets(
    model: str,
    targets: Sequence[str | Target],
    *,
    precision: Precision | None = None,
    activations: Activations | None = None,
    contexts: Sequence[int] = (),
    whole: bool = False,
    revision: str | None = None,
    offline: bool = False,
    compiler: Compiler | None = None,
    progress: Progress = silent,
) -> TargetCheck:
    """Compile a model for the NPUs of some devices, in a temporary folder.

    Args:
        model: as in ``build_bundle``.
        targets: devices with an NPU.
        precision: by default the first precision in each device's file.
        activations: as in ``choose_scheme``.
        contexts: cache sizes in tokens, each compiled; by default the device's own.
        whole: compile all layers instead of one.
        revision: of a hub id.
        offline: never contact the hub.
        compiler: a fake in place of the vendor's.
        progress: called at each step.

    Raises:
        ConfigError: unknown device, one without an NPU or a matching scheme, or a context longer than the model's.
        RunError: the compiler is missing or crashed.
    """
    compiler = compiler or VendorCompiler()
    devices = [load_target(t) if isinstance(t, str) else t for t in targets]
    orders = [_Order.of(device, precision, activations, contexts) for device in devices]
    checkpoint = open_model(model, revision=revision, offline=offline, progress=progress)
    for order in orders:
        for sized in order.sized:
            require_context(sized, checkpoint.spec)
        compiler.require(plugin_of(order.target))
    small = checkpoint if whole else one_layer(checkpoint)
    shortest = min(npu_of(t).context for order in orders for t in order.sized)
    windows = calibration_windows(small, shortest)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        lines: dict[tuple[str, str], NpuLine] = {}
        tried = []
        for order in orders:
            key = (order.recipe.name, order.target.fallback)
            if key not in lines:
                bundle = stack.enter_context(write_bundle(Path(folder) / str(len(lines))))
                lines[key] = _line(bundle, order, small, windows, compiler, progress)
            tried.append(_try(lines[key], order, whole))
    off = {n.operator for t in tried for g in t.graphs for n in g.placement.off(t.target.provider)}
    cures = fixes()
    return TargetCheck(
        model=model,
        layers=small.spec.layers,
        all_layers=checkpoint.spec.layers,
        targets=tuple(tried),
        cures=tuple((operator, cures.get(f"op:{operator}", "")) for operator in sorted(off)),
    )


def require_compiled(check: TargetCheck) -> None:
    """Raise unless every graph compiled with every node on the NPU of its device.

    Raises:
        GateFailed: a node would run elsewhere.
        RunError: a graph failed to compile for another reason.
    """
    for tried in check.targets:
        for graph in tried.graphs:
            require_placed(tried.target, graph.placement, graph.error)


@dataclass(frozen=True)
class _Order:
    """A device, in one copy per context length (``sized``), with the scheme and recipe to use."""

    target: Target
    sized: tuple[Target, ...]
    scheme: NpuScheme
    recipe: Recipe

    @classmethod
    def of(
        cls, target: Target, precision: Precision | None, activations: Activations | None, contexts: Sequence[int]
    ) -> _Order:
        npu = npu_of(target)
        wanted = precision or target.precisions[0]
        scheme = choose_scheme(target, wanted, activations)
        recipe = builtin_recipe(wanted, scheme)
        kept = tuple(o for o in recipe.overrides if not _NUMBERED.search(o.match))
        sized = tuple(replace(target, npu=replace(npu, context=c)) for c in dict.fromkeys(contexts or (npu.context,)))
        return cls(target, sized, scheme, replace(recipe, overrides=kept, size_bytes=None, bits_per_weight=None))


def _line(
    bundle: BundleWriter,
    order: _Order,
    checkpoint: Checkpoint,
    windows: NDArray[np.int64],
    compiler: Compiler,
    progress: Progress,
) -> NpuLine:
    """Build up to the CPU graph, whose weight bytes the static graphs share."""
    cpu, recipe = load_target(order.target.fallback), order.recipe
    graph, weights = draw(checkpoint, recipe, order.target.opset)
    small = quantize(graph, weights, recipe, accuracy_level=cpu.accuracy_level).model
    quantized = small.clone()
    name, written = GRAPH_NAMES[recipe.precision], lower(small, cpu)
    bundle.write_graph(written, name, progress=progress)
    return NpuLine(bundle, NpuInputs(checkpoint, recipe, quantized, written, name), windows, compiler, progress)


def _try(line: NpuLine, order: _Order, whole: bool) -> TargetTried:
    graphs: list[Tried] = []
    estimates: list[Estimate] = []
    for target in order.sized:
        context = npu_of(target).context
        found = line.attempt(target, order.scheme)
        for a in found:
            c = a.compilation
            facts = (a.placement, c.traffic, c.seconds, c.peak_rss_bytes, c.error)
            graphs.append(Tried(context, a.role, a.part, a.tokens, *facts))
        for role in ROLES if whole else ():
            chain = [a for a in found if a.role == role]
            if e := estimate(target, role, chain[0].tokens, context, [a.compilation.traffic for a in chain]):
                estimates.append(e)
    recipe = order.recipe
    return TargetTried(
        order.target, recipe.precision, order.scheme.activations, recipe.name, tuple(graphs), tuple(estimates)
    )


def one_layer(checkpoint: Checkpoint) -> Checkpoint:
    """The model reduced to its middle layer, with the full embedding and head."""
    at = checkpoint.spec.layers // 2
    return replace(checkpoint, spec=keep_layers(checkpoint.spec, (at,)), weights=CutWeights(checkpoint.weights, (at,)))
