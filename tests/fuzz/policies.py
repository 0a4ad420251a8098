"""The routing policy of the user."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from tests.fuzz.case import Case
from tests.fuzz.values import toml_steps
from tests.fuzz.verdict import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_COMMANDS = (
    ("route", "explain", "bundle", "Hello", "--policy", "mine.toml"),
    ("route", "explain", "bundle", "Hello", "--policy", "mine.toml", "--json"),
    ("route", "bench", "bundle", "--data", "questions/questions.jsonl", "--policy", "mine.toml", "--out", "out/b.json"),
)


def cases(seed: Callable[[str], Path]) -> st.SearchStrategy[Case]:
    """Every value of the policy with every key."""
    del seed
    policy = tomllib.loads((ROOT / "examples/routing/policy.toml").read_text(encoding="utf-8"))

    def case(command: tuple[str, ...], change: tuple) -> Case:
        how, steps, impossible = change
        seeds = ("bundle", "policy", "questions")
        return Case(f"policy: {command[1]}: {how}", command, seeds, steps, refused=impossible)

    return st.builds(case, st.sampled_from(_COMMANDS), toml_steps("mine.toml", policy))
