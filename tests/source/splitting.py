"""Texts that every way to split cuts differently, and a byte-level vocabulary whose merges know no borders."""

from __future__ import annotations

from itertools import pairwise

TEXTS = (
    "Hello, world! It's what they'd've said; I'LL see.",
    "x 1234567 3.14 ½²",
    "a  b   c\n\n\n  d \n",
    "HelloWORLDs it's DON'T e\u0301",
    "日本 café 生活 нет",
    "if(x){\r\n\t\treturn;}//a/b\n",
    "ti ea sn Mx ex la Do \n/q",
    "'tis we'reall 'sno 'Mx 'vex 'llama 'Do z;\n/q",
)
FIRST = 4
"""Ids below are special; from here on come the bytes, then the merges, best first."""


def learn() -> list[tuple[bytes, bytes]]:
    """Every pair of neighbouring bytes of TEXTS is a merge, in the order of the texts: a cut between two shows."""
    pairs = [(bytes([a]), bytes([b])) for text in TEXTS for a, b in pairwise(text.encode())]
    return list(dict.fromkeys(pairs))


def ranks() -> dict[bytes, int]:
    """Ids by token: tiktoken's mergeable_ranks."""
    tokens = [bytes([b]) for b in range(256)] + [left + right for left, right in learn()]
    assert len(set(tokens)) == len(tokens)
    return {token: FIRST + i for i, token in enumerate(tokens)}
