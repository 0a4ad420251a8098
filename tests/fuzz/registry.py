"""The formats: every module of this folder that has ``cases``. Adding a format is adding one file."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Protocol

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

from tests.fuzz.case import Case

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis.strategies import SearchStrategy

CORPUS = Path(__file__).with_name("corpus")


class Cases(Protocol):
    """What a format gives: a strategy for cases, from valid inputs that it may read."""

    def __call__(self, seed: Callable[[str], Path]) -> SearchStrategy[Case]:
        """``seed`` gives the folder of a valid input."""


def formats() -> dict[str, Cases]:
    """Every format by its module's name."""
    names = sorted(module.name for module in iter_modules([str(Path(__file__).parent)]))
    found = {}
    for name in names:
        if name.startswith(("test_", "_")) or name in ("forking", "conftest"):
            continue
        module = import_module(f"tests.fuzz.{name}")
        if hasattr(module, "cases"):
            found[name] = module.cases
    return found


def draw(count: int, number: int, seed: Callable[[str], Path], only: tuple[str, ...] = ()) -> list[Case]:
    """``count`` cases, the same for the same ``number``, the formats in turn."""
    chosen = {name: cases for name, cases in formats().items() if not only or name in only}
    drawn: list[list[Case]] = [
        _draw(cases(seed), -(-count // len(chosen)), number) for cases in chosen.values()
    ]  # fmt: skip
    mixed = [row[at] for at in range(max(map(len, drawn))) for row in drawn if at < len(row)]
    return mixed[:count]


def _draw(strategy: SearchStrategy[Case], count: int, number: int) -> list[Case]:
    found: dict[Case, None] = {}

    @seeded(number)
    @settings(
        max_examples=2 * count, phases=[Phase.generate], database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def collect(case: Case) -> None:
        found[case] = None

    collect()
    return list(found)[:count]


def corpus() -> list[Path]:
    """The files of every input that ever failed."""
    return sorted(CORPUS.glob("*.json"))
