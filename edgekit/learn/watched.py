"""A text of another kind than people write: the source code of Python's library. A run that drifts shows it here."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.source import source_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.types import Checkpoint

WATCHED = 3
"""Windows of each watched text; of the held-out text, what comes after them judges the result."""

HELD_OUT = 0.1
"""Share of the documents that is never trained on."""

CODE = "source code of Python's library"
MODULES = ("dataclasses", "queue", "enum", "sched", "fnmatch", "selectors", "bisect", "tabnanny")
"""Modules whose docstrings are not in the packaged text."""


def windows_of_code(checkpoint: Checkpoint, window: int, count: int) -> NDArray[np.int64]:
    """At most ``count`` windows of tokens [n, window] of source code, spread over the modules."""
    encode = source_tokenizer(checkpoint)
    text = "\n\n".join(_source(name) for name in MODULES)
    ids = encode(text)
    starts = [i * (len(ids) - window) // count for i in range(count)]
    return np.array([ids[start : start + window] for start in starts], np.int64)


def _source(module: str) -> str:
    spec = find_spec(module)
    return Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
