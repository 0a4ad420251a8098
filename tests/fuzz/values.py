"""What strangers write where something else was meant: values, and ways to damage JSON, TOML, text and files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from tests.fuzz.case import Step, pack, put, write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEEP = 100_000
_LONG = "a" * 1_000_000
TEXTS = (
    "", " ", "a" * 300, "../victim/note.txt", "/etc/passwd", "../../../../etc/passwd", "~/.bashrc", ".", "..", "/",
    "out/made", "-", "--help", "nan", "\x1b]0;owned\x07", "\x1b[2J", "\x1b]52;c;cm0gLXJm\x07", "a\x00b", "a\nb", "\r\n",
    "\u202eabc", "\ufeff", "%s%n", "{0.__class__}", "{{ 7 * 7 }}", "(a+)+$", "[", "CON", "é" * 200, "\U0001f600",
)  # fmt: skip
NUMBERS = (
    "-1", "0", "1", "-0.0", "0.5", "1e308", "-1e308", "1e-320", "2147483648", "4294967296", "9223372036854775807",
    "9223372036854775808", "-9223372036854775809", "1" + "0" * 400, "1" + "0" * 5000, "1099511627776", "65536",
)  # fmt: skip
NO_NUMBERS = ("NaN", "Infinity", "-Infinity", "1e400", "-1e400")
"""What Python's reader takes and JSON does not know, or no float holds."""
NESTED = ("[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP)
BROKEN = ("", "{", "tru", "'a'", "1,", '"\x01"', "1 2", "0x10", "\\")
"""No JSON at all."""
RAW = (
    *("null", "true", "false", "[]", "{}", "[null]", '[[1, 2], "a"]', '{"a": 1}', '"\\ud800"', json.dumps(_LONG)),
    *(json.dumps(text) for text in TEXTS), *NUMBERS, *NO_NUMBERS, *NESTED, *BROKEN, *(f'"{n}"' for n in NUMBERS[:4]),
)  # fmt: skip
TOML = (
    *("nan", "inf", "-inf", "true", "[]", "{}", "[[1], 'a']", "1979-05-27", "07:32:00", "{ a = 1 }", "0x7f"),
    *(json.dumps(text) for text in TEXTS if "\x00" not in text), *NUMBERS, "1e400", "[" * DEEP + "]" * DEEP, "", "'",
    "[" * 300 + "]" * 300, json.dumps(_LONG), "{ a = " * 500 + "1" + "}" * 500, '"""', "1_", "_1", '"\\ud800"', "0o9",
)  # fmt: skip
ARGUMENTS = (
    *(text for text in TEXTS if "\x00" not in text), *(n for n in NUMBERS if len(n) < 5000), "nan", "inf", "-inf",
    "1e400", "1e-400", "1_000", "0x10", " 1", "٣", "1,2", ",", "0,", "1," * 3000, "1" * 4301, "none", "None",
    "true", "missing.toml", "missing", "model", "bundle", "bundle/edgekit.json", "model/config.json", "policy.toml",
    "questions.jsonl", "fifo", "zero", "folder", "loop", "locked", "notes.txt", "a" * 5000, "sqlite:///out/h.db",
    "sqlite:///victim/h.db", "postgresql://u:p@localhost/x", "http://[", "http://127.0.0.1:9/v1", "file:///etc/passwd",
    "127.0.0.1", "::1", "0.0.0.0", "256.1.1.1", "localhost", "cpu", "int4", "0.05@0.95", "nan@0.95", "0@0", "1@1",
)  # fmt: skip


def places(document: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to every value of a document, the whole first."""
    yield at
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield from places(value, (*at, key))


def value_at(document: Any, where: tuple[str | int, ...]) -> Any:
    """The value at a place."""
    for key in where:
        document = document[key]
    return document


def packed(raw: str) -> str:
    """Raw text for a step, compressed where it is long."""
    return raw if len(raw) < 2000 else pack(raw)


def is_impossible(old: Any, raw: str) -> bool:
    """Whether ``raw`` can never stand where ``old`` stood, in a document whose reader knows its types."""
    if raw in (*NO_NUMBERS, *NESTED, *BROKEN):
        return True
    try:
        new = json.loads(raw)
    except (ValueError, RecursionError):
        return True
    if old is None or new is None:
        return False
    kinds = {bool: "truth", int: "number", float: "number", str: "text", list: "list", dict: "object"}
    return kinds[type(old)] != kinds[type(new)]


def json_steps(path: str, document: Any, *, typed: bool, under: tuple[str | int, ...] = ()) -> st.SearchStrategy[Any]:
    """(what, steps, impossible) for a JSON file that holds ``document``.

    Args:
        path: of the file in the case's folder.
        document: what it holds.
        typed: its reader knows the type of every value and every key.
        under: only values below this place.
    """
    inside = value_at(document, under)
    ways = [(*under, *way) for way in places(inside)]
    keyed = [way for way in ways if way and isinstance(way[-1], str)]

    def change(way: tuple[str | int, ...], raw: str) -> Any:
        bad = typed and is_impossible(value_at(document, way), raw)
        return _named("set", way, raw), (Step("set", path, packed(raw), way),), bad or (typed and not way)

    sets = st.builds(change, st.sampled_from(ways), st.sampled_from(RAW))
    options = [sets, sets, sets]
    if len(ways) > 1:
        drops = st.sampled_from(ways[1:]).map(lambda way: (_named("drop", way), (Step("drop", path, "", way),), False))
        options.append(drops)
    if keyed:
        twice = st.builds(
            lambda way, raw: (_named("twice", way, raw), (Step("twice", path, packed(raw), way),), typed),
            st.sampled_from(keyed), st.sampled_from(RAW[:5]),
        )  # fmt: skip
        renamed = st.builds(
            lambda way, name: (_named("rename", way, name), (Step("rename", path, packed(name), way),), typed),
            st.sampled_from(keyed), st.sampled_from([t for t in TEXTS if t]),
        )  # fmt: skip
        options += [twice, renamed]
    return st.one_of(options)


def toml_text(document: dict[str, Any], where: tuple[str | int, ...] = (), raw: str = "") -> str:
    """A TOML document with ``raw`` at a place: its tables are written inline, a key a line."""
    stand_in = "\u2060here\u2060"
    if where:
        document = json.loads(json.dumps(document))
        value_at(document, where[:-1])[where[-1]] = stand_in
    lines = [f"{_toml(key)} = {_toml(value)}" for key, value in document.items()]
    return "\n".join(lines).replace(json.dumps(stand_in, ensure_ascii=False), raw) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def toml_steps(path: str, document: dict[str, Any]) -> st.SearchStrategy[Any]:
    """(what, steps, impossible) for a TOML file of the user's that says ``document``."""
    ways = list(places(document))[1:]

    def change(way: tuple[str | int, ...], raw: str) -> Any:
        return _named("set", way, raw), (write(path, toml_text(document, way, raw)),), False

    def drop(way: tuple[str | int, ...]) -> Any:
        left = json.loads(json.dumps(document))
        del value_at(left, way[:-1])[way[-1]]
        return _named("drop", way), (write(path, toml_text(left)),), False

    def more(name: str, raw: str) -> Any:
        text = toml_text(document) + f"{json.dumps(name)} = {raw}\n"
        return f"unknown {_short(name)} {_short(raw)}", (write(path, text),), True

    names = [text for text in TEXTS if "\x00" not in text and text]
    sets = st.builds(change, st.sampled_from(ways), st.sampled_from(TOML))
    added = st.builds(more, st.sampled_from(names), st.sampled_from(TOML))
    whole = damaged_text(path, toml_text(document))
    return st.one_of(sets, sets, sets, sets, st.sampled_from(ways).map(drop), added, whole, odd_files(path))


def damaged_text(path: str, text: str) -> st.SearchStrategy[Any]:
    """(what, steps, impossible): the bytes of a text file damaged anywhere."""
    data = text.encode()
    size = max(1, len(data))

    def cut(at: int) -> Any:
        return f"cut at {at}", (write(path, data[:at]),), False

    def insert(at: int, piece: bytes) -> Any:
        return f"insert {piece[:12]!r} at {at}", (write(path, data[:at] + piece + data[at:]),), False

    def flip(at: int, bit: int) -> Any:
        return f"flip {at}.{bit}", (write(path, data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]),), False

    pieces = (b"\xff\xfe", b"\x00", b"\xef\xbb\xbf", b"\x1b]0;x\x07", b"\n", b"[" * DEEP, b"a" * 1_000_000,
              b"\xed\xa0\x80", b"\r", b"\x85", b"{", b'"', b"=")  # fmt: skip
    at = st.integers(0, size - 1)
    options = [st.builds(insert, st.one_of(st.just(0), at), st.sampled_from(pieces)), at.map(cut)]
    if data:
        options.append(st.builds(flip, at, st.integers(0, 7)))
    return st.one_of(options)


def damaged_bytes(path: str, size: int) -> st.SearchStrategy[Any]:
    """(what, steps, impossible): the bytes of a binary file of ``size`` bytes damaged anywhere."""

    def splice(at: int, length: int, data: bytes) -> Any:
        return f"splice {data[:8]!r} at {at}", (Step("splice", path, pack(data), at=at, length=length),), False

    pieces = (b"", b"\x00", b"\xff" * 8, b"\x80", b"\x7f" * 4, b"\x00" * 64, b"\xff" * 300)
    at = st.integers(0, max(0, size - 1))
    cut = at.map(lambda n: (f"cut at {n}", (Step("truncate", path, length=n),), False))
    return st.one_of(st.builds(splice, at, st.sampled_from((0, 1, 4, 8)), st.sampled_from(pieces)), cut)


def odd_files(path: str) -> st.SearchStrategy[Any]:
    """(what, steps, impossible): something else in a file's place."""
    return st.sampled_from([
        ("missing", (Step("remove", path),), True),
        ("a pipe", (Step("fifo", path),), True),
        ("a folder", (Step("folder", path),), True),
        ("without end", (Step("link", path, "/dev/zero"),), True),
        ("a loop", (Step("link", path, path.rpartition("/")[2]),), True),
        ("a link to nothing", (Step("link", path, "nowhere"),), True),
        ("a terminal", (Step("link", path, "/dev/tty"),), True),
        ("unreadable", (write(path, "x"), Step("mode", path, length=0)), True),
        ("empty", (write(path, ""),), False),
        ("of 20 GB", (write(path, ""), Step("truncate", path, length=20_000_000_000)), True),
        ("of 101 MB", (write(path, ""), Step("truncate", path, length=101_000_000)), True),
        ("a process's memory", (Step("link", path, "/proc/self/mem"),), True),
    ])  # fmt: skip


def read(folder: Path, name: str) -> Any:
    """A JSON document of a valid input."""
    return json.loads((folder / name).read_text(encoding="utf-8"))


def json_lines(path: str, rows: list[dict[str, Any]]) -> st.SearchStrategy[Any]:
    """(what, steps, impossible) for a file of JSON lines."""
    ways = [(at, *way) for at, row in enumerate(rows) for way in places(row)]

    def change(way: tuple[str | int, ...], raw: str) -> Any:
        at, *rest = way
        lines = [json.dumps(row) for row in rows]
        copy = json.loads(json.dumps(rows[at]))
        lines[at] = put(copy, rest, raw).replace("\n", " ")
        return _named("set", way, raw), (write(path, "\n".join(lines) + "\n"),), raw in NESTED or raw in NO_NUMBERS

    whole = "\n".join(json.dumps(row) for row in rows) + "\n"
    sets = st.builds(change, st.sampled_from(ways), st.sampled_from(RAW))
    return st.one_of(sets, sets, sets, damaged_text(path, whole), odd_files(path))


def _named(what: str, way: tuple[str | int, ...], raw: str = "") -> str:
    return f"{what} {'.'.join(map(str, way)) or 'all'} {_short(raw)}".strip()


def _short(text: str) -> str:
    return ascii(text)[1:-1] if len(text) <= 30 else f"{ascii(text[:20])[1:-1]}... of {len(text)}"
