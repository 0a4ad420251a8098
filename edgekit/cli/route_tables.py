"""The tables of ``route explain``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from edgekit import words
from edgekit.cli.layout import columns, facts
from edgekit.types.routing import DEVICE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType
    from rich.table import Table

    from edgekit.routing.explain import Explanation
    from edgekit.types.routing import Expected, Finding

_STYLES = {"pass": "green", "fail": "red", "unknown": "yellow"}


def explanation_tables(e: Explanation) -> Iterator[RenderableType]:
    """Show the verdict, its reasons, the expected cost of each tier, and every check."""
    v = e.verdict
    yield facts(
        [
            ("answers", f"{v.tier or 'none'}{' (degraded)' if v.degraded else ''}"),
            ("code", v.code),
            ("reason", v.reason),
            ("fallbacks", ", ".join(v.ladder) or "none"),
            ("policy", e.policy),
            ("language", e.language or "not detected"),
            ("measurement", e.measurement),
            ("energy", e.energy),
            ("calibration", e.calibration),
        ]
    )
    yield ""
    yield _expectations(e)
    yield ""
    yield _findings(v.findings)


def _expectations(e: Explanation) -> Table:
    """A row for each tier: prompt tokens, seconds, joules, cost."""
    answer = "answer>" if e.new_tokens is None else f"{words.count(e.new_tokens)} tokens>"
    table = columns("who", "prompt>", "first token>", answer, "joules>", f"{e.currency}>")
    tokens = dict(e.tokens)
    for name, x in e.expected:
        count = (
            "not counted" if name not in tokens else f"{'' if name in e.counted else '~'}{words.count(tokens[name])}"
        )
        table.add_row(name, count, _seconds(x.seconds_to_first), _seconds(x.seconds), _joules(name, x), _cost(x))
    return table


def _findings(findings: tuple[Finding, ...]) -> Table:
    table = columns("who", "check", "outcome", "found>", "limit>", "")
    for f in findings:
        found, limit = (_quantity(value, f.unit) for value in (f.value, f.limit))
        table.add_row(f.tier, f.check, Text(f.outcome, style=_STYLES[f.outcome]), found, limit, f.detail)
    return table


def _quantity(value: float | None, unit: str) -> str:
    """A number with its unit, "" for None."""
    if value is None:
        return ""
    match unit:
        case "B":
            return words.size(value) if value >= 0 else f"-{words.size(-value)}"
        case "s":
            return words.seconds(value)
        case "tokens":
            return words.count(value)
    return f"{words.number(value)} {unit}".rstrip()


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else words.seconds(value)


def _joules(name: str, x: Expected) -> str:
    """Joules, marked if they are estimated."""
    if x.joules is None:
        return "not measured" if name == DEVICE else "unknown"
    return f"{words.number(x.joules)}{' (estimated)' if x.energy == 'estimated' else ''}"


def _cost(x: Expected) -> str:
    return "unknown" if x.cost is None else words.number(x.cost)
