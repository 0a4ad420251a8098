"""Plot a router: quality by share sent to the cloud, and risk by share served on the device.

Written to a separate file on white, unlike the plots of the report.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Literal

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from edgekit.errors import EdgekitError
from edgekit.host.disk import make_parent, write_whole, writing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

ENDINGS = (".svg", ".png")

Points = tuple[tuple[float, float], ...]
Kind = Literal["router", "signal", "random", "oracle", "fixed"]

_BLUE, _ORANGE, _GREEN, _INK, _SOFT, _LINE = "#0b62c4", "#c2570c", "#2b8a5f", "#22252a", "#6b7078", "#e3e5e8"
_SIGNALS = (_ORANGE, _GREEN)
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "routing",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "grid.color": _LINE,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _SOFT,
    "ytick.labelcolor": _SOFT,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Way:
    """One routing strategy. ``points``: (share sent, share right), one or more."""

    name: str
    kind: Kind
    points: Points


@dataclass(frozen=True)
class RoutingPanel:
    """One data set. ``at``: (share sent, share right) at the router's threshold.

    ``risk``: (coverage, share of served answers that are wrong) of the router; ``served``: the same at its threshold,
    None if nothing is served; ``wrong``: share of all local answers that are wrong.
    """

    title: str
    ways: tuple[Way, ...]
    at: tuple[float, float]
    risk: Points
    served: tuple[float, float] | None
    wrong: float


def check_ending(out: Path) -> None:
    """Raise EdgekitError unless the file name ends in .svg or .png."""
    if out.suffix not in ENDINGS:
        raise EdgekitError(f"{out}: a plot must end in {' or '.join(ENDINGS)}", f"pass {out.with_suffix('.svg')}")


def draw_routing(panels: Sequence[RoutingPanel], out: Path) -> Path:
    """Write the plot as SVG or PNG, by the file's ending: one data set in a row, several in columns.

    Raises:
        EdgekitError: the ending is another one, or ``panels`` is empty.
    """
    check_ending(out)
    if not panels:
        raise EdgekitError("nothing to plot", "pass at least one data set")
    with mpl.rc_context(_STYLE):
        many = len(panels) > 1
        size = (4.4 * len(panels), 7.0) if many else (9.2, 4.2)
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        grid = figure.subplots(2, len(panels), squeeze=False) if many else figure.subplots(1, 2, squeeze=False).T
        for column, panel in enumerate(panels):
            _quality(grid[0][column], panel)
            _risk(grid[1][column], panel, titled=not many)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), fontsize=9)
        kind, picture = out.suffix.removeprefix("."), BytesIO()
        bare = {"Date": None, "Creator": None} if kind == "svg" else {}
        figure.savefig(picture, format=kind, metadata=bare, dpi=110)
    with writing(out, picture.tell()):
        make_parent(out)
        write_whole(out, picture.getvalue())
    return out


def _quality(axes: Axes, panel: RoutingPanel) -> None:
    axes.set_title(panel.title, pad=10, color=_INK)
    axes.set_xlabel("share of questions sent to the cloud")
    axes.set_ylabel("share of right answers")
    signals = iter(_SIGNALS * 3)
    for way in panel.ways:
        xs, ys = zip(*way.points, strict=True)
        match way.kind:
            case "router":
                axes.plot(xs, ys, color=_BLUE, linewidth=2.6, zorder=4, label=way.name)
                axes.plot(*panel.at, "o", color=_BLUE, markersize=9, zorder=5, label="its threshold")
            case "signal":
                axes.plot(xs, ys, color=next(signals), linewidth=1.3, zorder=3, label=way.name)
            case "random":
                axes.plot(xs, ys, color=_SOFT, linewidth=1.2, linestyle=(0, (4, 3)), label=way.name)
            case "oracle":
                axes.plot(xs, ys, color=_INK, linewidth=1.2, linestyle=(0, (1, 2)), label=way.name)
            case "fixed":
                axes.plot(xs, ys, "s", color=_SOFT, markersize=5, clip_on=False, zorder=3)
                # Curves rise from lower left to upper right, so there is room above one end and below the other.
                right = xs[0] > 0.5
                place = (2, 11) if right else (8, -11)
                label = axes.annotate(way.name, (xs[0], ys[0]), place, textcoords="offset points", color=_SOFT)
                label.set(fontsize=9, ha="right" if right else "left", va="center")
    _frame(axes)
    low = min(y for way in panel.ways for _, y in way.points)
    high = max(y for way in panel.ways for _, y in way.points)
    room = 0.12 * max(high - low, 0.05)
    axes.set_ylim(low - room, high + room)


def _risk(axes: Axes, panel: RoutingPanel, *, titled: bool) -> None:
    if titled:
        axes.set_title("What is served on the device", pad=10, color=_INK)
    axes.set_xlabel("coverage: share answered on the device")
    axes.set_ylabel("share of these that is wrong")
    axes.plot(*zip(*panel.risk, strict=True), color=_BLUE, linewidth=2.6, zorder=4)
    axes.axhline(panel.wrong, color=_SOFT, linewidth=1.2, linestyle=(0, (4, 3)))
    if panel.served:
        axes.plot(*panel.served, "o", color=_BLUE, markersize=9, zorder=5)
    _frame(axes)
    axes.set_ylim(0, max([panel.wrong, *(y for _, y in panel.risk)]) * 1.12 or 1.0)


def _frame(axes: Axes) -> None:
    axes.tick_params(which="both", length=0)
    axes.set_xlim(-0.02, 1.02)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
