"""The picture that matters: quality against size, and quality against speed, every contender a point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

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
    panels = [("Bundle size", "MB, smaller is better", size_points(run))]
    names = {"pp": "Prefill", "tg": "Decode"}
    panels += [
        (f"{names[workload[:2]]}, {workload}", "tokens per second, more is better", _speeds(run, workload))
        for workload in run.workloads[:2]
    ]
    draw_panels([panel for panel in panels if panel[2]], out)


def draw_panels(panels: list[tuple[str, str, list[Point]]], out: Path) -> None:
    """Write panels side by side, each with its title, the unit of its axis and its points."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(panels) + 0.4, 6.4), layout="constrained", facecolor="white")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for place, (title, unit, points) in zip(axes, panels, strict=True):
            _panel(place, title, unit, points)
        klds = [kld for _, _, points in panels for point in points for kld in point.kld]
        axes[0].set_ylim(min(klds) / 2, max(klds) * 2)
        axes[0].set_ylabel("KL divergence from FP32, nats (lower is better)")
        out.parent.mkdir(parents=True, exist_ok=True)
        dated = {"Date": None, "Creator": None} if out.suffix == ".svg" else {}
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # titles are placed by what is there now
        for place, (_, _, points) in zip(axes, panels, strict=True):
            _name(place, points)
        figure.savefig(out, metadata=dated, dpi=110)


def size_points(run: Run) -> list[Point]:
    """Every contender's bundle."""
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
    axes.set_xlim(0, 1.15 * right)
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


PLACES = [(dx, dy) for dy in (13, -13, 0, 26, -26, 39, -39, 52, -52, 65, -65, 78, -78, 91, -91) for dx in (9, -9)]
"""Offsets of a label from its point, in points of type, the best first; the sign of the first says to which side."""


def _name(axes: Axes, points: list[Point]) -> None:
    """Write each title where it hides neither a point nor another title. Needs a figure that is laid out."""
    spots = [axes.transData.transform((point.x, point.kld[0])) for point in points]
    bars = [axes.transData.transform([(point.low, point.kld[0]), (point.high, point.kld[0])]) for point in points]
    taken = [Bbox.from_extents(x - 8, y - 8, x + 8, y + 8) for x, y in spots]
    taken += [Bbox.from_extents(x0, y0 - 2, x1, y1 + 2) for (x0, y0), (x1, y1) in bars]
    # From the right: those at the edge have the fewest places.
    for point in sorted(points, key=lambda point: -point.x):
        color, weight = (BLUE, "bold") if point.ours else (GREY, "normal")
        label = axes.annotate(
            point.title,
            (point.x, point.kld[0]),
            PLACES[0],
            textcoords="offset points",
            va="center",
            color=color,
            weight=weight,
            fontsize=9,
        )
        best = None
        for dx, dy in PLACES:
            label.set(position=(dx, dy), horizontalalignment="left" if dx > 0 else "right")
            box = label.get_window_extent()
            outside = (
                box.x0 < axes.bbox.x0 or box.x1 > axes.bbox.x1 or not axes.bbox.y0 < box.y0 < box.y1 < axes.bbox.y1
            )
            hidden = sum(box.overlaps(other) for other in taken) + 3 * outside
            if best is None or hidden < best[0]:
                best = (hidden, dx, dy, box)
        _, dx, dy, box = best
        label.set(position=(dx, dy), horizontalalignment="left" if dx > 0 else "right")
        taken.append(box)
        if abs(dy) > 20:
            line = {"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
            below = (dx, dy - 7 if dy > 0 else dy + 7)
            axes.annotate("", (point.x, point.kld[0]), below, textcoords="offset points", arrowprops=line)
