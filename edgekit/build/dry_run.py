"""Does a model compile for a device's NPU? Answered before a long build, by one layer and the head, in seconds.

It is the line of a build, on a model of one layer: the middle one, whose weights are on the grids of most layers. What
a recipe says about layers by their number is left out. ``whole``: all layers, for their bytes a token.
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
from edgekit.source import open_model
from edgekit.types import Progress, silent
from edgekit.types.npu import ROLES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgekit.bundle import BundleWriter
    from edgekit.estimate.npu_cost import Estimate
    from edgekit.types import Activations, Checkpoint, Precision, Recipe, Target, Weights
    from edgekit.types.device import NpuScheme
    from edgekit.types.npu import Placement, Role, Traffic

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_NUMBERED = re.compile(r"layers\.(\d|\{last\})")


@dataclass(frozen=True)
class Tried:
    """One graph that was given to the compiler, with ``context`` slots of cache. ``error`` is "" where it compiled.

    ``part`` counts from 0 where the model was split. ``traffic`` are the DRAM bytes of a run, None where the compiler
    said none. Seconds and peak RSS are of this machine.
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
    """A model on one device. There are ``estimates`` where all layers were compiled."""

    target: Target
    precision: Precision
    activations: Activations
    recipe: str
    graphs: tuple[Tried, ...]
    estimates: tuple[Estimate, ...]


@dataclass(frozen=True)
class TargetCheck:
    """The whole answer: ``layers`` of the model's ``all_layers`` and the head were compiled.

    ``cures`` are operators that some node has and the target's NPU refused, with the file in lower/ that removes them,
    "" where none does.
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
    """Compile a model for the NPUs of some devices, into a folder that is thrown away.

    Args:
        model: as ``build_bundle``'s.
        targets: devices with an NPU.
        precision: by default what each device's file names first.
        activations: as ``choose_scheme``'s.
        contexts: slots of cache, each compiled; by default the device's own.
        whole: all layers, not one.
        revision: of a hub id.
        offline: never ask the hub.
        compiler: a fake in place of the vendor's.
        progress: told each step.

    Raises:
        ConfigError: no such device, one without an NPU or without such a scheme; more context than the model has.
        RunError: no compiler here, or it crashed.
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
    """Raise unless every node runs on the NPU of each device and everything was compiled.

    Raises:
        GateFailed: a node would run elsewhere.
        RunError: a graph was not compiled for another reason.
    """
    for tried in check.targets:
        for graph in tried.graphs:
            require_placed(tried.target, graph.placement, graph.error)


@dataclass(frozen=True)
class _Order:
    """A device, once more for each number of slots, and how to compute on it."""

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
    """The line of a build as far as its CPU graph, whose bytes the static ones use."""
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
    """The model with its middle layer alone: the embedding and the head are whole."""
    spec = checkpoint.spec
    at = spec.layers // 2
    small = replace(spec, layers=1, windows=spec.windows[at : at + 1], rotary=spec.rotary[at : at + 1])
    return replace(checkpoint, spec=small, weights=OneLayer(checkpoint.weights, at))


class OneLayer:
    """Weights of which one layer is shown, as layer 0."""

    def __init__(self, weights: Weights, layer: int) -> None:
        self._weights, self._prefix = weights, f"model.layers.{layer}."

    def names(self) -> tuple[str, ...]:
        """All tensor names, in model order."""
        return tuple(
            name.replace(self._prefix, "model.layers.0.")
            for name in self._weights.names()
            if name.startswith(self._prefix) or not _LAYER.match(name)
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._weights.shape(self._theirs(name))

    def stored(self, name: str) -> str:
        """How the checkpoint stores it."""
        return self._weights.stored(self._theirs(name))

    def nbytes(self, name: str) -> int:
        """Bytes it occupies in the checkpoint."""
        return self._weights.nbytes(self._theirs(name))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop)."""
        return self._weights.read(self._theirs(name), start, stop)

    def _theirs(self, name: str) -> str:
        return name.replace("model.layers.0.", self._prefix, 1)
