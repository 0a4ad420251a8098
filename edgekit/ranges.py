"""Allowed ranges of numbers and strings in records, which may come from untrusted files.

A field's type declares its range (``layers: Layers``), and ``record.from_json`` enforces it. The ranges exceed every
published model, and keep a number in a file from requesting more than a machine has. Standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Within:
    """A number from ``least`` to ``most``, inclusive."""

    least: int
    most: int


@dataclass(frozen=True)
class Matching:
    """A string that fully matches the regular expression ``pattern``, described by ``words`` in messages."""

    pattern: str
    words: str

    def holds(self, text: str) -> bool:
        """Whether a string matches the pattern."""
        return re.fullmatch(self.pattern, text) is not None


@dataclass(frozen=True)
class Unbounded:
    """A measured number that may be infinite or NaN, which a record stores as a word."""


MAX_WHOLE = 2**53
"""Largest whole number in any field; floating point and other JSON readers are exact up to it."""

MAX_TEXT = 1 << 16
"""Most characters of any string."""

MAX_ITEMS = 1 << 16
"""Most items of any sequence. The largest models have 2,000 tensors, a bundle for ten devices 200 files."""

LAYERS = Within(1, 2**8)
HEADS = Within(1, 2**10)
HEAD_SIZE = Within(1, 2**12)
HIDDEN = Within(1, 2**17)
INTERMEDIATE = Within(1, 2**20)
VOCABULARY = Within(1, 2**22)
CONTEXT = Within(1, 2**24)
WINDOW = Within(1, 2**31)
"""A decoder's sizes: at least twice those of any published model of these families.

The largest, Llama 3.1 405B, has hidden 16384, inner 53248, 126 layers, 128 heads of 128; the largest vocabulary has
262,208 tokens, the longest context 10 million. Beyond these limits runtimes allocate before checking, or overflow 32
bits.
"""

Layers = Annotated[int, LAYERS]
Heads = Annotated[int, HEADS]
HeadSize = Annotated[int, HEAD_SIZE]
RotaryDim = Annotated[int, Within(0, 2**12)]
"""Rotated dimensions of a head; 0 if unknown, because the graph was exported elsewhere."""
Hidden = Annotated[int, HIDDEN]
Intermediate = Annotated[int, INTERMEDIATE]
Vocabulary = Annotated[int, VOCABULARY]
Context = Annotated[int, CONTEXT]
Window = Annotated[int, WINDOW]
Width = Annotated[int, INTERMEDIATE]
"""Columns of a weight."""
Rows = Annotated[int, Within(1, 2**24)]
"""Rows of a weight, or of several joined ones."""
Token = Annotated[int, Within(0, 2**22)]
"""A token id."""
Bits = Annotated[int, Within(1, 32)]
Block = Annotated[int, Within(0, 1 << 20)]
"""Weights per scale; 0 is a whole row."""
Level = Annotated[int, Within(0, 4)]
"""MatMulNBits' accuracy level."""
Opset = Annotated[int, Within(1, 100)]
Threads = Annotated[int, Within(1, 4096)]
Chunk = Annotated[int, Within(1, 1 << 20)]
"""Tokens per run."""
Bytes = Annotated[int, Within(0, 1 << 50)]
Count = Annotated[int, Within(0, MAX_WHOLE)]
Share = Annotated[float, Within(0, 1)]
Epsilon = Annotated[float, Within(0, 1)]
Measured = Annotated[float, Unbounded()]
NotNegative = Annotated[float, Within(0, 10**30)]
PLAIN_NAME = Matching(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", "a name of letters, digits, '.', '_', '+' and '-'")
"""A valid name for a folder or a file."""

Name = Annotated[str, PLAIN_NAME]
Digest = Annotated[str, Matching(r"[0-9a-f]{64}|", "a sha256 in hexadecimal")]
