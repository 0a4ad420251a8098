"""Strict conversion of dataclasses to JSON and back, for manifests and measurement records.

Fields may be ``str``, ``int``, ``float``, ``bool``, ``None``, ``Path``, ``Literal``, unions of these, ``tuple``,
``frozenset`` and dataclasses of the same, and any of these ``Annotated`` with a range (see ranges). Documents are
untrusted: values without their own range have the default limits of ranges. Standard library only.
"""

from __future__ import annotations

import json
from dataclasses import field, fields, is_dataclass
from functools import cache
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from edgekit.ranges import MAX_ITEMS, MAX_TEXT, MAX_WHOLE, Matching, Unbounded, Within

T = TypeVar("T")

_LATER = "added later"

_WORDS = ("inf", "-inf", "nan")
"""JSON strings for infinite numbers and NaN in fields of type ``ranges.Measured``."""

_CONVERTED = {(float, int), (Path, str)}
"""Pairs (type of the field, type in JSON) that are converted."""


def added_later(default: Any) -> Any:
    """A dataclass field that may be missing in records written before it existed. All other fields are required.

    Args:
        default: its value in such records.
    """
    return field(default=default, metadata={_LATER: True})


def to_json(obj: object, *, indent: int | None = None, brief: bool = False, shown: bool = False) -> str:
    """Write a dataclass as reproducible JSON: fields in declaration order, sets sorted.

    An infinite or NaN ``ranges.Measured`` is written as "inf", "-inf" or "nan".

    Args:
        obj: a dataclass instance.
        indent: spaces per level; None writes one line.
        brief: leave out ``added_later`` fields with their default value, so that adding such a field changes no bytes.
        shown: for output that is not read back: write every infinite or NaN float as a word.

    Raises:
        ValueError: another float is NaN or infinite, or JSON cannot hold a value. The message starts with its path.
    """
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(
        _plain(obj, "$", brief, shown), indent=indent, separators=separators, ensure_ascii=False, allow_nan=False
    )


def from_json(cls: type[T], text: str) -> T:
    """Read what to_json wrote.

    Args:
        cls: the dataclass to build.
        text: a JSON document.

    Raises:
        ValueError: not JSON, a duplicate, unknown or missing key, or a value of the wrong type or out of range. The
            message starts with the key's path, as in ``$.tensors[3].grid.bits: expected int, found "eight"``.
    """
    try:
        data = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise ValueError(f"$: not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("$: nested too deeply") from error
    try:
        value: T = _read(cls, data, "$")
    except OverflowError as error:
        raise ValueError("$: a number is too large for its field") from error
    return value


def _plain(value: object, path: str, brief: bool, worded: bool) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        held = ((f, getattr(value, f.name)) for f in fields(value))
        return {
            f.name: _plain(v, f"{path}.{f.name}", brief, worded or (_odd(v) and _unbounded(type(value), f.name)))
            for f, v in held
            if not (brief and f.metadata.get(_LATER) and v == f.default)
        }
    if isinstance(value, tuple):
        return [_plain(v, f"{path}[{i}]", brief, worded) for i, v in enumerate(value)]
    if isinstance(value, frozenset):
        return sorted(_plain(v, path, brief, worded) for v in value)
    if isinstance(value, Path):
        return value.as_posix()
    if _odd(value):
        if worded:
            return str(value)
        raise ValueError(f"{path}: {value} is not a number that JSON can hold")
    # Exact types: a numpy scalar that slipped in would otherwise be written in numpy's way, or not at all.
    if type(value) in (str, int, float, bool, NoneType):
        return value
    raise ValueError(f"{path}: a {type(value).__name__} has no place in a record")


def _odd(value: object) -> bool:
    """Whether it is a float that JSON has no number for."""
    return isinstance(value, float) and not isfinite(value)


def _unbounded(cls: type, name: str) -> bool:
    hint = _hints(cls)[name]
    return get_origin(hint) is Annotated and isinstance(get_args(hint)[1], Unbounded)


def _read(hint: Any, data: Any, path: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        word = isinstance(args[1], Unbounded) and data in _WORDS
        return float(data) if word else _require(args[1], _read(args[0], data, path), path)
    if origin in (Union, UnionType):
        return _read_union(args, data, path)
    if origin is Literal:
        # Types are compared too, since 1 == True and 1 == 1.0 in Python.
        if not any(type(data) is type(a) and data == a for a in args):
            raise ValueError(f"{path}: expected one of {', '.join(map(repr, args))}, found {_shown(data)}")
        return data
    if origin in (tuple, frozenset):
        return _read_sequence(origin, args, data, path)
    if isinstance(hint, type) and is_dataclass(hint):
        return _read_dataclass(hint, data, path)
    if type(data) is not hint and (hint, type(data)) not in _CONVERTED:
        raise ValueError(f"{path}: expected {_name(hint)}, found {_shown(data)}")
    if type(data) is int and abs(data) > MAX_WHOLE:
        raise ValueError(f"{path}: expected a number of at most {MAX_WHOLE:,}, found a larger one")
    if type(data) is str and (len(data) > MAX_TEXT or "\0" in data):
        raise ValueError(f"{path}: expected text of at most {MAX_TEXT:,} characters without NUL")
    return data if type(data) is hint else hint(data)


def _require(limit: object, value: Any, path: str) -> Any:
    """Return the value if it is in the range of its field."""
    match limit:
        case Within(least, most) if not least <= value <= most:
            raise ValueError(f"{path}: expected a number from {least:,} to {most:,}, found {_shown(value)}")
        case Matching() if not limit.holds(value):
            raise ValueError(f"{path}: expected {limit.words}, found {_shown(value)}")
    return value


def _read_union(options: tuple[Any, ...], data: Any, path: str) -> Any:
    if data is None and NoneType in options:
        return None
    rest = [o for o in options if o is not NoneType]
    if len(rest) == 1:
        return _read(rest[0], data, path)
    for option in rest:
        try:
            return _read(option, data, path)
        except ValueError:
            continue
    raise ValueError(f"{path}: expected {' or '.join(map(_name, options))}, found {_shown(data)}")


def _read_sequence(kind: type, args: tuple[Any, ...], data: Any, path: str) -> Any:
    if type(data) is not list:
        raise ValueError(f"{path}: expected a list, found {_shown(data)}")
    if len(data) > MAX_ITEMS:
        raise ValueError(f"{path}: expected at most {MAX_ITEMS:,} items, found {len(data):,}")
    if kind is frozenset or (len(args) == 2 and args[1] is Ellipsis):
        items = [_read(args[0], v, f"{path}[{i}]") for i, v in enumerate(data)]
        if kind is frozenset and len(set(items)) != len(items):
            raise ValueError(f"{path}: expected no duplicates, found {_shown(data)}")
        return kind(items)
    if len(data) != len(args):
        raise ValueError(f"{path}: expected {len(args)} values, found {len(data)}")
    return tuple(_read(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, data, strict=True)))


def _read_dataclass(cls: type, data: Any, path: str) -> Any:
    if type(data) is not dict:
        raise ValueError(f"{path}: expected an object ({cls.__name__}), found {_shown(data)}")
    hints = _hints(cls)
    names = [f.name for f in fields(cls)]
    for key in data:
        if key not in names:
            raise ValueError(f"{path}.{key}: unknown key of {cls.__name__}")
    for name in names:
        if name not in data and name not in _added_later(cls):
            raise ValueError(f"{path}.{name}: missing key of {cls.__name__}")
    return cls(**{name: _read(hints[name], data[name], f"{path}.{name}") for name in names if name in data})


@cache
def _added_later(cls: type) -> frozenset[str]:
    return frozenset(f.name for f in fields(cls) if f.metadata.get(_LATER))


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"$: duplicate key {key!r}")
        found[key] = value
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"$: the number {text} is too large")
    return value


def _no_constant(word: str) -> Any:
    raise ValueError(f"$: {word} is not JSON")


def _name(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        return _name(get_args(hint)[0])
    return {NoneType: "null", Path: "a path", str: "text"}.get(hint, getattr(hint, "__name__", str(hint)))


def _shown(data: Any) -> str:
    text = json.dumps(data, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
