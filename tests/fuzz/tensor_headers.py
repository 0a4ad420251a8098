"""The header of a safetensors file: lengths, types, shapes and offsets that do not fit together."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from edgekit.source.safetensors_file import MAX_TENSORS
from tests.fuzz.case import Case, Step, pack, put
from tests.fuzz.checkpoints import COMMANDS
from tests.fuzz.values import RAW, damaged_bytes, places

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_FILE = "model/model.safetensors"


def cases(seed: Callable[[str], Path]) -> st.SearchStrategy[Case]:
    """Values of the header, its length, tensors that overlap or leave holes, and bytes anywhere."""
    data = (seed("model") / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    ways = [way for way in places(header) if way]

    def again(text: str) -> tuple[Step, ...]:
        new = text.encode("utf-8", "surrogatepass")
        return (Step("splice", _FILE, pack(len(new).to_bytes(8, "little") + new), at=0, length=8 + length),)

    def changed(way: tuple, raw: str) -> tuple:
        text = put(json.loads(json.dumps(header)), way, raw)
        same = raw == json.dumps(header)
        return (
            f"set {'.'.join(map(str, way))[:60]} {raw[:20]!a}",
            again(text),
            not same and way[0] != "__metadata__",
        )

    def moved(name: str, by: int, both: bool) -> tuple:
        new = json.loads(json.dumps(header))
        first, last = new[name]["data_offsets"]
        new[name]["data_offsets"] = [first + by, last + by if both else last]
        return f"moved {name} by {by}", again(json.dumps(new)), True

    def typed(name: str, kind: str) -> tuple:
        new = json.loads(json.dumps(header))
        new[name]["dtype"] = kind
        return f"{name} as {kind}", again(json.dumps(new)), True

    def twice(name: str) -> tuple:
        text = json.dumps(header)
        return f"{name} twice", again(text[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}"), True

    def shared(one: str, other: str) -> tuple:
        new = json.loads(json.dumps(header))
        new[one] = new[other]
        return f"{one} is {other}", again(json.dumps(new)), one != other

    def long(size: int) -> tuple:
        return f"a header of {size}", (Step("splice", _FILE, pack(size.to_bytes(8, "little")), at=0, length=8),), True

    def padded(count: int) -> tuple:
        return f"{count} bytes more", (Step("truncate", _FILE, length=len(data) + count),), True

    def many(count: int) -> tuple:
        entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        return (
            f"{count} tensors",
            again(json.dumps({**{f"t{n}": entry for n in range(count)}, **header})),
            count > MAX_TENSORS,
        )

    name = st.sampled_from(names)
    change = st.one_of(
        st.builds(changed, st.sampled_from(ways), st.sampled_from(RAW)),
        st.builds(moved, name, st.sampled_from((-8, -1, 1, 4, 64, 2**40, -(2**40))), st.booleans()),
        st.builds(typed, name, st.sampled_from(("F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "X", ""))),
        name.map(twice),
        st.builds(shared, name, name),
        st.sampled_from((0, 1, 2, length - 1, length + 1, len(data) - 8, 2**31, 2**63, 2**64 - 1)).map(long),
        st.sampled_from((1, 4096, 1 << 30, 1 << 42)).map(padded),
        st.sampled_from((1000, 300_000)).map(many),
        damaged_bytes(_FILE, 8 + length).map(lambda change: (*change[:2], False)),
    )

    def case(command: tuple[str, ...], change: tuple) -> Case:
        how, steps, refused = change
        return Case(f"safetensors: {command[0]}: {how}", command, ("model",), steps, refused=refused)

    return st.builds(case, st.sampled_from([c for c in COMMANDS if c[0] != "fit"]), change)
