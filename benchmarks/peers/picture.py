"""The picture that matters: quality against size, and quality against speed, every contender a point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.peers.tables import MB, OURS

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from benchmarks.peers.records import Run, Spread

BLUE, GREY, SOFT, LINE = "#0b62c4", "#5b5f66", "#6b7078", "#e3e5e8"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "peers",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "grid.color": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
}


@dataclass(frozen=True)
class Point:
    """One contender in one panel; ``low`` and ``high`` are the range of ``x``, ``kld`` is (value, low, high)."""

    title: str
    ours: bool
    x: float
    low: float
    high: float
    kld: tuple[float, float, float]


def draw(run: Run, out: Path) -> None:
    """Write the picture (SVG or PNG, by the file's ending): a panel for the size, one for each workload measured."""
    panels = [("Bundle size", "MB, smaller is better", _sizes(run))]
    names = {"pp": "Prefill", "tg": "Decode"}
    panels += [
        (f"{names[workload[:2]]}, {workload}", "tokens per second, more is better", _speeds(run, workload))
        for workload in run.workloads[:2]
    ]
    panels = [panel for panel in panels if panel[2]]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(panels) + 0.4, 4.8), layout="constrained", facecolor="white")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for place, (title, unit, points) in zip(axes, panels, strict=True):
            _panel(place, title, unit, points)
        axes[0].set_ylabel("KL divergence from FP32, nats (lower is better)")
        out.parent.mkdir(parents=True, exist_ok=True)
        dated = {"Date": None, "Creator": None} if out.suffix == ".svg" else {}
        figure.savefig(out, metadata=dated, dpi=110)


def _sizes(run: Run) -> list[Point]:
    made = {name: run.conversion(name) for name in run.titles}
    return [
        point
        for name, conversion in made.items()
        if conversion and (point := _point(run, name, *[conversion["bytes"] / MB] * 3))
    ]


def _speeds(run: Run, workload: str) -> list[Point]:
    measured: dict[str, Spread | None] = {name: run.speed(name, workload) for name in run.titles}
    return [
        point
        for name, speed in measured.items()
        if speed and (point := _point(run, name, speed.middle, speed.low, speed.high))
    ]


def _point(run: Run, name: str, x: float, low: float, high: float) -> Point | None:
    quality = run.quality(name)
    if quality is None:
        return None
    kld = quality["kld_mean"]
    return Point(run.titles[name], name.startswith(OURS), x, low, high, (kld["value"], kld["low"], kld["high"]))


def _panel(axes: Axes, title: str, unit: str, points: list[Point]) -> None:
    axes.set_title(title, pad=12)
    axes.set_xlabel(unit)
    axes.set_yscale("log")
    axes.grid(visible=True)
    axes.tick_params(which="both", length=0)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    right = max(point.high for point in points)
    axes.set_xlim(0, 1.12 * right)
    for point in points:
        color = BLUE if point.ours else GREY
        value, low, high = point.kld
        axes.errorbar(
            point.x,
            value,
            xerr=[[point.x - point.low], [point.high - point.x]],
            yerr=[[value - low], [high - value]],
            fmt="o" if point.ours else "s",
            color=color,
            markersize=9 if point.ours else 7,
            elinewidth=1.2,
        )
    for point, (x, y, side) in zip(points, _labels(points, right), strict=True):
        axes.annotate(
            point.title,
            (point.x, point.kld[0]),
            (x, y),
            textcoords="offset points",
            ha=side,
            va="center",
            color=BLUE if point.ours else GREY,
            weight="bold" if point.ours else "normal",
            fontsize=9,
        )


def _labels(points: list[Point], right: float) -> list[tuple[float, float, str]]:
    """Offsets in points and alignment: above a point, on the side that has room."""
    return [(-7, 11, "right") if point.x > 0.55 * right else (7, 11, "left") for point in points]
