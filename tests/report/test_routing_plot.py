"""The picture of a router, as a file."""

from pathlib import Path

import pytest

from edgekit.errors import EdgekitError
from edgekit.report.routing_plot import RoutingPanel, Way, draw_routing

LINE = ((0.0, 0.5), (0.5, 0.8), (1.0, 0.9))
PANEL = RoutingPanel(
    title="questions: somebody",
    ways=(
        Way("calibrated router", "router", LINE),
        Way("raw entropy", "signal", LINE),
        Way("random", "random", ((0.0, 0.5), (1.0, 0.9))),
        Way("oracle", "oracle", LINE),
        Way("always local", "fixed", ((0.0, 0.5),)),
        Way("always cloud", "fixed", ((1.0, 0.9),)),
    ),
    at=(0.5, 0.8),
    risk=((0.1, 0.0), (0.5, 0.2), (1.0, 0.5)),
    served=(0.5, 0.2),
    wrong=0.5,
)


def test_one_data_set_is_two_drawings_side_by_side(tmp_path):
    svg = draw_routing([PANEL], tmp_path / "new" / "one.svg").read_text()
    assert svg.count('id="axes_') == 2
    for text in ("questions: somebody", "raw entropy", "always local", "always cloud", "What is served on the device"):
        assert text in svg
    assert svg == draw_routing([PANEL], tmp_path / "again.svg").read_text()


def test_several_are_columns(tmp_path):
    svg = draw_routing([PANEL] * 3, tmp_path / "three.svg").read_text()
    assert svg.count('id="axes_') == 6
    assert svg.count("always local") == 3
    assert svg.count(">raw entropy<") == 1  # the legend is of all
    assert draw_routing([PANEL], tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(EdgekitError, match=r"\.svg or \.png"):
        draw_routing([PANEL], Path("x.pdf"))
    with pytest.raises(EdgekitError, match="nothing to plot"):
        draw_routing([], Path("x.svg"))
