"""Choose the scheme for an NPU and reject impossible builds before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.bundle.mlpackage import require_coremltools
from edgekit.errors import BundleError, ConfigError
from edgekit.lower import lower_static, share_bytes
from edgekit.source import source_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from edgekit.run.npu import Compiler
    from edgekit.types import Checkpoint, ModelSpec, Recipe
    from edgekit.types.device import Activations, Npu, NpuScheme, Plugin, Precision, Target


def choose_scheme(target: Target, precision: Precision, activations: Activations | None = None) -> NpuScheme:
    """The first scheme of a target's NPU that supports the precision and, if given, the activations.

    Raises:
        ConfigError: the NPU has no such scheme.
    """
    npu = npu_of(target)
    schemes = [r for r in npu.schemes if activations in (None, r.activations)]
    if not schemes:
        has = ", ".join(r.activations for r in npu.schemes)
        raise ConfigError(f"{npu.name} of {target.title} does not compute in {activations}", f"supported: {has}")
    chosen = next((r for r in schemes if precision in r.precisions), None)
    if chosen is None:
        has = ", ".join(dict.fromkeys(p for r in schemes for p in r.precisions))
        how = f" with {activations} activations" if activations else ""
        raise ConfigError(
            f"{npu.name} of {target.title} does not support {precision} weights{how}", f"supported: {has}"
        )
    return chosen


def check_room(target: Target, spec: ModelSpec, weight_bytes: int) -> None:
    """Raise ConfigError unless the weights and a float16 cache leave a quarter of the device's memory free."""
    npu = npu_of(target)
    needed = weight_bytes + 2 * spec.layers * spec.kv_heads * spec.head_dim * 2 * npu.context
    if target.memory_bytes is not None and needed > 0.75 * target.memory_bytes:
        raise ConfigError(
            f"{target.title}: weights of {weight_bytes:,} bytes and a cache for {npu.context} tokens need "
            f"{needed:,} bytes, more than three quarters of its {target.memory_bytes:,}",
            "use fewer bits (`precision=int4`) or a shorter context (`context`)",
        )


def require_context(target: Target, spec: ModelSpec) -> None:
    """Raise ConfigError if the NPU's cache is longer than the model's context or crosses longrope's border."""
    context = npu_of(target).context
    if context > spec.context_length:
        raise ConfigError(
            f"a context of {context} tokens is longer than the model's {spec.context_length}", "lower `context`"
        )
    if spec.rope_border is not None and context > spec.rope_border:
        raise ConfigError(
            f"a context of {context} tokens crosses the border of the model's longrope at {spec.rope_border}: beyond "
            "it all keys have other angles, and an NPU's runtime cannot recompute them",
            f"lower `context` to {spec.rope_border}",
        )


def check_signs(target: Target, scheme: NpuScheme, recipe: Recipe) -> None:
    """Raise ConfigError if a recipe may produce negative scales for 16-bit activations: the compiler drops the sign."""
    if scheme.calibrated and recipe.method != "positive":
        raise ConfigError(
            f"recipe '{recipe.name}': method '{recipe.method}' produces negative scales, whose sign "
            f"{npu_of(target).name} of {target.title} ignores under {scheme.activations} activations",
            'set method = "positive" and symmetric = true in the recipe, or omit `recipe`',
        )


@dataclass(frozen=True)
class NpuInputs:
    """The inputs of the NPU graphs.

    ``quantized`` is the model before any pass, ``written`` its form for the CPU, stored at ``graph``. Weights in that
    file are read from there instead of being quantized again. ``windows`` [n, tokens] is the text that the weights were
    fitted to, None if there was none.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    quantized: ir.Model
    written: ir.Model
    graph: str
    windows: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        share_bytes(self.quantized, self.written.graph.initializers)


def require_buildable(
    targets: Sequence[Target],
    activations: Activations | None,
    checkpoint: Checkpoint,
    recipe: Recipe,
    budget: int | None,
    *,
    compiler: Compiler,
    mlpackage: bool,
) -> None:
    """Raise if a build is bound to fail, before any weight is read.

    Args:
        targets: devices with an NPU.
        activations: as in ``choose_scheme``.
        checkpoint: the model.
        recipe: how its weights are quantized.
        budget: bytes of weights that the recipe's budget allows; None without one.
        compiler: the vendor's, or a fake.
        mlpackage: whether a Core ML package is to be written.

    Raises:
        ConfigError: a device has no matching scheme, too little memory for the budget or no use for a Core ML package;
            its context is longer than the model's; the scheme cannot use the recipe's method.
        RunError: the compiler is missing.
        SourceError: the model has no tokenizer for the calibration text.
    """
    for target in targets:
        require_context(target, checkpoint.spec)
        check_room(target, checkpoint.spec, budget or 0)
        check_signs(target, choose_scheme(target, recipe.precision, activations), recipe)
        if plugin := npu_of(target).plugin:
            compiler.require(plugin)
        if mlpackage:
            require_ml_program(target)
    source_tokenizer(checkpoint)


def require_lowerable(
    targets: Sequence[Target],
    activations: Activations | None,
    checkpoint: Checkpoint,
    recipe: Recipe,
    quantized: ir.Model,
    *,
    mlpackage: bool,
) -> None:
    """Raise if the quantized model is too large for a device or cannot be lowered for it. Evaluates no weight.

    Args:
        targets: devices with an NPU.
        activations: as in ``choose_scheme``.
        checkpoint: the model.
        recipe: how its weights were quantized.
        quantized: its graph before lowering; not modified.
        mlpackage: whether a Core ML package is to be written.

    Raises:
        BundleError: the graph would be split, which a Core ML package does not allow.
        ConfigError: a device has too little memory.
        LowerError: an unsupported operator has no rewrite, or a layer is too large for one graph of the NPU.
    """
    weight_bytes = sum(v.const_value.nbytes for v in quantized.graph.initializers.values() if v.const_value)
    for target in targets:
        check_room(target, checkpoint.spec, weight_bytes)
        scheme = choose_scheme(target, recipe.precision, activations)
        parts = len(lower_static(quantized, target, npu_of(target), scheme).prefill)
        if mlpackage:
            require_whole(parts)


def require_ml_program(target: Target) -> None:
    """Raise unless a device uses Core ML packages and they can be written here.

    Raises:
        ConfigError: the device does not use them.
        BundleError: coremltools is not installed.
    """
    if target.npu is None or not target.npu.ml_program:
        raise ConfigError(f"{target.title} does not use Core ML packages", "build without `mlpackage`")
    require_coremltools()


def require_whole(parts: int) -> None:
    """Raise BundleError if a model's graph is split: a Core ML package must hold all of it."""
    if parts > 1:
        raise BundleError(
            f"the model is split into {parts} graphs, but a Core ML package must hold all of it",
            "build without `mlpackage`",
        )


def npu_of(target: Target) -> Npu:
    """The target's NPU.

    Raises:
        ConfigError: it has none.
    """
    if target.npu is None:
        raise ConfigError(
            f"target '{target.name}' has no NPU to compile for", "run `edgekit targets list` to see targets with one"
        )
    return target.npu


def plugin_of(target: Target) -> Plugin:
    """The package that compiles for the target's NPU.

    Raises:
        ConfigError: there is none; the device compiles the graphs itself.
    """
    plugin = npu_of(target).plugin
    if plugin is None:
        raise ConfigError(
            f"{target.title} compiles graphs itself, so there is no compiler to run here",
            "build with `edgekit build` and copy the bundle to the device",
        )
    return plugin
