"""Write a self-contained HTML page with plots about bundles."""

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
    """Write one self-contained HTML page about bundles: size, quality, speed, and how each number was obtained.

    Numbers that a bundle's manifest lacks are shown as "not measured"; ``bundle.record`` adds them.

    Args:
        bundles: the bundles to compare, in this order.
        out: the HTML file; missing parent directories are created.

    Raises:
        EdgekitError: ``bundles`` is empty, or ``out`` cannot be written.
    """
    if not bundles:
        raise EdgekitError("a report needs at least one bundle", "run `edgekit report BUNDLE -o report.html`")
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
