"""Grade an answer by comparing it with the reference answers, in one of five ways.

========  ==================================================================================================
exact     the whole text equals an answer, except for case, whitespace and punctuation at its ends
prefix    the text begins with the words of an answer, whatever follows (LAMBADA's last word)
contains  the text contains the words of an answer, as whole words
number    the text's number equals an answer's: the one after the last ``####``, else the last one (GSM8K)
choice    the first of the possible choices in the text is an answer
========  ==================================================================================================

Words are runs of letters and digits, with apostrophes inside. With several reference answers, any match is right.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.types.routing import Grading

_WORD = re.compile(r"\w+(?:'\w+)*")
_NUMBER = re.compile(r"(?<![\w.])[-+]?[$€£¥]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])[-+]?[$€£¥]?\.\d+")
_MARK = "####"


def is_right(text: str, answers: Sequence[str], grading: Grading, choices: Sequence[str] = ()) -> bool:
    """Whether ``text`` matches one of ``answers``; see the top of this file for the gradings.

    Args:
        text: the answer to grade.
        answers: the reference answers, any of which is right.
        grading: how to compare.
        choices: for ``choice``, the possible choices, wrong ones included; the answers are always possible.
    """
    if grading == "exact":
        return _stripped(text) in {_stripped(answer) for answer in answers}
    if grading == "number":
        found = find_number(text)
        return found is not None and found in {find_number(answer) for answer in answers}
    words = _words(text)
    wanted = [_words(answer) for answer in answers]
    if grading == "prefix":
        return any(some and words[: len(some)] == some for some in wanted)
    if grading == "contains":
        return any(_place(words, some) is not None for some in wanted)
    return _first(words, [*wanted, *map(_words, choices)]) in wanted


def find_number(text: str) -> Decimal | None:
    """Return a text's number: the first after its last ``####``, else its last; None if there is none.

    ``1,234.50``, ``$5``, ``-3``, ``.5`` and ``50%`` are numbers, and equal to 1234.5, 5, -3, 0.5 and 50. A full stop at
    the end of a sentence is not part of one. A minus directly after a word or a number is not a sign.
    """
    text = text.replace("−", "-")
    _, mark, after = text.rpartition(_MARK)
    behind: list[str] = _NUMBER.findall(after) if mark else []
    found = behind[:1] or _NUMBER.findall(text)[-1:]
    return Decimal(re.sub(r"[,$€£¥]", "", found[0])) if found else None


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("’", "'").casefold()


def _stripped(text: str) -> str:
    """Fold case, collapse whitespace, and strip punctuation and whitespace at the ends."""
    plain = " ".join(_plain(text).split())
    inside = [at for at, letter in enumerate(plain) if not (letter.isspace() or unicodedata.category(letter)[0] == "P")]
    return plain[inside[0] : inside[-1] + 1] if inside else plain


def _words(text: str) -> list[str]:
    return _WORD.findall(_plain(text))


def _place(words: list[str], some: list[str]) -> int | None:
    """Return the first index of the sequence ``some`` in ``words``, None if absent."""
    places = range(len(words) - len(some) + 1) if some else range(0)
    return next((at for at in places if words[at : at + len(some)] == some), None)


def _first(words: list[str], allowed: list[list[str]]) -> list[str] | None:
    """Return which of ``allowed`` comes first; the longer of two at the same word, ``not good`` before ``not``."""
    found = [(at, -len(some), some) for some in allowed if (at := _place(words, some)) is not None]
    return min(found)[2] if found else None
