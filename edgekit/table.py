"""One table of a TOML file, read strictly: an unknown key is an error that suggests the known one."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from edgekit.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.resources.abc import Traversable

V = TypeVar("V")


def file_names(folder: Traversable) -> tuple[str, ...]:
    """What the TOML files of a folder are called, sorted."""
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def is_path(name_or_path: str | Path) -> bool:
    """Whether a file of the user's is meant, rather than the name of one that ships with edgekit."""
    text = str(name_or_path)
    return isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text or "\\" in text


@dataclass(frozen=True)
class Table:
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
    def open(cls, name_or_path: str | Path, folder: Traversable, noun: str, known: tuple[str, ...]) -> Table:
        """Read a file that ships in ``folder`` or, given a path, one of the user's."""
        text = str(name_or_path)
        ours = not is_path(name_or_path)
        source = folder / f"{text}.toml" if ours else Path(text)
        if not source.is_file():
            names = file_names(folder)
            hint = f"known: {', '.join(names)}; or give the path of a .toml file"
            if ours:
                raise ConfigError(f"unknown {noun} '{text}'", did_you_mean(text, names) + hint)
            raise ConfigError(f"{text}: no such {noun} file", hint)
        values = _parse(source, text, "see the files of `edgekit targets list`")
        table = cls(source.name if ours else text, "", known, values)
        name = table.get("name", str)
        if noun != "recipe" and source.name != f"{name}.toml":
            raise table.error(f"the file is called {source.name} and its name is '{name}'", f"rename it to {name}.toml")
        return table

    @classmethod
    def of(cls, path: Path, noun: str, known: tuple[str, ...], hint: str) -> Table:
        """Read a file of the user's that may be called anything; ``hint`` says where one like it can be seen."""
        if not path.is_file():
            raise ConfigError(f"{path}: no such {noun} file", hint)
        return cls(str(path), "", known, _parse(path, str(path), hint))

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

    def number(self, key: str, *, least: float = 0.0, most: float = inf) -> float | None:
        """A number between two limits, or None when the file does not say."""
        if key not in self.values:
            return None
        value = self.values[key]
        limits = f"a number of at least {least:g}" if most == inf else f"a number between {least:g} and {most:g}"
        self.require(type(value) in (int, float) and isfinite(value) and least <= value <= most, key, limits, value)
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

    def table(self, key: str, known: tuple[str, ...]) -> Table:
        """The table under ``key``."""
        return Table(self.file, f"{self.where}{key}.", known, self.get(key, dict))

    def texts(self, key: str) -> tuple[tuple[str, str], ...]:
        """A table of texts under any keys, sorted; empty when there is none."""
        values = self.get(key, dict, {})
        for name, value in values.items():
            self.require(isinstance(value, str), f"{key}.{name}", "text", value)
        return tuple(sorted(values.items()))

    def fraction(self, key: str) -> float:
        """A number from 0 to 1 that must be there."""
        value = self.values.get(key)
        self.require(isinstance(value, int | float) and 0 <= value <= 1, key, "a number between 0 and 1", value)
        return float(self.values[key])

    def tables(self, key: str, known: tuple[str, ...]) -> list[Table]:
        """The array of tables under ``key``; empty when there is none."""
        rows: list[Any] = self.get(key, list, [])
        self.require(all(isinstance(r, dict) for r in rows), key, f"an array of tables, [[{key}]]", rows)
        return [Table(self.file, f"{self.where}{key}[{i}].", known, row) for i, row in enumerate(rows)]


def _parse(source: Path | Traversable, shown: str, hint: str) -> dict[str, Any]:
    try:
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{shown}: not a TOML file: {error}", hint) from error


_KINDS: dict[type, str] = {
    str: "text",
    int: "a whole number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}
