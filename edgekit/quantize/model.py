"""Quantize the float graph by a recipe, and describe the result of each tensor."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from edgekit.errors import QuantizeError, did_you_mean
from edgekit.quantize.nodes import MATMULS, QuantizedTensor, check_layout, store_half
from edgekit.quantize.policy import count_layers, recipe_policy
from edgekit.quantize.tensor import Fit, LazyWeight, cores, quantize_weight
from edgekit.types import TensorEntry
from edgekit.types.layout import Layout
from edgekit.types.tensor_names import EMBEDDING

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from edgekit.quantize.calibrate import Calibration
    from edgekit.quantize.pack import Packed
    from edgekit.types import Grid, GridPolicy, Recipe, Weights


@dataclass(frozen=True)
class Quantized:
    """The rewritten model. ``entries`` describes each tensor after the graph has been written.

    ``errors`` is filled while writing; when a killed build is resumed, its known errors are added.
    """

    model: ir.Model
    errors: dict[str, float]
    entries: Callable[[], tuple[TensorEntry, ...]]


def methods() -> tuple[str, ...]:
    """The quantization methods: files of this folder that define ``fit``."""
    import edgekit.quantize as room

    names = (m.name for m in iter_modules(room.__path__))
    return tuple(n for n in names if hasattr(import_module(f"edgekit.quantize.{n}"), "fit"))


def load_method(name: str) -> Fit:
    """The ``fit`` of a method.

    Raises:
        QuantizeError: unknown method.
    """
    known = methods()
    if name not in known:
        raise QuantizeError(
            f"unknown quantization method '{name}'", f"{did_you_mean(name, known)}known: {', '.join(known)}"
        )
    fit: Fit = import_module(f"edgekit.quantize.{name}").fit
    return fit


def quantize(
    model: ir.Model,
    weights: Weights,
    recipe: Recipe,
    *,
    accuracy_level: int | None = None,
    policy: GridPolicy | None = None,
    calibration: Calibration | None = None,
) -> Quantized:
    """Rewrite the nodes of every weight that the policy quantizes. Lazy: no weight is read or computed yet.

    Args:
        model: the float graph, changed in place; its initializers have the names in ``weights``.
        weights: read when a weight's bytes are written.
        recipe: method, grids and accuracy level; precision fp16 stores the rest as float16.
        accuracy_level: the target's, which overrides the recipe's.
        policy: replaces the recipe's own.
        calibration: rounds the linear weights, instead of the recipe's method.

    Raises:
        QuantizeError: unknown method; a grid that no kernel supports; a weight that is not used as a matrix.
    """
    fit = load_method(recipe.method)
    policy = policy or recipe_policy(recipe, count_layers(weights.names()))
    level = recipe.accuracy_level if accuracy_level is None else accuracy_level
    pool = ThreadPoolExecutor(cores())
    tensors: dict[str, QuantizedTensor] = {}
    errors: dict[str, float] = {}
    for name in weights.names():
        value = model.graph.initializers.get(name)
        grid = policy(name, weights.shape(name)) if value is not None else None
        if value is None or grid is None:
            continue
        tensors[name] = _quantize_value(
            model.graph, value, weights, grid, _computer(weights, name, grid, fit, pool, calibration), level, errors
        )
    if recipe.precision == "fp16":
        for name in weights.names():
            value = model.graph.initializers.get(name)
            if value is not None and len(weights.shape(name)) == 2:
                store_half(model.graph, value)
    return Quantized(model, errors, partial(_entries, model.graph, weights, tensors, errors))


def _quantize_value(
    graph: ir.Graph,
    value: ir.Value,
    weights: Weights,
    grid: Grid,
    compute: Callable[[], Packed],
    level: int,
    errors: dict[str, float],
) -> QuantizedTensor:
    name = str(value.name)
    users = [node for node, _ in value.uses()]
    layout = Layout.of(weights.shape(name), grid)
    check_layout(name, grid, layout, gathered=any(n.op_type == "Gather" for n in users))
    lazy = LazyWeight(compute, partial(errors.__setitem__, name))
    tensor = QuantizedTensor(name, grid, layout, lazy, level)
    for node in users:
        if node.op_type != "Gather" and node.op_type not in MATMULS:
            raise QuantizeError(
                f"{name}: used by {node.op_type}, which has no quantized form",
                f'keep the weight in float: add an [[override]] with match = "{name}" and keep = "float"',
            )
        tensor.replace(graph, node)
    graph.initializers.pop(name)
    return tensor


def _computer(
    weights: Weights, name: str, grid: Grid, fit: Fit, pool: Executor, calibration: Calibration | None
) -> Callable[[], Packed]:
    """What puts a weight on its grid when its bytes are asked for."""
    data_free = partial(quantize_weight, weights, name, grid, fit, pool)
    if calibration is None or name == EMBEDDING:
        return data_free
    return lambda: calibration.take(name) or data_free()


def _entries(
    graph: ir.Graph, weights: Weights, tensors: dict[str, QuantizedTensor], errors: dict[str, float]
) -> tuple[TensorEntry, ...]:
    entries = []
    for name in weights.names():
        shape = weights.shape(name)
        if name in tensors:
            tensor = tensors[name]
            entries.append(
                TensorEntry(name, shape, tensor.grid, "", tensor.layout.nbytes(tensor.grid), errors.get(name))
            )
        elif name in graph.initializers:
            value = graph.initializers[name].const_value
            assert value is not None
            entries.append(TensorEntry(name, shape, None, value.dtype.name.lower(), value.nbytes))
    return tuple(entries)
