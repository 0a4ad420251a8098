"""Turn a budget in bytes or bits per weight into a policy that spends bytes on the weights that need them most.

The choices for a weight are the recipe's linear grid, the same with blocks twice as large, 8 bits in blocks or per
channel, and the recipe's low grid with blocks of its own size, half and twice that. The divergence that each costs is
measured (see sensitivity); bytes are spent greedily where they save most.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from math import prod
from typing import TYPE_CHECKING

from edgekit.errors import QuantizeError
from edgekit.quantize.model import load_method
from edgekit.quantize.policy import TABLES, count_layers, pinned_policy, recipe_policy
from edgekit.quantize.sensitivity import measure_sensitivity
from edgekit.quantize.tensor import Fit, cores, quantize_weight
from edgekit.types import Grid, GridPolicy, Progress, Recipe, Weights, silent
from edgekit.types.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

SMALLEST_BLOCK, LARGEST_BLOCK = 32, 128


@dataclass(frozen=True)
class Option:
    """A grid for one weight, its size in bytes, and its expected divergence in nats."""

    grid: Grid
    bytes: int
    divergence: float


def fit_budget(
    model: ir.Model,
    weights: Weights,
    recipe: Recipe,
    beside: int,
    *,
    text: NDArray[np.int64] | None = None,
    progress: Progress = silent,
) -> GridPolicy:
    """The policy that meets the recipe's budget, or the recipe's own policy if it has none.

    A budget applies to all linear weights that the recipe quantizes. Weights that an override keeps in floating point
    stay so, and the table keeps its grid.

    Args:
        model: the float graph, as built.
        weights: its weights; read twice and a half when there is a budget.
        recipe: ``size_bytes`` or ``bits_per_weight`` is the budget.
        beside: bytes of the bundle that are not two-dimensional weights.
        text: as in ``measure_sensitivity``.
        progress: called with the number of tensors measured.

    Raises:
        QuantizeError: even the smallest grids exceed the budget.
    """
    base = recipe_policy(recipe, count_layers(weights.names()))
    if recipe.size_bytes is None and recipe.bits_per_weight is None:
        return base
    choices = _choices(model, weights, recipe, base)
    budget = _budget(recipe, choices.shapes, beside)
    least = choices.fixed + choices.sum(min)
    if budget < least:
        raise QuantizeError(*_too_small(recipe, choices.shapes, beside, least))
    fit = load_method(recipe.method)
    measured = recipe.low or _linear(recipe)
    grids = dict.fromkeys(choices.grids, measured)
    costs = measure_sensitivity(model, weights, grids, fit, text=text, progress=progress)
    options = weigh_grids(weights, choices.grids, costs, measured, fit, progress)
    return pinned_policy(base, spend(options, budget - choices.fixed))


def most_bytes(model: ir.Model, weights: Weights, recipe: Recipe, beside: int) -> int | None:
    """The most bytes that all weights can take under a recipe's budget; None without a budget. Reads no weight.

    Args:
        model: as in ``fit_budget``.
        weights: only their shapes are used.
        recipe: as in ``fit_budget``.
        beside: as in ``fit_budget``.

    Raises:
        QuantizeError: the recipe has a budget but no grid for linear weights.
    """
    if recipe.size_bytes is None and recipe.bits_per_weight is None:
        return None
    choices = _choices(model, weights, recipe, recipe_policy(recipe, count_layers(weights.names())))
    matrices = min(_budget(recipe, choices.shapes, beside), choices.fixed + choices.sum(max))
    return matrices + sum(4 * prod(s) for s in choices.shapes.values() if len(s) != 2)


@dataclass(frozen=True)
class _Choices:
    """The choices under a budget: ``grids`` to choose from for each weight, ``fixed`` bytes of all other matrices."""

    shapes: dict[str, tuple[int, ...]]
    grids: dict[str, tuple[Grid, ...]]
    fixed: int

    def sum(self, pick: Callable[[Iterable[int]], int]) -> int:
        """Bytes of all weights with a choice, each on its smallest (min) or largest (max) grid."""
        return sum(pick(_nbytes(g, self.shapes[n]) for g in grids) for n, grids in self.grids.items())


def _choices(model: ir.Model, weights: Weights, recipe: Recipe, base: GridPolicy) -> _Choices:
    linear = _linear(recipe)
    shapes = {n: weights.shape(n) for n in weights.names() if n in model.graph.initializers}
    matrices = {n: s for n, s in shapes.items() if len(s) == 2}
    grids = {
        n: _grids(linear, recipe.low, s) for n, s in matrices.items() if n not in TABLES and base(n, s) is not None
    }
    fixed = sum(_nbytes(base(n, s), s) for n, s in matrices.items() if n not in grids)
    return _Choices(shapes, grids, fixed)


def _linear(recipe: Recipe) -> Grid:
    if recipe.linear is None:
        raise QuantizeError(
            f"recipe '{recipe.name}' has no [linear] grid, which a budget needs", "add [linear] to the recipe"
        )
    return recipe.linear


def spend(options: Mapping[str, tuple[Option, ...]], budget: int) -> dict[str, Grid]:
    """Choose a grid for every weight: start from the smallest, then take the steps that save most divergence per byte.

    Args:
        options: the options of each weight.
        budget: bytes for all weights; at least the sum of the smallest options.
    """
    hulls = {name: _hull(choices) for name, choices in options.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    budget -= sum(o.bytes for o in chosen.values())
    steps = [_step(name, hull, 0) for name, hull in hulls.items() if len(hull) > 1]
    heapify(steps)
    while steps:
        _, name, at = heappop(steps)
        hull = hulls[name]
        cost = hull[at + 1].bytes - hull[at].bytes
        if cost > budget:
            continue
        budget -= cost
        chosen[name] = hull[at + 1]
        if at + 2 < len(hull):
            heappush(steps, _step(name, hull, at + 1))
    return {name: option.grid for name, option in chosen.items()}


def _step(name: str, hull: list[Option], at: int) -> tuple[float, str, int]:
    a, b = hull[at], hull[at + 1]
    return (b.divergence - a.divergence) / (b.bytes - a.bytes), name, at


def _hull(options: tuple[Option, ...]) -> list[Option]:
    """The lower convex hull of the options, smallest first: each step saves less divergence per byte than the last."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda o: (o.bytes, o.divergence)):
        if hull and option.divergence >= hull[-1].divergence:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _slope(a: Option, b: Option) -> float:
    return (b.divergence - a.divergence) / (b.bytes - a.bytes)


def _grids(linear: Grid, low: Grid | None, shape: tuple[int, ...]) -> tuple[Grid, ...]:
    """The choices for a weight of this shape."""
    wide = replace(linear, bits=8, symmetric=True)
    grids = (*_wider(linear, shape), linear, replace(wide, block_size=0), wide)
    if low is None:
        return grids
    half = (replace(low, block_size=low.block_size // 2),) if low.block_size // 2 >= SMALLEST_BLOCK else ()
    return *_wider(low, shape), low, *half, *grids


def _wider(grid: Grid, shape: tuple[int, ...]) -> tuple[Grid, ...]:
    """The grid with blocks twice as large, if they divide the rows."""
    block = grid.block_size * 2
    return (replace(grid, block_size=block),) if 0 < block <= LARGEST_BLOCK and shape[1] % block == 0 else ()


def weigh_grids(
    weights: Weights,
    grids: Mapping[str, tuple[Grid, ...]],
    costs: Mapping[str, float],
    measured: Grid,
    fit: Fit,
    progress: Progress,
) -> dict[str, tuple[Option, ...]]:
    """Estimate the divergence of every grid from one measurement: it grows with the square of the weight error.

    Args:
        weights: read once for every grid.
        grids: the choices for each weight, including ``measured``.
        costs: the measured divergence in nats of each weight on ``measured``.
        measured: the measured grid.
        fit: the method.
        progress: called with the number of tensors done.
    """
    options: dict[str, tuple[Option, ...]] = {}
    with ThreadPoolExecutor(cores()) as pool:
        for i, (name, choices) in enumerate(grids.items()):
            progress("weighing grids", i, len(grids), "tensors")
            errors = {grid: quantize_weight(weights, name, grid, fit, pool).error for grid in choices}
            scale = costs[name] / max(errors[measured], 1e-12) ** 2
            shape = weights.shape(name)
            options[name] = tuple(Option(g, _nbytes(g, shape), scale * errors[g] ** 2) for g in choices)
    progress("weighing grids", len(grids), len(grids), "tensors")
    return options


def _budget(recipe: Recipe, shapes: Mapping[str, tuple[int, ...]], beside: int) -> int:
    """The bytes that the budget leaves for matrices."""
    if recipe.size_bytes is not None:
        return recipe.size_bytes - beside
    assert recipe.bits_per_weight is not None
    small = sum(4 * prod(s) for s in shapes.values() if len(s) != 2)
    return int(recipe.bits_per_weight * sum(map(prod, shapes.values())) / 8) - small


def _too_small(recipe: Recipe, shapes: Mapping[str, tuple[int, ...]], beside: int, least: int) -> tuple[str, str]:
    """The message and hint for a budget that cannot be met."""
    if recipe.size_bytes is not None:
        smallest = f"{(least + beside + 50_000) / 1e6:.1f} MB"
        return f"{recipe.size_bytes / 1e6:g} MB is too small: the smallest bundle takes {smallest}", "raise `size_mb`"
    small = sum(4 * prod(s) for s in shapes.values() if len(s) != 2)
    bits = 8 * (least + small) / sum(map(prod, shapes.values()))
    return f"{recipe.bits_per_weight:g} bits per weight is too small: the minimum is {bits + 0.005:.2f}", "raise `bits`"


def _nbytes(grid: Grid | None, shape: tuple[int, ...]) -> int:
    return 4 * prod(shape) if grid is None else Layout.of(shape, grid).nbytes(grid)
