"""Find private text that reappears: in an earlier answer of a conversation, or pasted by the user."""

from __future__ import annotations

import re
from threading import Lock
from typing import TYPE_CHECKING

from edgekit.types.reading import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RUN = 8
"""Consecutive words that make a quotation."""
MOST_PASSING = 500_000
"""Most runs of answers to remember, about two thousand answers; then the oldest are forgotten."""
_SAYING = 3
"""Fewest words of a text shorter than RUN that is found anywhere; shorter ones only as a whole message."""

_Said = tuple[str, ...]


class PrivateText:
    """Finds private text in other texts, word for word: runs of eight words, or whole shorter texts.

    Does not find paraphrases. Thread-safe. Kept in memory, some hundred bytes per word.
    """

    def __init__(self, most_passing: int = MOST_PASSING) -> None:
        self._lock = Lock()
        self._lasting: dict[int, str] = {}
        self._passing: dict[int, str] = {}
        self._most_passing = most_passing
        self._lengths: set[int] = set()

    def add(self, text: str, reason: str, *, lasting: bool = False) -> None:
        """Add a private document, or an answer based on one.

        Args:
            text: the text that must not leave.
            reason: returned by ``found_in`` if the text is found, such as ``the document a.md is private``.
            lasting: never forget the text, as for documents.
        """
        words = _words(text)
        if not words:
            return
        runs = map(hash, _runs(words, RUN)) if len(words) >= RUN else (hash(words),)
        with self._lock:
            self._lengths.add(min(len(words), RUN))
            known = self._lasting if lasting else self._passing
            for run in runs:
                known.pop(run, None)  # move it to the newest end
                known[run] = reason
            while len(self._passing) > self._most_passing:
                del self._passing[next(iter(self._passing))]

    @property
    def empty(self) -> bool:
        """Whether nothing was added."""
        return not self._lengths

    def found_in(self, texts: Iterable[str]) -> str:
        """Return why these texts, the messages of a request, must stay on the device; "" if nothing was found."""
        if self.empty:
            return ""
        for text in texts:
            words = _words(text)
            with self._lock:
                for run in _candidates(words, self._lengths):
                    found = self._lasting.get(run) or self._passing.get(run)
                    if found:
                        return found
        return ""


def _candidates(words: _Said, lengths: set[int]) -> Iterator[int]:
    """Yield the hashes of a text's runs of every length that was added."""
    if len(words) < _SAYING:
        yield hash(words)
    for length in lengths:
        if length >= _SAYING:
            yield from map(hash, _runs(words, length))


def _runs(words: _Said, length: int) -> Iterator[_Said]:
    return zip(*(words[i:] for i in range(length)), strict=False)


def _words(text: str) -> _Said:
    return tuple(re.findall(r"\w+", plain(text).casefold()))
