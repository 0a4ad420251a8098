"""One table of a TOML file, read strictly: an unknown key is an error that suggests the known one."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
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
"""Bytes of a TOML file; those that ship have 8,000 at most."""
LARGEST_NUMBER = 2**63 - 1
"""Of a whole number, as TOML promises to keep them."""
_SHOWN = 60


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
    example: str = "the files that come with edgekit show how"

    def __post_init__(self) -> None:
        for key in self.values:
            if key not in self.known:
                hint = did_you_mean(key, self.known) + f"known keys: {', '.join(self.known)}"
                raise self.error(f"unknown key '{self.where}{key[:60]}'", hint)

    @classmethod
    def open(cls, name_or_path: str | Path, folder: Traversable, noun: str, known: tuple[str, ...]) -> Table:
        """Read a file that ships in ``folder`` or, given a path, one of the user's."""
        text = str(name_or_path)
        ours = not is_path(name_or_path)
        source = folder / f"{text}.toml" if ours else Path(text)
        if not _is_there(source):
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
        if not _is_there(path):
            raise ConfigError(f"{path}: no such {noun} file", hint)
        return cls(str(path), "", known, _parse(path, str(path), hint), hint)

    def error(self, problem: str, hint: str = "") -> ConfigError:
        """A ConfigError that names this file; without a hint of its own it says where such a file is described."""
        return ConfigError(f"{self.file}: {problem}", hint or f"correct {self.file}: {self.example}")

    def require(self, condition: bool, key: str, expected: str, value: object) -> None:
        """Raise unless ``condition`` holds of the value of ``key``."""
        if not condition:
            hint = f"give '{self.where}{key}' {expected}; {self.example}"
            raise self.error(f"'{self.where}{key}' must be {expected}, not {shown(value)}", hint)

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
        self.require(not _is_huge(value), key, "a number that a file can be meant to hold", value)
        self.require(value >= at_least, key, f"at least {at_least}", value)
        return value

    def positive(self, key: str) -> float | None:
        """A number above zero, or None when the file does not say."""
        if key not in self.values:
            return None
        value = self.values[key]
        self.require(_is_number(value) and value > 0, key, "a number above 0", value)
        return float(value)

    def number(self, key: str, *, least: float = 0.0, most: float = inf) -> float | None:
        """A number between two limits, or None when the file does not say."""
        if key not in self.values:
            return None
        value = self.values[key]
        limits = f"a number of at least {least:g}" if most == inf else f"a number between {least:g} and {most:g}"
        self.require(_is_number(value) and least <= value <= most, key, limits, value)
        return float(value)

    def choice(self, key: str, allowed: Sequence[V], default: V | None = None) -> V:
        """One of the values allowed."""
        value = self.get(key, type(allowed[0]), default)
        if value not in allowed:
            hint = did_you_mean(value, [str(a) for a in allowed]) if isinstance(value, str) else ""
            problem = f"'{self.where}{key}' must be one of {', '.join(map(str, allowed))}, not {shown(value)}"
            raise self.error(problem, f"{hint}one of these it must be; {self.example}")
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
        return replace(self, where=f"{self.where}{key}.", known=known, values=self.get(key, dict))

    def texts(self, key: str) -> tuple[tuple[str, str], ...]:
        """A table of texts under any keys, sorted; empty when there is none."""
        values = self.get(key, dict, {})
        for name, value in values.items():
            self.require(isinstance(value, str), f"{key}.{name}", "text", value)
        return tuple(sorted(values.items()))

    def fraction(self, key: str) -> float:
        """A number from 0 to 1 that must be there."""
        value = self.values.get(key)
        self.require(_is_number(value) and 0 <= value <= 1, key, "a number between 0 and 1", value)
        return float(self.values[key])

    def tables(self, key: str, known: tuple[str, ...]) -> list[Table]:
        """The array of tables under ``key``; empty when there is none."""
        rows: list[Any] = self.get(key, list, [])
        self.require(all(isinstance(r, dict) for r in rows), key, f"an array of tables, [[{key}]]", rows)
        return [replace(self, where=f"{self.where}{key}[{i}].", known=known, values=row) for i, row in enumerate(rows)]


def shown(value: object) -> str:
    """A value as a message can hold it: its beginning, where it is long."""
    text = f"a number of {value.bit_length():,} bits" if _is_huge(value) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _is_huge(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and abs(value) > LARGEST_NUMBER


def _is_number(value: object) -> TypeGuard[float]:
    """A number that a float holds; true and false are none."""
    return type(value) in (int, float) and not _is_huge(value) and isfinite(cast("float", value))


def _is_there(path: Path | Traversable) -> bool:
    """Whether something has this name. What cannot be a name is not there; a pipe is, and is refused when opened."""
    try:
        return path.exists() if isinstance(path, Path) else path.is_file()
    except (OSError, ValueError):
        return False


def _parse(source: Path | Traversable, name: str, hint: str) -> dict[str, Any]:
    data = read_plain(source, LARGEST_FILE, error=ConfigError) if isinstance(source, Path) else source.read_bytes()
    try:
        values = tomllib.loads(data.decode("utf-8"))
        # Hexadecimal numbers may have more digits than can be said again.
        repr(values)
    except RecursionError as error:
        raise ConfigError(f"{name}: not a TOML file: nested too deeply", hint) from error
    except ValueError as error:  # of tomllib, of UTF-8, of numbers
        raise ConfigError(f"{name}: not a TOML file: {str(error)[:200]}", hint) from error
    return values


_KINDS: dict[type, str] = {
    str: "text",
    int: "a whole number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}
