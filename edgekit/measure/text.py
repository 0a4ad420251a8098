"""The text that quality is measured on: its name, its hash, and the windows of tokens cut from it.

The embedded corpus is CPython's own help texts (``pydoc_data.topics``): English prose with code and tables, on every
machine that runs edgekit. It differs between versions of Python, so its name tells the version.
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
"""Bytes of a text; a million tokens are 5 million of them."""
_CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True)
class Text:
    """A text and what it is called."""

    name: str
    content: str

    @property
    def sha256(self) -> str:
        """Of its UTF-8 bytes."""
        return sha256(self.content.encode()).hexdigest()


def embedded_text() -> Text:
    """CPython's help topics, in the order of their names.

    Raises:
        MeasureError: this Python was packaged without them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise MeasureError(
            "this Python has no pydoc_data.topics, the embedded text", "name another one: `text`"
        ) from error
    content = "\n".join(topics[name] for name in sorted(topics))
    return Text(f"CPython {platform.python_version()} pydoc_data.topics", content)


def read_text(path: Path) -> Text:
    """A UTF-8 file of at most LARGEST bytes; its name is the text's.

    Raises:
        MeasureError: it cannot be read, or is not UTF-8.
    """
    data = read_plain(path, LARGEST, error=MeasureError)
    try:
        return Text(path.name, data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise MeasureError(f"{path}: not UTF-8 at byte {error.start}", "convert it: iconv -t UTF-8") from error


def cut_windows(text: Text, encode: Callable[[str], list[int]], window: int, tokens: int) -> NDArray[np.int64]:
    """Cut the beginning of a text into token windows that do not overlap. No token is added to any, not even a BOS.

    Args:
        text: the text.
        encode: the source's tokenizer, adding no special tokens.
        window: tokens in each.
        tokens: how many are wanted in all; rounded up to whole windows, at least 2 (an interval needs two).

    Returns:
        [windows, window] token ids.

    Raises:
        MeasureError: the text is too short, with the count that is needed, or the window is.
    """
    if window < 2 or tokens < 1:
        raise MeasureError(f"window={window}, tokens={tokens}: too small", "a window scores window - 1 tokens")
    count = max(2, -(-tokens // window))
    needed = count * window
    ids = encode(text.content[: _CHARACTERS_PER_TOKEN * needed])
    if len(ids) < needed:
        ids = encode(text.content)
    if len(ids) < needed:
        raise MeasureError(
            f"{text.name}: {len(ids)} tokens, and {count} windows of {window} need {needed}",
            f"give a longer text, or ask for fewer: `tokens={len(ids) // window * window or window}`",
        )
    return np.array(ids[:needed], np.int64).reshape(count, window)
