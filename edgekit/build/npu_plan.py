"""What is decided for an NPU before any weight is read: the way onto it, and whether there is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.bundle.mlpackage import require_coremltools
from edgekit.errors import BundleError, ConfigError
from edgekit.lower import lower_static, share_bytes
from edgekit.source import source_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from edgekit.run.npu import Compiler
    from edgekit.types import Checkpoint, ModelSpec, Recipe
    from edgekit.types.device import Activations, Npu, NpuScheme, Plugin, Precision, Target


def choose_scheme(target: Target, precision: Precision, activations: Activations | None = None) -> NpuScheme:
    """How to compute on a target's NPU: the first scheme that takes the precision, or the one asked for.

    Raises:
        ConfigError: the NPU has no such scheme, or it does not take the precision.
    """
    npu = npu_of(target)
    schemes = [r for r in npu.schemes if activations in (None, r.activations)]
    if not schemes:
        has = ", ".join(r.activations for r in npu.schemes)
        raise ConfigError(f"{npu.name} of {target.title} does not compute in {activations}", f"it has {has}")
    chosen = next((r for r in schemes if precision in r.precisions), None)
    if chosen is None:
        takes = " or ".join(dict.fromkeys(p for r in schemes for p in r.precisions))
        how = f" with {activations} activations" if activations else ""
        raise ConfigError(f"{npu.name} of {target.title} does not take {precision} weights{how}", f"it takes {takes}")
    return chosen


def check_room(target: Target, spec: ModelSpec, weight_bytes: int) -> None:
    """Raise unless weights and a float16 cache leave the device a quarter of its memory.

    Raises:
        ConfigError: they do not.
    """
    npu = npu_of(target)
    needed = weight_bytes + 2 * spec.layers * spec.kv_heads * spec.head_dim * 2 * npu.context
    if target.memory_bytes is not None and needed > 0.75 * target.memory_bytes:
        raise ConfigError(
            f"{target.title}: weights of {weight_bytes:,} bytes and a cache for {npu.context} tokens need "
            f"{needed:,} bytes, more than three quarters of its {target.memory_bytes:,}",
            "build fewer bits (`precision=int4`) or a shorter context (`context`)",
        )


def require_context(target: Target, spec: ModelSpec) -> None:
    """Raise when the NPU's cache is to hold more tokens than the model, or one table of its rope, was made for.

    Raises:
        ConfigError: it is.
    """
    context = npu_of(target).context
    if context > spec.context_length:
        raise ConfigError(
            f"a cache for {context} tokens: the model was made for {spec.context_length}", "lower `context`"
        )
    if spec.rope_border is not None and context > spec.rope_border:
        raise ConfigError(
            f"a cache for {context} tokens: the model's longrope turns keys otherwise in sequences beyond "
            f"{spec.rope_border} tokens, and an NPU's runtime cannot make the keys before them again",
            f"lower `context` to {spec.rope_border}",
        )


def check_signs(target: Target, scheme: NpuScheme, recipe: Recipe) -> None:
    """Raise where a method makes scales below zero for 16-bit activations: the compiler drops their sign silently.

    Raises:
        ConfigError: it does.
    """
    if scheme.calibrated and recipe.method != "positive":
        raise ConfigError(
            f"recipe '{recipe.name}': method '{recipe.method}' makes scales below zero, and {npu_of(target).name} of "
            f"{target.title} loses their sign under {scheme.activations} activations",
            'set method = "positive" and symmetric = true in the recipe; without `recipe` one is chosen',
        )


@dataclass(frozen=True)
class NpuInputs:
    """What the graphs for an NPU are made of.

    ``quantized`` is the model before any pass, ``written`` its form for the CPU, which lies at ``graph``. What
    that file holds is read from there, and not quantized once more.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    quantized: ir.Model
    written: ir.Model
    graph: str

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
    """Raise before any weight is read where the work cannot end well.

    Args:
        targets: devices with an NPU.
        activations: as ``choose_scheme``'s.
        checkpoint: the model.
        recipe: how its weights become small.
        budget: bytes of weights that the recipe's budget allows; None without one.
        compiler: the vendor's, or a fake.
        mlpackage: a Core ML package is asked for.

    Raises:
        ConfigError: a device has no such scheme, its cache would hold more than the model was made for, the budget is
            more than its memory, or the scheme cannot take the recipe's method; no Core ML package for it.
        RunError: no compiler here.
        SourceError: the model has no tokenizer to make the calibration's tokens with.
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
    """Raise where the quantized model is too large for a device or cannot be lowered for it. Evaluates no weight.

    Args:
        targets: devices with an NPU.
        activations: as ``choose_scheme``'s.
        checkpoint: the model.
        recipe: how its weights were put on grids.
        quantized: its graph, not lowered; it is not changed.
        mlpackage: a Core ML package is asked for.

    Raises:
        BundleError: the graph would be in parts, which a Core ML package cannot hold.
        ConfigError: a device has not the memory.
        LowerError: a lack that nothing cures, or a layer larger than the NPU takes.
    """
    weight_bytes = sum(v.const_value.nbytes for v in quantized.graph.initializers.values() if v.const_value)
    for target in targets:
        check_room(target, checkpoint.spec, weight_bytes)
        scheme = choose_scheme(target, recipe.precision, activations)
        parts = len(lower_static(quantized, target, npu_of(target), scheme).prefill)
        if mlpackage:
            require_whole(parts)


def require_ml_program(target: Target) -> None:
    """Raise unless a device takes Core ML's packages and they can be written here.

    Raises:
        ConfigError: it takes none.
        BundleError: no coremltools here.
    """
    if target.npu is None or not target.npu.ml_program:
        raise ConfigError(f"{target.title} takes no Core ML package", "build without `mlpackage`")
    require_coremltools()


def require_whole(parts: int) -> None:
    """Raise where a model's graph is in parts: a Core ML package holds it whole.

    Raises:
        BundleError: there are several.
    """
    if parts > 1:
        raise BundleError("the model is in parts, and a package holds it whole", "build without `mlpackage`")


def npu_of(target: Target) -> Npu:
    """The target's NPU.

    Raises:
        ConfigError: it has none that graphs are compiled for.
    """
    if target.npu is None:
        raise ConfigError(f"target '{target.name}' has no NPU to compile for", "see `edgekit targets list`")
    return target.npu


def plugin_of(target: Target) -> Plugin:
    """The package that compiles for the target's NPU.

    Raises:
        ConfigError: there is none; the device compiles by itself.
    """
    plugin = npu_of(target).plugin
    if plugin is None:
        raise ConfigError(f"{target.title} compiles by itself", "its graphs go to the device as they are")
    return plugin
