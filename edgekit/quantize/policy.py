"""A policy is one function from a tensor's name and shape to its grid. A recipe is one; a budget makes another."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from edgekit.errors import QuantizeError

if TYPE_CHECKING:
    from edgekit.types import Grid, Policy, Recipe

TABLES = ("model.embed_tokens.weight", "lm_head.weight")
"""The token table and the head: with them a wrong bit costs more than anywhere else."""


def recipe_policy(recipe: Recipe) -> Policy:
    """The recipe's own words: the first override that matches, else the table's or the linear grid."""

    def policy(name: str, shape: tuple[int, ...]) -> Grid | None:
        if len(shape) != 2:
            return None
        for override in recipe.overrides:
            if fnmatchcase(name, override.match):
                return override.grid
        return recipe.embedding if name in TABLES else recipe.linear

    return policy


def pinned_policy(base: Policy, grids: dict[str, Grid]) -> Policy:
    """``base``, except for the tensors named in ``grids``."""

    def policy(name: str, shape: tuple[int, ...]) -> Grid | None:
        return grids.get(name) or base(name, shape)

    return policy


def spend(
    costs: dict[str, int], gains: dict[str, float], budget: int, *, least: int, most: int, unit: str = "bytes"
) -> tuple[str, ...]:
    """Which tensors to widen so that the most divergence goes for the bytes there are: greedy by gain a byte.

    Args:
        costs: extra bytes of each candidate on the wide grid.
        gains: divergence that the narrow grid costs, measured one tensor at a time (they add up well).
        budget: bytes that may be spent on top of ``least``; negative is an error.
        least: bytes with nothing widened, for the message.
        most: bytes with everything widened, for the message.
        unit: what the message counts in.

    Raises:
        QuantizeError: not even the narrow grid fits.
    """
    if budget < 0:
        raise QuantizeError(
            f"the budget is {-budget:,} {unit} short: the smallest file of this recipe has {least:,}",
            f"give at least that, or choose larger blocks; everything at 8 bits takes {most:,}",
        )
    chosen = []
    for name in sorted(costs, key=lambda n: (-gains[n] / costs[n], n)):
        if costs[name] <= budget:
            budget -= costs[name]
            chosen.append(name)
    return tuple(chosen)
