"""Read a recipe's TOML file. The functions for targets are re-exported from config/target.py.

A name means a file that ships with edgekit (``edgekit/recipes/int4.toml``); anything that ends in ``.toml`` or contains
a path separator is a user's file.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, get_args

from edgekit.config.target import list_targets, load_target
from edgekit.strangers.toml_table import Table, keys_of
from edgekit.types import Grid, Override, Precision, Recipe, ScaleType

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable
    from pathlib import Path

    from edgekit.types.device import NpuScheme


__all__ = ["PRECISIONS", "builtin_recipe", "list_targets", "load_recipe", "load_target"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_BLOCKS = (0, 16, 32, 64, 128, 256)

_KEYS = (*keys_of(Recipe, "size_bytes", "overrides"), "size_mb", "override")


def builtin_recipe(precision: Precision, scheme: NpuScheme | None = None) -> Recipe:
    """The recipe for a precision; an NPU scheme may name its own."""
    return load_recipe(dict(scheme.recipes if scheme else ()).get(precision, precision))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe by name (a precision: int4, int8, fp16, fp32), or from a TOML file.

    ``size_mb`` is in units of 10**6 bytes.

    Raises:
        ConfigError: no such recipe or file, not TOML, an unknown or missing key, an invalid value, grids that do not
            match the precision, or two budgets.
    """
    table = Table.open(name_or_path, _recipes(), "recipe", _KEYS)
    precision = table.choice("precision", PRECISIONS)
    size_mb = table.positive("size_mb")
    recipe = Recipe(
        name=table.get("name", str),
        precision=precision,
        linear=_grid(table, "linear"),
        low=_grid(table, "low"),
        embedding=_grid(table, "embedding"),
        overrides=tuple(map(_override, table.tables("override", (*keys_of(Override), "keep")))),
        accuracy_level=table.choice("accuracy_level", range(5), 0),
        smooth=_smooth(table),
        size_bytes=None if size_mb is None else int(size_mb * 1e6),
        bits_per_weight=table.positive("bits_per_weight"),
        **table.present(method=str, rotate=bool, w8a8_prefill=bool),
    )
    quantized = precision in ("int8", "int4")
    if quantized and recipe.linear is None:
        hint = "add [linear] with bits, block_size, symmetric and scale"
        raise table.error(f"precision {precision} needs a [linear] table", hint)
    if not quantized and (recipe.linear or recipe.low or recipe.embedding or recipe.overrides):
        hint = "remove the grids, or set precision to int8 or int4"
        raise table.error(f"precision {precision} allows no grids", hint)
    if recipe.size_bytes is not None and recipe.bits_per_weight is not None:
        raise table.error("size_mb and bits_per_weight are both set", "remove one of them")
    return recipe


def _smooth(table: Table) -> float:
    value = table.positive("smooth") or 0.0
    table.require(value <= 1, "smooth", "between 0 and 1", value)
    return value


def _grid(table: Table, key: str) -> Grid | None:
    if not table.has(key):
        return None
    grid = table.table(key, keys_of(Grid))
    return Grid(
        bits=grid.choice("bits", (2, 4, 8)),
        block_size=grid.choice("block_size", _BLOCKS),
        symmetric=grid.get("symmetric", bool),
        scale=grid.choice("scale", get_args(ScaleType), "float16"),
    )


def _override(table: Table) -> Override:
    match = table.get("match", str)
    if table.has("grid") == table.has("keep"):
        raise table.error(f"the override of '{match}' needs either grid or keep", 'set grid = {...}, or keep = "float"')
    if table.has("keep"):
        table.choice("keep", ("float",))
    return Override(match, _grid(table, "grid"))


def _recipes() -> Traversable:
    return resources.files("edgekit") / "recipes"
