"""Strict reading of a TOML table: an unknown key is an error that suggests a known one."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields, replace
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar, cast

from edgekit.errors import ConfigError, did_you_mean
from edgekit.strangers import read_plain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.resources.abc import Traversable

V = TypeVar("V")

LARGEST_FILE = 1_000_000
"""Most bytes of a TOML file; those that ship have at most 8,000."""
LARGEST_NUMBER = 2**63 - 1
"""The largest whole number that TOML implementations must support."""
_SHOWN = 60


def file_names(folder: Traversable) -> tuple[str, ...]:
    """Sorted names of the TOML files in a folder, without the suffix."""
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def keys_of(cls: type, *without: str) -> tuple[str, ...]:
    """The names of a dataclass's fields, as keys of a table that is read to it."""
    return tuple(f.name for f in fields(cls) if f.name not in without)


def is_path(name_or_path: str | Path) -> bool:
    """Whether the argument is the path of a user's file rather than the name of one that ships with edgekit."""
    text = str(name_or_path)
    return isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text or "\\" in text


@dataclass(frozen=True)
class Table:
    """A table of a TOML file. Keys are checked on construction, values by the getters."""

    file: str
    where: str
    known: tuple[str, ...]
    values: dict[str, Any]
    example: str = "see the files that come with edgekit"

    def __post_init__(self) -> None:
        for key in self.values:
            if key not in self.known:
                hint = did_you_mean(key, self.known) + f"known keys: {', '.join(self.known)}"
                raise self.error(f"unknown key '{self.where}{key[:60]}'", hint)

    @classmethod
    def open(cls, name_or_path: str | Path, folder: Traversable, noun: str, known: tuple[str, ...]) -> Table:
        """Read a file that ships in ``folder`` or, given a path, a user's file."""
        text = str(name_or_path)
        ours = not is_path(name_or_path)
        source = folder / f"{text}.toml" if ours else Path(text)
        if not _is_there(source):
            names = file_names(folder)
            hint = f"known: {', '.join(names)}; or pass the path of a .toml file"
            if ours:
                raise ConfigError(f"unknown {noun} '{text}'", did_you_mean(text, names) + hint)
            raise ConfigError(f"{noun} file {text} not found", hint)
        values = _parse(source, text, "see the files of `edgekit targets list`")
        table = cls(source.name if ours else text, "", known, values)
        name = table.get("name", str)
        if noun != "recipe" and source.name != f"{name}.toml":
            raise table.error(f"'name' is '{name}', but the file is {source.name}", f"rename it to {name}.toml")
        return table

    @classmethod
    def of(cls, path: Path, noun: str, known: tuple[str, ...], hint: str) -> Table:
        """Read a user's file with any name; ``hint`` says where to find an example."""
        if not _is_there(path):
            raise ConfigError(f"{noun} file {path} not found", hint)
        return cls(str(path), "", known, _parse(path, str(path), hint), hint)

    def error(self, problem: str, hint: str = "") -> ConfigError:
        """A ConfigError that names this file; the default hint points to an example."""
        return ConfigError(f"{self.file}: {problem}", hint or f"correct {self.file}: {self.example}")

    def require(self, condition: bool, key: str, expected: str, value: object) -> None:
        """Raise ConfigError unless ``condition`` is true of the value of ``key``."""
        if not condition:
            hint = f"set '{self.where}{key}' to {expected}; {self.example}"
            raise self.error(f"'{self.where}{key}' must be {expected}, not {shown(value)}", hint)

    def has(self, key: str) -> bool:
        """Whether the table has ``key``."""
        return key in self.values

    def get(self, key: str, kind: type[V], default: V | None = None) -> V:
        """The value of ``key``, an instance of ``kind``. Without a default the key is required."""
        if key not in self.values:
            if default is None:
                raise self.error(f"'{self.where}{key}' is missing", f"set '{self.where}{key}' to {_KINDS[kind]}")
            return default
        value = self.values[key]
        self.require(type(value) is kind, key, _KINDS[kind], value)
        return cast("V", value)

    def present(self, **kinds: type) -> dict[str, Any]:
        """The values of those keys, given with their types, that are in the table; others keep their default."""
        return {key: self.get(key, kind) for key, kind in kinds.items() if key in self.values}

    def whole(self, key: str, *, at_least: int) -> int:
        """A whole number."""
        value = self.get(key, int)
        self.require(not _is_huge(value), key, "a number below 2**63", value)
        self.require(value >= at_least, key, f"at least {at_least}", value)
        return value

    def positive(self, key: str) -> float | None:
        """A number above zero, or None if the key is missing."""
        if key not in self.values:
            return None
        value = self.values[key]
        self.require(_is_number(value) and value > 0, key, "a number above 0", value)
        return float(value)

    def number(self, key: str, *, least: float = 0.0, most: float = inf) -> float | None:
        """A number between two limits, or None if the key is missing."""
        if key not in self.values:
            return None
        value = self.values[key]
        limits = f"a number of at least {least:g}" if most == inf else f"a number between {least:g} and {most:g}"
        self.require(_is_number(value) and least <= value <= most, key, limits, value)
        return float(value)

    def choice(self, key: str, allowed: Sequence[V], default: V | None = None) -> V:
        """One of the allowed values."""
        value = self.get(key, type(allowed[0]), default)
        if value not in allowed:
            hint = did_you_mean(value, [str(a) for a in allowed]) if isinstance(value, str) else ""
            problem = f"'{self.where}{key}' must be one of {', '.join(map(str, allowed))}, not {shown(value)}"
            raise self.error(problem, f"{hint}use one of these; {self.example}")
        return value

    def words(self, key: str, allowed: Sequence[V] = (), default: Sequence[V] | None = None) -> tuple[V, ...]:
        """A list of strings without duplicates, each one of ``allowed`` if that is given."""
        values = self.get(key, list, None if default is None else list(default))
        for value in values:
            self.require(isinstance(value, str), key, "a list of strings", values)
            self.require(not allowed or value in allowed, key, f"a list of {', '.join(map(str, allowed))}", value)
        self.require(len(set(values)) == len(values), key, "a list without duplicates", values)
        return tuple(values)

    def table(self, key: str, known: tuple[str, ...]) -> Table:
        """The table under ``key``."""
        return replace(self, where=f"{self.where}{key}.", known=known, values=self.get(key, dict))

    def texts(self, key: str) -> tuple[tuple[str, str], ...]:
        """The sorted items of a table of strings with any keys; empty if there is none."""
        values = self.get(key, dict, {})
        for name, value in values.items():
            self.require(isinstance(value, str), f"{key}.{name}", "text", value)
        return tuple(sorted(values.items()))

    def fraction(self, key: str) -> float:
        """A number from 0 to 1. The key is required."""
        value = self.values.get(key)
        self.require(_is_number(value) and 0 <= value <= 1, key, "a number between 0 and 1", value)
        return float(self.values[key])

    def tables(self, key: str, known: tuple[str, ...]) -> list[Table]:
        """The array of tables under ``key``; empty if there is none."""
        rows: list[Any] = self.get(key, list, [])
        self.require(all(isinstance(r, dict) for r in rows), key, f"an array of tables, [[{key}]]", rows)
        return [replace(self, where=f"{self.where}{key}[{i}].", known=known, values=row) for i, row in enumerate(rows)]


def shown(value: object) -> str:
    """A value for a message, truncated if it is long."""
    text = f"a number of {value.bit_length():,} bits" if _is_huge(value) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _is_huge(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and abs(value) > LARGEST_NUMBER


def _is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number; bools are not."""
    return type(value) in (int, float) and not _is_huge(value) and isfinite(cast("float", value))


def _is_there(path: Path | Traversable) -> bool:
    """Whether the path exists, be it a pipe, which is refused on opening. An invalid path does not exist."""
    try:
        return path.exists() if isinstance(path, Path) else path.is_file()
    except (OSError, ValueError):
        return False


def _parse(source: Path | Traversable, name: str, hint: str) -> dict[str, Any]:
    data = read_plain(source, LARGEST_FILE, error=ConfigError) if isinstance(source, Path) else source.read_bytes()
    try:
        values = tomllib.loads(data.decode("utf-8"))
        repr(values)  # raises for hexadecimal numbers with too many digits to print
    except RecursionError as error:
        raise ConfigError(f"{name} is not valid TOML: it is nested too deeply", hint) from error
    except ValueError as error:  # from tomllib, UTF-8 or repr
        raise ConfigError(f"{name} is not valid TOML: {str(error)[:200]}", hint) from error
    return values


_KINDS: dict[type, str] = {
    str: "text",
    int: "a whole number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}
