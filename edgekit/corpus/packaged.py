"""The text that needs no file and no network: what ships with Python."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit import measure
from edgekit.errors import MeasureError

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGED = "packaged"
"""The name of this text."""

LICENCE = "PSF-2.0"

MODULES = (
    *("argparse", "contextlib", "csv", "datetime", "difflib", "doctest", "fractions", "heapq", "imaplib", "inspect"),
    *("ipaddress", "locale", "logging", "mailbox", "optparse", "os", "pathlib", "pickletools", "platform", "random"),
    *("shutil", "smtplib", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading"),
    *("traceback", "turtle", "typing", "uuid", "webbrowser", "zipfile"),
)
"""Modules of Python's library whose docstrings are prose."""

SHORTEST = 120
"""Characters of a docstring that counts."""


def packaged_texts() -> Iterator[tuple[str, list[str]]]:
    """Names and documents: the second half of the help topics, and the library's docstrings, a document a module."""
    text = measure.embedded_text()
    yield f"the second half of {text.name}", [text.content[len(text.content) // 2 :]]
    yield "docstrings of Python's library", [text for text in map(_docstrings, MODULES) if text]


def scored_text() -> str:
    """The first half of the help topics, on whose beginning ``verify`` scores; "" if this Python has none."""
    try:
        content = measure.embedded_text().content
    except MeasureError:
        return ""
    return content[: len(content) // 2]


def _docstrings(module: str) -> str:
    spec = find_spec(module)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return ""
    nodes = ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    documented = (n for n in nodes if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef))
    texts = (ast.get_docstring(node) or "" for node in documented)
    return "\n\n".join(cleandoc(text) for text in texts if len(text) >= SHORTEST)
