"""Plots as inline SVG that uses the page's CSS variables for colours and the page's font.

Matplotlib draws with placeholder colours that are replaced by ``var(--name)`` afterwards, so that one plot works in
light mode, dark mode and print.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from edgekit.types import Interval, Series
    from edgekit.types.learning import RunCard

HUES = 6
"""Number of colours for bundles, which then repeat."""

INK, SOFT, GRID = "#0e0e01", "#0e0e02", "#0e0e03"
_VARIABLES = {INK: "ink", SOFT: "soft", GRID: "line"} | {f"#0e0ec{i}": f"hue{i}" for i in range(HUES)}

STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.parse_math": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "text.color": INK,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Ink:
    """The label and colour of a bundle in plots; ``hue`` is a number below HUES."""

    label: str
    hue: int

    @property
    def color(self) -> str:
        """The placeholder for the colour."""
        return f"#0e0ec{self.hue}"


def plot_quality(points: Sequence[tuple[Ink, float, Interval]]) -> str:
    """Plot quality by size, one point per bundle.

    Args:
        points: the bundle, megabytes, mean KL divergence in nats.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _axes("bundle size, MB", "mean KL divergence from FP32, nats", height=4.9)
        axes.set_yscale("log")
        for ink, megabytes, kld in points:
            # A log axis has no zero: exact copies are drawn at the smallest measurable value.
            value = max(kld.value, 1e-6)
            reach = [[max(0.0, value - max(kld.low, 1e-6))], [max(0.0, kld.high - value)]]
            axes.errorbar(
                megabytes, value, yerr=reach, fmt="o", color=ink.color, markersize=11, capsize=4, elinewidth=1.6
            )
            _name(axes, ink, megabytes, value)
        axes.set_xlim(0, 1.35 * max(megabytes for _, megabytes, _ in points))
        low = min(max(kld.low, 1e-6) for _, _, kld in points)
        high = max(max(kld.high, 1e-6) for _, _, kld in points)
        axes.set_ylim(low / 3, high * 3)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        return to_svg(figure, "quality")


def plot_depth(lines: Sequence[tuple[Ink, Sequence[tuple[int, Series]]]]) -> str:
    """Plot decode speed by context length, one line per bundle, with one standard deviation."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes("tokens of context", "decode, tokens per second")
        for ink, points in lines:
            depths = [depth for depth, _ in points]
            means = [series.mean for _, series in points]
            deviations = [series.sd for _, series in points]
            axes.errorbar(
                depths, means, yerr=deviations, fmt="o-", color=ink.color, markersize=7, capsize=4, linewidth=2.2
            )
            _name(axes, ink, depths[-1], means[-1])
        axes.set_ylim(bottom=0)
        deepest = max(depth for _, points in lines for depth, _ in points)
        axes.set_xlim(-0.04 * (deepest or 1), 1.25 * (deepest or 1))
        axes.set_xticks(sorted({depth for _, points in lines for depth, _ in points}))
        return to_svg(figure, "depth")


def plot_steps(lines: Sequence[tuple[Ink, Series]]) -> str:
    """Plot the cumulative distribution of the time per token, one curve per bundle."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes("time per output token, ms", "share of tokens")
        # The slowest hundredth would squeeze the rest against the axis.
        edge = max(1000 * series.percentile(99) for _, series in lines)
        for ink, series in lines:
            times = sorted(1000 * sample for sample in series.samples)
            shares = [(k + 1) / len(times) for k in range(len(times))]
            axes.step([times[0], *times], [0.0, *shares], where="post", color=ink.color, linewidth=2.2)
            for p in (50, 95):
                axes.plot(1000 * series.percentile(p), p / 100, "o", color=ink.color, markersize=6)
            _name(axes, ink, 1000 * series.percentile(50), 0.5)
        axes.set_xlim(0, 1.15 * edge)
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.xaxis.set_major_locator(MaxNLocator(7))
        return to_svg(figure, "steps")


def plot_runs(runs: Sequence[tuple[Ink, RunCard]]) -> str:
    """Plot the KL divergence on each held-out text over the steps of the training runs that made the bundles.

    Lines after the first of a run are dashed: they are of its other texts. A dot marks the point that was kept.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _axes("training step", "held-out KL divergence, nats")
        for ink, run in runs:
            steps = [point.step for point in run.curve]
            for text in range(len(run.watched)):
                values = [point.kld[text] for point in run.curve]
                axes.plot(steps, values, "--" if text else "-", color=ink.color, linewidth=2.2)
                kept = steps.index(run.best_step) if run.best_step in steps else 0
                axes.plot(steps[kept], values[kept], "o", color=ink.color, markersize=7)
                if not text:
                    _name(axes, ink, steps[-1], values[-1])
        axes.set_ylim(bottom=0)
        longest = max(run.curve[-1].step for _, run in runs)
        axes.set_xlim(0, 1.25 * (longest or 1))
        return to_svg(figure, "runs")


def _axes(x: str, y: str, height: float = 3.7) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=False, axis="x")
    axes.tick_params(which="both", left=False)
    return figure, axes


def _name(axes: Axes, ink: Ink, x: float, y: float) -> None:
    """Write a bundle's label to the right of a point, instead of a legend."""
    axes.annotate(ink.label, (x, y), (11, 0), textcoords="offset points", va="center", weight="bold")


def to_svg(figure: Figure, name: str) -> str:
    """Return the figure as an inline element without size and metadata, with unique ids and the page's colours."""
    text = StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    _, _, svg = text.getvalue().partition("<svg")
    opening, _, body = svg.partition(">")
    body = re.sub(r"<(metadata|style)\b.*?</\1>", "", body, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r"font: ([^;'\"]*px) [^;\"]*", r"font: \1 var(--sans)", body)
    body = body.replace("xlink:href=", "href=").replace('id="', f'id="{name}-')
    body = re.sub(r'(href="|url\()#', rf"\1#{name}-", body)
    for stand_in, variable in _VARIABLES.items():
        body = body.replace(stand_in, f"var(--{variable})")
    box = re.search(r'viewBox="[^"]*"', opening)
    return f"<svg {box.group() if box else ''}>{body}"
