"""Bundles -> one HTML page with plots, that needs nothing from the network."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from jinja2 import DictLoader, Environment, StrictUndefined

from edgekit import words
from edgekit.errors import EdgekitError
from edgekit.host.disk import make_parent, write_whole, writing
from edgekit.report.page import compose

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jinja2 import Template

    from edgekit.types import Bundle

__all__ = ["write_report"]

_FILES = ("page.html.j2", "parts.html.j2", "style.css")


def write_report(bundles: Sequence[Bundle], out: Path) -> Path:
    """Write one self-contained HTML page about some bundles: size, quality, speed, and how each number was obtained.

    What a bundle's manifest does not hold is shown as "not measured": ``verify --record`` and ``bench --record`` put it
    there.

    Args:
        bundles: what to tell about, in this order.
        out: the file; its directory is made.

    Raises:
        EdgekitError: no bundle was given, or ``out`` cannot be written.
    """
    if not bundles:
        raise EdgekitError("a report needs at least one bundle", "edgekit report BUNDLE -o report.html")
    page = _template().render(page=compose(bundles)).encode()
    with writing(out, len(page)):
        make_parent(out)
        write_whole(out, page)
    return out


def _template() -> Template:
    room = resources.files("edgekit.report")
    environment = Environment(
        loader=DictLoader({name: (room / name).read_text(encoding="utf-8") for name in _FILES}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(size=words.size, count=words.count, number=words.number, percent=words.percent)
    return environment.get_template(_FILES[0])
