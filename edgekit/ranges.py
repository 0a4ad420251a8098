"""Which numbers and texts a record may hold: what stands in a file from elsewhere sets sizes, counts and names.

A field's type says its range (``layers: Layers``), and ``record.from_json`` refuses what lies outside. The ranges are
wide of every model published; they keep a number from a file from asking for more than a machine has. Standard library
only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Within:
    """A number from ``least`` to ``most``, both allowed."""

    least: int
    most: int


@dataclass(frozen=True)
class Matching:
    """A text that is all of the regular expression ``pattern``; ``words`` says it for people."""

    pattern: str
    words: str

    def holds(self, text: str) -> bool:
        """Whether a text is of the pattern."""
        return re.fullmatch(self.pattern, text) is not None


@dataclass(frozen=True)
class Unbounded:
    """A measured number that may be too large for a float, or undefined: a record holds the word for it then."""


MAX_WHOLE = 2**53
"""Largest whole number of any field: up to it, floating point and JSON's other readers are exact."""

MAX_TEXT = 1 << 16
"""Most characters of any text."""

MAX_ITEMS = 1 << 16
"""Most items of any sequence that sets no limit of its own. The largest models have 2,000 tensors, a bundle for ten
devices 200 files."""

LAYERS = Within(1, 2**8)
HEADS = Within(1, 2**10)
HEAD_SIZE = Within(1, 2**12)
HIDDEN = Within(1, 2**17)
INTERMEDIATE = Within(1, 2**20)
VOCABULARY = Within(1, 2**22)
CONTEXT = Within(1, 2**24)
WINDOW = Within(1, 2**31)
"""A decoder's sizes: at least twice as much as any published model of these families has.

Llama 3.1 405B, the largest, has hidden 16384, inner 53248, 126 layers, 128 heads of 128; the largest vocabulary has
262,208 tokens, the longest context 10 million. Beyond these a runtime allocates before it checks, or counts in 32 bits.
"""

Layers = Annotated[int, LAYERS]
Heads = Annotated[int, HEADS]
HeadSize = Annotated[int, HEAD_SIZE]
RotaryDim = Annotated[int, Within(0, 2**12)]
"""Dimensions of a head that are rotated; 0 where the graph comes from elsewhere and does not say."""
Hidden = Annotated[int, HIDDEN]
Intermediate = Annotated[int, INTERMEDIATE]
Vocabulary = Annotated[int, VOCABULARY]
Context = Annotated[int, CONTEXT]
Window = Annotated[int, WINDOW]
Width = Annotated[int, INTERMEDIATE]
"""Columns of a weight."""
Rows = Annotated[int, Within(1, 2**24)]
"""Rows of a weight; several that were joined have those of all."""
Token = Annotated[int, Within(0, 2**22)]
"""A token's number."""
Bits = Annotated[int, Within(1, 32)]
Block = Annotated[int, Within(0, 1 << 20)]
"""Weights of one scale; 0 is a whole row."""
Level = Annotated[int, Within(0, 4)]
"""MatMulNBits' accuracy level."""
Opset = Annotated[int, Within(1, 100)]
Threads = Annotated[int, Within(1, 4096)]
Chunk = Annotated[int, Within(1, 1 << 20)]
"""Tokens of one run."""
Bytes = Annotated[int, Within(0, 1 << 50)]
Count = Annotated[int, Within(0, MAX_WHOLE)]
Share = Annotated[float, Within(0, 1)]
Epsilon = Annotated[float, Within(0, 1)]
Measured = Annotated[float, Unbounded()]
NotNegative = Annotated[float, Within(0, 10**30)]
PLAIN_NAME = Matching(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", "a name of letters, digits, '.', '_', '+' and '-'")
"""What a folder or a file can be called."""

Name = Annotated[str, PLAIN_NAME]
Digest = Annotated[str, Matching(r"[0-9a-f]{64}|", "a sha256 in hexadecimal")]
