"""What `route explain` reads besides a policy: the state of a machine, and a schema for the answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from edgekit.record import to_json
from edgekit.types.routing import DeviceState
from tests.fuzz.case import Case, write
from tests.fuzz.values import damaged_text, json_steps, odd_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_COMMAND = ("route", "explain", "bundle", "Hello", "--policy", "policy/plain.toml")
_SCHEMA = {
    "type": "object", "properties": {"name": {"type": "string", "pattern": "^a+$"}, "n": {"type": "integer"}},
    "required": ["name"], "$defs": {"x": {"$ref": "#/$defs/x"}},
}  # fmt: skip


def cases(seed: Callable[[str], Path]) -> st.SearchStrategy[Case]:
    """Every value of a state, and of a schema."""
    del seed
    full = DeviceState(512, 10**9, 10**8, 55.0, True, 41.5, 0.5, 0.25, (("cloud", "no route"),))
    state = to_json(full, indent=1)
    return st.one_of(
        _of("state", "--state", state, typed=True), _of("schema", "--schema", json.dumps(_SCHEMA), typed=False)
    )


def _of(name: str, option: str, text: str, *, typed: bool) -> st.SearchStrategy[Case]:
    changes = json_steps("mine.json", json.loads(text), typed=typed)
    odd = odd_files("mine.json")

    def case(change: tuple) -> Case:
        how, steps, impossible = change
        return Case(
            f"{name}: {how}", (*_COMMAND, option, "mine.json"), ("bundle", "policy"),
            (write("mine.json", text), *steps), refused=impossible,
        )  # fmt: skip

    return st.builds(case, st.one_of(changes, changes, damaged_text("mine.json", text), odd))
