"""The tables of ``route bench``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit import words
from edgekit.cli.calibration_tables import guarantee_words
from edgekit.cli.layout import columns, facts
from edgekit.routing.decision.proof import ROUTER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType
    from rich.table import Table

    from edgekit.routing.decision.proof import Operation, Proof
    from edgekit.routing.evaluation.bench import RouteBench
    from edgekit.types.interval import Interval

NONE = "-"
"""Shown for undefined and unknown values."""


def bench_tables(bench: RouteBench) -> Iterator[RenderableType]:
    """Show what was compared, every strategy over all thresholds and at the router's, and the margins."""
    yield facts(_rows(bench))
    yield ""
    yield curves_table(bench.proof)
    yield ""
    yield operations_table(bench.proof, bench.whole, bench.currency)
    yield ""
    yield margins_table(bench.proof)


def curves_table(proof: Proof) -> Table:
    """Every strategy over all thresholds."""
    costs = ("APGR>", "CPT 50>", "CPT 80>", "CPT 95>", "cost at 95 %>", "AIQ>")
    table = columns("over all thresholds", *costs, "AUROC>", "95 %>", "AURC>", "ECE>", "Brier>")
    for s in proof.strategies:
        shares = map(_share, (s.cpt50, s.cpt80, s.cpt95, s.cost95))
        auroc = (_plain(s.auroc.value if s.auroc else None), _bounds(s.auroc))
        table.add_row(s.name, _plain(s.apgr), *shares, _plain(s.aiq), *auroc, *map(_plain, (s.aurc, s.ece, s.brier)))
    return table


def operations_table(proof: Proof, whole: Operation | None, currency: str) -> Table:
    """The router at its threshold, and the other strategies at its coverage."""
    head = (f"at the threshold {words.number(proof.threshold)}", "on device>", "right>", "PGR>", "served wrong>")
    costs = (f"{currency if proof.priced else 'calls'} / 1000>", "J / 1000>")
    table = columns(*head, "95 %>", "p50>", "p95>", "wasted>", *costs)
    rows = [(s.name, s.operation) for s in proof.strategies]
    if whole:
        rows.insert(1, (f"{ROUTER}, without early exit", whole))
    for name, o in rows:
        cost = o.cost if proof.priced else 1000 * (1 - o.coverage)
        quality = (words.percent(o.coverage), words.percent(o.quality), _plain(o.recovered))
        wrong = (_share(o.failures.value if o.failures else None), _shares(o.failures))
        money = NONE if cost is None else words.number(cost)
        joules = "no meter" if o.joules is None else words.number(o.joules)
        table.add_row(name, *quality, *wrong, _time(o.p50), _time(o.p95), words.seconds(o.wasted), money, joules)
    return table


def margins_table(proof: Proof) -> Table:
    """The router minus each other strategy, on the same examples."""
    table = columns("router minus", "in", "difference>", "95 %>", "")
    for m in proof.margins:
        d = m.difference
        said = "" if d is None else "excludes 0" if d.low > 0 or d.high < 0 else "may be 0"
        value = "undefined" if d is None else f"{d.value:+.3f}"
        table.add_row(m.beside, m.what, value, "" if d is None else f"[{d.low:+.3f}, {d.high:+.3f}]", said)
    return table


def _rows(b: RouteBench) -> Iterator[tuple[str, str]]:
    proof = b.proof
    yield "questions", f"{words.count(b.n)} from {b.data}"
    if b.kept_back:
        yield "private", f"{words.count(b.kept_back)} questions must not leave the device: not sent, not compared"
    yield "local", f"{words.percent(proof.local_quality)} right"
    yield "cloud", f"{words.percent(proof.cloud_quality)} right: {b.cloud}"
    yield "calibration", f"on {b.calibrated_on}"
    yield "guarantee", guarantee_words(b.guarantee) if b.guarantee else "none"
    yield "drift", b.drift.words
    yield "cost", b.price
    yield "energy", b.energy
    if b.cut_off:
        yield "cut off", f"{words.count(b.cut_off)} local answers reached the token limit: judged like the others"


def _plain(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return NONE if value is None else words.percent(value)


def _time(value: float | None) -> str:
    return NONE if value is None else words.seconds(value)


def _bounds(interval: Interval | None) -> str:
    return "" if interval is None else f"[{interval.low:.3f}, {interval.high:.3f}]"


def _shares(interval: Interval | None) -> str:
    return "" if interval is None else f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
