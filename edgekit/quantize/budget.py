"""A budget in bytes or bits per weight -> a policy: the tensors where 4 bits hurt most get 8, while the bytes last."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgekit.errors import QuantizeError
from edgekit.quantize.model import load_method
from edgekit.quantize.policy import TABLES, pinned_policy, recipe_policy, spend
from edgekit.quantize.sensitivity import measure_sensitivity
from edgekit.types import Grid, Policy, Progress, Recipe, Weights, silent

if TYPE_CHECKING:
    import onnx_ir as ir


def fit_budget(
    model: ir.Model, weights: Weights, recipe: Recipe, beside: int, *, progress: Progress = silent
) -> Policy:
    """The recipe's policy, with as many tensors widened to 8 bits as its budget pays for.

    Which ones is measured: each candidate alone is put on its narrow grid and the divergence of the model's output
    is taken (see sensitivity). Overrides of the recipe stay as they are.

    Args:
        model: the float graph, as built.
        weights: its weights.
        recipe: without a budget, its own policy is returned and nothing is measured.
        beside: bytes of the bundle that are not two-dimensional weights.
        progress: told the tensors measured.

    Raises:
        QuantizeError: the budget is smaller than everything on the narrow grid.
    """
    base = recipe_policy(recipe)
    if recipe.size_bytes is None and recipe.bits_per_weight is None:
        return base
    shapes = {n: weights.shape(n) for n in weights.names() if n in model.graph.initializers}
    matrices = {n: s for n, s in shapes.items() if len(s) == 2}
    if recipe.linear is None:
        raise QuantizeError(f"recipe '{recipe.name}' has no linear grid", "a budget needs one")
    wide = replace(recipe.linear, bits=8, symmetric=True)
    overridden = {n for n in matrices if n not in TABLES and base(n, matrices[n]) != recipe.linear}
    candidates = {n: s for n, s in matrices.items() if n not in TABLES and n not in overridden}
    least = sum(_nbytes(base(n, s), s) for n, s in matrices.items())
    costs = {n: wide.nbytes(s) - recipe.linear.nbytes(s) for n, s in candidates.items()}
    most = least + sum(costs.values())
    budget, unit = _budget(recipe, shapes, beside)
    if budget < least:
        spend(costs, {}, budget - least, least=least + (beside if unit == "bytes" else 0), most=most)
    if budget >= most:
        return pinned_policy(base, dict.fromkeys(candidates, wide))
    gains = measure_sensitivity(
        model, weights, {n: recipe.linear for n in candidates}, load_method(recipe.method), progress=progress
    )
    chosen = spend(costs, gains, budget - least, least=least, most=most)
    return pinned_policy(base, dict.fromkeys(chosen, wide))


def _budget(recipe: Recipe, shapes: dict[str, tuple[int, ...]], beside: int) -> tuple[int, str]:
    """Bytes for the matrices."""
    if recipe.size_bytes is not None:
        return recipe.size_bytes - beside, "bytes"
    assert recipe.bits_per_weight is not None
    count = total = 0
    for shape in shapes.values():
        n = 1
        for dimension in shape:
            n *= dimension
        count += n
        total += 4 * n if len(shape) == 1 else 0
    return int(recipe.bits_per_weight * count / 8) - total, "weights"


def _nbytes(grid: Grid | None, shape: tuple[int, ...]) -> int:
    return 4 * shape[0] * shape[1] if grid is None else grid.nbytes(shape)
