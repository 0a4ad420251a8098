"""Every table and number that a document shows, by name, from the records in benchmarks/results.

docs/generate.py puts them into docs/benchmarks.md and into the marked regions of README.md.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from benchmarks.page import large, learn, npu, quality, race, routing, server
from benchmarks.page.records import RecordError
from benchmarks.results import FOLDER

if TYPE_CHECKING:
    from pathlib import Path

SUBJECTS = (race, learn, quality, large, npu, server, routing)
PLACEHOLDER = re.compile(r"\{\{ *([\w.]+) *\}\}")
REGION = re.compile(r"(<!-- generated: ([\w.]+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def figures(folder: Path = FOLDER) -> dict[str, str]:
    """Text by the name that a placeholder gives it. A record that is missing or of another form: RecordError."""
    found: dict[str, str] = {}
    for subject in SUBJECTS:
        found |= subject.figures(folder)
    return found


def fill_placeholders(template: str, found: dict[str, str]) -> str:
    """The template with every ``{{ name }}`` replaced."""
    return PLACEHOLDER.sub(lambda match: _look_up(found, match[1]), template)


def fill_regions(document: str, found: dict[str, str]) -> str:
    """The document with what stands between ``<!-- generated: name -->`` and ``<!-- end -->`` written again."""
    return REGION.sub(lambda match: f"{match[1]}\n{_look_up(found, match[2])}\n\n{match[3]}", document)


def _look_up(found: dict[str, str], name: str) -> str:
    if name not in found:
        raise RecordError(f"no figure is called {name!r}; there are {', '.join(sorted(found))}")
    return found[name]
