"""Plots of a lab's night, drawn as in plot.py: speed over energy, and sustained curves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from edgekit.report.plot import SOFT, STYLE, Ink, to_svg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.gridspec import SubplotSpec

    from edgekit.types.fleet import Curve, Point

_SHORT = 120
"""Seconds up to which the time axis has seconds."""
MARKERS = "osD^vP*X"
"""Shapes for bundles, which then repeat."""


def plot_energy(lines: Sequence[tuple[Ink, Sequence[tuple[int, float, float]]]], name: str) -> str:
    """Plot tok/s over joules per token, one line per device through its bundles.

    Args:
        lines: the device, and for each bundle its number, joules per token and tok/s.
        name: unique on the page.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.6), layout="constrained")
        axes = _panel(figure, figure.add_gridspec(1, 1)[0], "tokens per second")
        axes.set_xlabel("net joules per token")
        axes.grid(visible=True, axis="both")
        axes.set_xscale("log")
        axes.set_yscale("log")
        for ink, points in lines:
            ordered = sorted(points, key=lambda point: point[1])
            axes.plot([p[1] for p in ordered], [p[2] for p in ordered], "-", color=ink.color, linewidth=1, alpha=0.5)
            for bundle, joules, speed in ordered:
                marker = MARKERS[bundle % len(MARKERS)]
                axes.plot(joules, speed, marker, color=ink.color, markersize=9)
        _label_apart(axes, [(ink, *max(((p[1], p[2]) for p in points), key=lambda p: p[1])) for ink, points in lines])
        costs = [p[1] for _, points in lines for p in points]
        speeds = [p[2] for _, points in lines for p in points]
        axes.set_xlim(min(costs) / 1.6, max(costs) * 1.6)
        axes.set_ylim(min(speeds) / 1.6, max(speeds) * 2)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        return to_svg(figure, name)


def _label_apart(axes: Axes, points: Sequence[tuple[Ink, float, float]]) -> None:
    """Label each device above its fastest point, to the other side if another label is there."""
    taken: list[tuple[float, float]] = []
    for ink, x, y in sorted(points, key=lambda point: -point[2]):
        near = sum(1 for other, height in taken if 0.6 < other / x < 1.7 and 0.75 < height / y < 1.33)
        offset = ((0, 10), (0, -18), (12, 0))[near % 3]
        align = "left" if near % 3 == 2 else "center"
        axes.annotate(
            ink.label, (x, y), offset, textcoords="offset points", ha=align, weight="bold", color=ink.color, fontsize=10
        )
        taken.append((x, y))


_ROWS: tuple[tuple[str, str], ...] = (("tok_s", "tok/s"), ("celsius", "°C"), ("clock_mhz", "MHz"), ("watts", "W"))
"""Fields of a Point, and the axis of each."""


def plot_curves(lines: Sequence[tuple[Ink, Curve]], name: str) -> str:
    """Plot a device's sustained runs over time: tok/s, and below it temperature, clock and power where they are known.

    A dashed line marks where and at what speed a curve levels off.
    """
    rows = [row for row in _ROWS if any(getattr(p, row[0]) is not None for _, c in lines for p in c.points)]
    longest = max(curve.points[-1].seconds for _, curve in lines)
    unit_seconds, time = (60, "minutes") if longest > _SHORT else (1, "seconds")
    longest /= unit_seconds
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 2.2 + 0.85 * len(rows)), layout="constrained")
        grid = figure.add_gridspec(len(rows), 1, height_ratios=[2.6 if f == "tok_s" else 1.0 for f, _ in rows])
        for at, (field, unit) in enumerate(rows):
            axes = _panel(figure, grid[at], unit)
            for ink, curve in lines:
                axes.plot(*_known(curve.points, field, unit_seconds), "-", color=ink.color, linewidth=1.6)
                if field == "tok_s":
                    _draw_level(axes, ink, curve, unit_seconds)
            if field != "celsius":
                axes.set_ylim(bottom=0)
            axes.set_xlim(0, 1.36 * longest)
            axes.set_xticks([t for t in MaxNLocator(6).tick_values(0, longest) if 0 <= t <= longest])
            axes.yaxis.set_major_locator(MaxNLocator(5 if field == "tok_s" else 2))
            axes.tick_params(labelbottom=at == len(rows) - 1)
        axes.set_xlabel(time)
        return to_svg(figure, name)


def _draw_level(axes: Axes, ink: Ink, curve: Curve, unit_seconds: int) -> None:
    """Mark where a curve levels off, and label its end."""
    last = curve.points[-1]
    end = last.seconds / unit_seconds
    height = curve.level.tok_s if curve.level else last.tok_s or 0.0
    if curve.level:
        axes.plot([curve.level.after / unit_seconds, end], [height] * 2, "--", color=SOFT, linewidth=1.4)
    text = f"{ink.label} {height:.3g}" if curve.level else ink.label
    axes.annotate(text, (end, height), (6, 0), textcoords="offset points", va="center", fontsize=9)


def _known(points: Sequence[Point], field: str, unit_seconds: int) -> tuple[list[float], list[float]]:
    """Times and values of the points at which a field is known."""
    known = [(p.seconds / unit_seconds, getattr(p, field)) for p in points if getattr(p, field) is not None]
    return [t for t, _ in known], [v for _, v in known]


def _panel(figure: Figure, place: SubplotSpec, y: str) -> Axes:
    figure.patch.set_visible(False)
    axes = figure.add_subplot(place)
    axes.patch.set_visible(False)
    axes.set_ylabel(y)
    axes.grid(visible=False, axis="x")
    axes.tick_params(which="both", left=False)
    return axes
