"""Write a self-contained HTML page with plots about bundles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit.host.disk import make_parent, write_whole, writing
from edgekit.report.environment import load_template
from edgekit.report.page import compose

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekit.types import Bundle

__all__ = ["write_report"]


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
    page = load_template("page.html.j2").render(page=compose(bundles)).encode()
    with writing(out, len(page)):
        make_parent(out)
        write_whole(out, page)
    return out
