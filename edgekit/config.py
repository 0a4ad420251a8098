"""TOML files in, Recipe and Target out. Strict: an unknown key is an error that suggests the known one.

A name means a file that ships with edgekit (``targets/cpu.toml``, ``edgekit/recipes/int4.toml``); anything that
ends in ``.toml`` or holds a path separator is a file of the user's.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

from edgekit.errors import ConfigError, did_you_mean
from edgekit.types import Grid, Override, Precision, Recipe, ScaleType, Target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.resources.abc import Traversable

V = TypeVar("V")

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_Verified = Literal["executed", "emulator", "compile-only", "cpu-only", "none"]
_VERIFIED: tuple[_Verified, ...] = get_args(_Verified)
_ACCURACY_LEVELS = range(5)
_BLOCKS = (0, 16, 32, 64, 128, 256)

_GRID_KEYS = ("bits", "block", "symmetric", "scale")
_OVERRIDE_KEYS = ("match", "grid", "keep")
_RECIPE_KEYS = (
    *("name", "precision", "method", "accuracy_level", "smooth", "fast_prefill"),
    *("size_mb", "bits_per_weight"),
    *("linear", "embedding", "override"),
)
_TARGET_KEYS = (
    *("name", "title", "provider", "provider_options", "opset", "precisions", "verified", "lacks", "quirks"),
    *("shared_kv", "accuracy_level", "max_context", "memory_bytes", "bandwidth_bytes_per_s", "notes"),
)


def list_targets() -> tuple[str, ...]:
    """The names of the targets that ship with edgekit, sorted."""
    return _names(_targets())


def load_target(name_or_path: str | Path) -> Target:
    """Read a target by name, or from a TOML file.

    Raises:
        ConfigError: no such target or file; not TOML; an unknown or missing key; a value of the wrong kind; a file
            whose name is not its target's.
    """
    table = _Table.open(name_or_path, _targets(), "target", _TARGET_KEYS)
    options = table.get("provider_options", dict, {})
    for key, value in options.items():
        table.require(isinstance(value, str), f"provider_options.{key}", "text", value)
    return Target(
        name=table.get("name", str),
        title=table.get("title", str),
        provider=table.get("provider", str),
        opset=table.whole("opset", at_least=1),
        precisions=table.words("precisions", PRECISIONS),
        verified=table.choice("verified", _VERIFIED),
        provider_options=tuple(sorted(options.items())),
        lacks=frozenset(table.words("lacks", default=())),
        quirks=frozenset(table.words("quirks", default=())),
        shared_kv=table.get("shared_kv", bool, False),
        accuracy_level=table.choice("accuracy_level", _ACCURACY_LEVELS) if table.has("accuracy_level") else None,
        max_context=table.whole("max_context", at_least=1) if table.has("max_context") else None,
        memory_bytes=table.whole("memory_bytes", at_least=1) if table.has("memory_bytes") else None,
        bandwidth_bytes_per_s=table.positive("bandwidth_bytes_per_s"),
        notes=table.get("notes", str, ""),
    )


def builtin_recipe(precision: Precision) -> Recipe:
    """The recipe that ``--precision`` stands for."""
    return load_recipe(precision)


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe by name (a precision: int4, int8, fp16, fp32), or from a TOML file.

    ``size_mb`` counts megabytes of 10**6 bytes.

    Raises:
        ConfigError: no such recipe or file; not TOML; an unknown or missing key; a value that no grid can have; a
            precision and grids that contradict each other; two budgets.
    """
    table = _Table.open(name_or_path, _recipes(), "recipe", _RECIPE_KEYS)
    precision = table.choice("precision", PRECISIONS)
    size_mb = table.positive("size_mb")
    recipe = Recipe(
        name=table.get("name", str),
        precision=precision,
        method=table.get("method", str, "search"),
        linear=_grid(table, "linear"),
        embedding=_grid(table, "embedding"),
        overrides=tuple(map(_override, table.tables("override", _OVERRIDE_KEYS))),
        accuracy_level=table.choice("accuracy_level", _ACCURACY_LEVELS, 0),
        smooth=_smooth(table),
        fast_prefill=table.get("fast_prefill", bool, False),
        size_bytes=None if size_mb is None else int(size_mb * 1e6),
        bits_per_weight=table.positive("bits_per_weight"),
    )
    quantized = precision in ("int8", "int4")
    if quantized and recipe.linear is None:
        raise table.error(f"precision {precision} needs a [linear] table", "add one: bits, block, symmetric, scale")
    if not quantized and (recipe.linear or recipe.embedding or recipe.overrides):
        raise table.error(f"precision {precision} has no grids", "remove the grids, or set precision to int8 or int4")
    if recipe.size_bytes is not None and recipe.bits_per_weight is not None:
        raise table.error("size_mb and bits_per_weight are both set", "keep one of them")
    return recipe


def _smooth(table: _Table) -> float:
    value = table.positive("smooth") or 0.0
    table.require(value <= 1, "smooth", "between 0 and 1", value)
    return value


def _grid(table: _Table, key: str) -> Grid | None:
    if not table.has(key):
        return None
    grid = table.table(key, _GRID_KEYS)
    return Grid(
        bits=grid.choice("bits", (4, 8)),
        block=grid.choice("block", _BLOCKS),
        symmetric=grid.get("symmetric", bool),
        scale=grid.choice("scale", get_args(ScaleType), "float16"),
    )


def _override(table: _Table) -> Override:
    match = table.get("match", str)
    if table.has("grid") == table.has("keep"):
        raise table.error(f"the override of '{match}' needs grid or keep", 'give grid = {...}, or keep = "float"')
    if table.has("keep"):
        table.choice("keep", ("float",))
    return Override(match, _grid(table, "grid"))


def _targets() -> Traversable:
    """The folder of target files: inside the package in a wheel, beside it in a checkout."""
    package = resources.files("edgekit")
    inside = package / "targets"
    return inside if inside.is_dir() else Path(str(package)).parent / "targets"


def _recipes() -> Traversable:
    return resources.files("edgekit") / "recipes"


def _names(folder: Traversable) -> tuple[str, ...]:
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


@dataclass(frozen=True)
class _Table:
    """One table of one TOML file. Its keys are checked when it is made; its getters check the values."""

    file: str
    where: str
    known: tuple[str, ...]
    values: dict[str, Any]

    def __post_init__(self) -> None:
        for key in self.values:
            if key not in self.known:
                hint = did_you_mean(key, self.known) + f"known keys: {', '.join(self.known)}"
                raise self.error(f"unknown key '{self.where}{key}'", hint)

    @classmethod
    def open(cls, name_or_path: str | Path, folder: Traversable, noun: str, known: tuple[str, ...]) -> _Table:
        """Read a file that ships in ``folder`` or, given a path, one of the user's."""
        text = str(name_or_path)
        ours = not (isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text or "\\" in text)
        source = folder / f"{text}.toml" if ours else Path(text)
        if not source.is_file():
            names = _names(folder)
            hint = f"known: {', '.join(names)}; or give the path of a .toml file"
            if ours:
                raise ConfigError(f"unknown {noun} '{text}'", did_you_mean(text, names) + hint)
            raise ConfigError(f"{text}: no such {noun} file", hint)
        try:
            values = tomllib.loads(source.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{text}: not a TOML file: {error}", "see the files of `edgekit targets list`") from error
        table = cls(source.name if ours else text, "", known, values)
        name = table.get("name", str)
        if noun == "target" and source.name != f"{name}.toml":
            raise table.error(f"the file is called {source.name} and its name is '{name}'", f"rename it to {name}.toml")
        return table

    def error(self, problem: str, hint: str = "") -> ConfigError:
        """A ConfigError that names this file."""
        return ConfigError(f"{self.file}: {problem}", hint)

    def require(self, condition: bool, key: str, expected: str, value: object) -> None:
        """Raise unless ``condition`` holds of the value of ``key``."""
        if not condition:
            raise self.error(f"'{self.where}{key}' must be {expected}, not {value!r}")

    def has(self, key: str) -> bool:
        """Whether the file says anything about ``key``."""
        return key in self.values

    def get(self, key: str, kind: type[V], default: V | None = None) -> V:
        """The value of ``key``, an instance of ``kind``; without a default it must be there."""
        if key not in self.values:
            if default is None:
                raise self.error(f"'{self.where}{key}' is missing", f"required: {_KINDS[kind]}")
            return default
        value = self.values[key]
        self.require(type(value) is kind, key, _KINDS[kind], value)
        return cast("V", value)

    def whole(self, key: str, *, at_least: int) -> int:
        """A whole number."""
        value = self.get(key, int)
        self.require(value >= at_least, key, f"at least {at_least}", value)
        return value

    def positive(self, key: str) -> float | None:
        """A number above zero, or None when the file does not say."""
        if key not in self.values:
            return None
        value = self.values[key]
        self.require(type(value) in (int, float) and value > 0, key, "a number above 0", value)
        return float(value)

    def choice(self, key: str, allowed: Sequence[V], default: V | None = None) -> V:
        """One of the values allowed."""
        value = self.get(key, type(allowed[0]), default)
        if value not in allowed:
            hint = did_you_mean(value, [str(a) for a in allowed]) if isinstance(value, str) else ""
            problem = f"'{self.where}{key}' must be one of {', '.join(map(str, allowed))}, not {value!r}"
            raise self.error(problem, hint.strip())
        return value

    def words(self, key: str, allowed: Sequence[V] = (), default: Sequence[V] | None = None) -> tuple[V, ...]:
        """A list of words, each of them allowed (when ``allowed`` is given) and none twice."""
        values = self.get(key, list, None if default is None else list(default))
        for value in values:
            self.require(isinstance(value, str), key, "a list of words", values)
            self.require(not allowed or value in allowed, key, f"words of {', '.join(map(str, allowed))}", value)
        self.require(len(set(values)) == len(values), key, "a list without repetition", values)
        return tuple(values)

    def table(self, key: str, known: tuple[str, ...]) -> _Table:
        """The table under ``key``."""
        return _Table(self.file, f"{self.where}{key}.", known, self.get(key, dict))

    def tables(self, key: str, known: tuple[str, ...]) -> list[_Table]:
        """The array of tables under ``key``; empty when there is none."""
        rows: list[Any] = self.get(key, list, [])
        self.require(all(isinstance(r, dict) for r in rows), key, f"an array of tables, [[{key}]]", rows)
        return [_Table(self.file, f"{self.where}{key}[{i}].", known, row) for i, row in enumerate(rows)]


_KINDS: dict[type, str] = {
    str: "text",
    int: "a whole number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}
