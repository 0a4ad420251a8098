"""The text to measure quality on: its name, its hash, and the windows of tokens cut from it.

The embedded text is CPython's help topics (``pydoc_data.topics``): English prose with code and tables, available
wherever edgekit runs. It differs between versions of Python, so its name includes the version.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import MeasureError
from edgekit.strangers import read_plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

LARGEST = 100_000_000
"""Maximum bytes of a text; a million tokens take about 5 million bytes."""
_CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True)
class Text:
    """A text and its name."""

    name: str
    content: str

    @property
    def sha256(self) -> str:
        """The hash of its UTF-8 bytes."""
        return sha256(self.content.encode()).hexdigest()


def embedded_text() -> Text:
    """CPython's help topics, sorted by name.

    Raises:
        MeasureError: this Python does not include them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise MeasureError(
            "this Python lacks pydoc_data.topics, the embedded text", "pass a file with `text`"
        ) from error
    content = "\n".join(topics[name] for name in sorted(topics))
    return Text(f"CPython {platform.python_version()} pydoc_data.topics", content)


def read_text(path: Path) -> Text:
    """Read a UTF-8 file of at most LARGEST bytes; the file's name is the text's.

    Raises:
        MeasureError: it cannot be read, or is not UTF-8.
    """
    data = read_plain(path, LARGEST, error=MeasureError)
    try:
        return Text(path.name, data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise MeasureError(f"{path}: not UTF-8 at byte {error.start}", "convert it: iconv -t UTF-8") from error


def cut_windows(text: Text, encode: Callable[[str], list[int]], window: int, tokens: int) -> NDArray[np.int64]:
    """Split the beginning of a text into non-overlapping token windows, without adding tokens such as BOS.

    Args:
        text: the text.
        encode: the source's tokenizer, adding no special tokens.
        window: tokens per window.
        tokens: number of tokens in total, rounded up to whole windows, at least 2 (an interval needs two).

    Returns:
        [windows, window] token ids.

    Raises:
        MeasureError: the text or the window is too short.
    """
    if window < 2 or tokens < 1:
        raise MeasureError(
            f"window={window} must be 2 or more and tokens={tokens} 1 or more", "pass a larger `window` or `tokens`"
        )
    count = max(2, -(-tokens // window))
    needed = count * window
    ids = encode(text.content[: _CHARACTERS_PER_TOKEN * needed])
    if len(ids) < needed:
        ids = encode(text.content)
    if len(ids) < needed:
        raise MeasureError(
            f"{text.name}: has {len(ids)} tokens, but {count} windows of {window} need {needed}",
            f"use a longer text, or fewer tokens: `tokens={len(ids) // window * window or window}`",
        )
    return np.array(ids[:needed], np.int64).reshape(count, window)
