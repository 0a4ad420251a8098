"""Text that shares a run of 13 words with evaluation text, found as in GPT-3's decontamination.

Brown et al. 2020 (arXiv:2005.14165), appendix C: n-grams of lowercased words without punctuation, n = 13. They cut a
document around each match; here the document or section is left out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

WORDS = 13
"""Words of a run."""

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
"""A word; each character of scripts that write no spaces (Chinese, Japanese) counts as one."""


class Overlap:
    """The hashed runs of words of evaluation texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._known = {run for text in texts for run in _runs(text)}

    def holds(self, text: str) -> bool:
        """Whether a text shares a run with them."""
        return any(run in self._known for run in _runs(text))


def _runs(text: str) -> Iterator[int]:
    words = [word.lower() for word in _WORD.findall(text)]
    for first in range(len(words) - WORDS + 1):
        yield hash(tuple(words[first : first + WORDS]))
