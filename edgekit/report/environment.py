"""The templates of the pages."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from jinja2 import DictLoader, Environment, StrictUndefined

from edgekit import words

if TYPE_CHECKING:
    from jinja2 import Template

_FILES = ("page.html.j2", "fleet.html.j2", "parts.html.j2", "style.css")


def load_template(name: str) -> Template:
    """One of the pages' templates, with the filters that they use. Values are escaped."""
    room = resources.files("edgekit.report")
    environment = Environment(
        loader=DictLoader({file: (room / file).read_text(encoding="utf-8") for file in _FILES}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(size=words.size, count=words.count, number=words.number, percent=words.percent)
    return environment.get_template(name)
