"""The user's own TOML files: recipes, devices and their families."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from tests.fuzz.case import Case, write
from tests.fuzz.values import toml_steps, toml_text
from tests.fuzz.verdict import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_RECIPE = ("build", "model", "--recipe", "mine.toml", "-o", "out/made")
_DEVICE = (
    ("targets", "show", "mine.toml"),
    ("targets", "show", "mine.toml", "--json"),
    ("targets", "lint", "mine.toml"),
    ("fit", "model", "--target", "mine.toml"),
    ("build", "model", "--target", "mine.toml", "-o", "out/made"),
)
_RECIPES = ("int4", "int8", "fast")
_DEVICES = ("cpu", "raspberry-pi-5", "galaxy-s24", "iphone-16", "pixel-9")


def cases(seed: Callable[[str], Path]) -> st.SearchStrategy[Case]:
    """Every value of some of our own files, in a file of the user's."""
    del seed
    recipes = [toml_steps("mine.toml", _parsed(ROOT / f"edgekit/recipes/{name}.toml")) for name in _RECIPES]
    devices = [
        toml_steps("mine.toml", _parsed(ROOT / f"targets/{name}.toml") | {"name": "mine"}) for name in _DEVICES
    ]  # fmt: skip
    families = [toml_steps(f"families/{name}.toml", family) for name, family in _families().items()]
    return st.one_of(
        st.builds(lambda change: _case("recipe", _RECIPE, change), st.one_of(recipes)),
        st.builds(
            lambda command, change: _case("device", command, change), st.sampled_from(_DEVICE), st.one_of(devices)
        ),
        st.builds(_family, st.sampled_from(_DEVICE[:3]), st.one_of(families)),
    )


def _parsed(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _families() -> dict[str, dict[str, Any]]:
    return {path.stem: _parsed(path) for path in sorted((ROOT / "targets/families").glob("*.toml"))}


def _case(what: str, command: tuple[str, ...], change: tuple) -> Case:
    how, steps, impossible = change
    return Case(f"{what}: {command[0]}: {how}", command, ("model",), steps, refused=impossible)


def _family(command: tuple[str, ...], change: tuple) -> Case:
    how, steps, impossible = change
    name = steps[0].path.removeprefix("families/").removesuffix(".toml")
    device = next(
        d for d in map(_parsed, sorted((ROOT / "targets").glob("*.toml"))) if d.get("npu", {}).get("family") == name
    )  # fmt: skip
    mine = write("mine.toml", toml_text(device | {"name": "mine"}))
    # A family of the user's that is missing is one of ours.
    real = impossible and how not in ("missing", "a loop", "a link to nothing", "a folder", "a pipe", "a terminal",
                                      "without end", "a process's memory")  # fmt: skip
    return Case(f"family: {command[0]}: {name}: {how}", command, ("model",), (mine, *steps), refused=real)
