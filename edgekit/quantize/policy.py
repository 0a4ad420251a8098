"""Policies, functions from a tensor's name and shape to its grid, made from a recipe or a budget."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from edgekit.types.tensor_names import EMBEDDING, HEAD

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgekit.types import Grid, GridPolicy, Recipe

TABLES = (EMBEDDING, HEAD)
"""The token table and the head, where quantization errors cost most."""

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def recipe_policy(recipe: Recipe, layers: int) -> GridPolicy:
    """The recipe's policy: the first override that matches, else the embedding's or the linear grid.

    ``{last}`` in an override's glob is the last of the ``layers``.
    """
    overrides = tuple((o.match.replace("{last}", str(layers - 1)), o.grid) for o in recipe.overrides)

    def policy(name: str, shape: tuple[int, ...]) -> Grid | None:
        if len(shape) != 2:
            return None
        for match, grid in overrides:
            if fnmatchcase(name, match):
                return grid
        return recipe.embedding if name in TABLES else recipe.linear

    return policy


def pinned_policy(base: GridPolicy, grids: dict[str, Grid]) -> GridPolicy:
    """``base``, except for the tensors named in ``grids``."""

    def policy(name: str, shape: tuple[int, ...]) -> Grid | None:
        return grids.get(name) or base(name, shape)

    return policy


def count_layers(names: Iterable[str]) -> int:
    """One more than the highest layer number in ``...layers.{i}...`` names; 0 if there is none."""
    return 1 + max((int(m[1]) for n in names if (m := _LAYER.search(n))), default=-1)
