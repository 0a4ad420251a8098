"""GGUF files: every entry's type and value, every tensor's dimensions, type and place, and bytes anywhere."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from tests.fuzz.case import Case, Step, pack
from tests.fuzz.values import damaged_bytes, odd_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_FILE = "gguf/m.gguf"
_COMMANDS = (
    ("inspect", _FILE),
    ("inspect", _FILE, "--json"),
    ("fit", _FILE, "--target", "cpu"),
    ("build", _FILE, "-o", "out/bundle", "--offline"),
)
_VALUES = [
    *(struct.pack("<Iq", kind, n) for kind in range(14) for n in (-1, 0, 1, 2, 3, 2**31, 2**40, 2**60, 2**63 - 1)),
    *(struct.pack("<If", 6, x) for x in (float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e-38, 3e38)),
    *(struct.pack("<Id", 12, x) for x in (float("nan"), float("inf"), 0.0, -1.0, 1e308, 5e-324)),
    *(struct.pack("<IIQ", 9, kind, n) for kind in range(14) for n in (0, 1, 2**20, 2**40, 2**60, 2**64 - 1)),
    *(struct.pack("<IQ", 8, n) for n in (0, 1, 2**20, 2**40, 2**64 - 1)),
]


def cases(seed: Callable[[str], Path]) -> st.SearchStrategy[Case]:
    """Counts, metadata and tensors of a header, by every command that opens it."""
    data = (seed("gguf") / "m.gguf").read_bytes()
    from edgekit.source.gguf_file import read_gguf

    found = read_gguf(seed("gguf") / "m.gguf")
    after = {key: data.index(struct.pack("<Q", len(key)) + key.encode()) + 8 + len(key) for key in found.metadata}
    tensors = {name: data.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name) for name in found.tensors}

    def splice(at: int, new: bytes, length: int | None = None) -> tuple[Step, ...]:
        return (Step("splice", _FILE, pack(new), at=at, length=len(new) if length is None else length),)

    def value(key: str, new: bytes) -> tuple:
        return f"{key} {new[:12].hex()}", splice(after[key], new), False

    def count(at: int, number: int) -> tuple:
        return f"count at {at} {number}", splice(at, struct.pack("<Q", number)), True

    def dimensions(name: str, number: int) -> tuple:
        return f"{name} of {number} dimensions", splice(tensors[name], struct.pack("<I", number)), True

    def dimension(name: str, number: int) -> tuple:
        return f"{name} of {number} rows", splice(tensors[name] + 4, struct.pack("<Q", number)), True

    def kind(name: str, number: int) -> tuple:
        n = 8 * len(found.tensors[name].shape)
        return f"{name} of type {number}", splice(tensors[name] + 4 + n, struct.pack("<I", number)), number != 0

    def offset(name: str, number: int) -> tuple:
        n = 8 * len(found.tensors[name].shape)
        right = number == 0 and name == next(iter(found.tensors))
        return f"{name} at {number}", splice(tensors[name] + 8 + n, struct.pack("<Q", number)), not right

    def same(one: str, other: str) -> tuple:
        twice = splice(tensors[one] - len(one) - 8, struct.pack("<Q", len(other)) + other.encode(), 8 + len(one))
        return f"{one} is called {other}", twice, one != other

    def more(count: int) -> tuple:
        return f"{count} bytes more", (Step("truncate", _FILE, length=len(data) + count),), True

    numbers = st.sampled_from((5, 7, 33, 2**16, 2**31, 2**40, 2**60, 2**64 - 1))
    tensor = st.sampled_from(sorted(tensors))
    change = st.one_of(
        st.builds(value, st.sampled_from(sorted(after)), st.sampled_from(_VALUES)),
        st.builds(value, st.sampled_from([key for key in after if "rope" in key or "head" in key or "token" in key]),
                  st.sampled_from(_VALUES)),
        st.builds(count, st.sampled_from((8, 16)), numbers),
        st.builds(dimensions, tensor, st.sampled_from((0, 3, 5, 2**31))),
        st.builds(dimension, tensor, st.one_of(numbers, st.just(0))),
        st.builds(kind, tensor, st.sampled_from((1, 2, 3, 8, 12, 24, 30, 99, 2**31))),
        st.builds(offset, tensor, st.one_of(numbers, st.just(0))),
        st.builds(same, tensor, tensor),
        st.sampled_from((64, 4096, 1 << 42)).map(more),
        damaged_bytes(_FILE, min(after["tokenizer.ggml.tokens"], 4000)),
        damaged_bytes(_FILE, len(data)),
        odd_files(_FILE),
    )  # fmt: skip

    def case(command: tuple[str, ...], change: tuple) -> Case:
        how, steps, refused = change
        return Case(f"gguf: {command[0]}: {how}", command, ("gguf",), steps, refused=refused)

    return st.builds(case, st.sampled_from(_COMMANDS), change)
