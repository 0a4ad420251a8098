"""Private text that comes back: in an earlier answer that a conversation carries along, or pasted by the user."""

from __future__ import annotations

import re
from threading import Lock
from typing import TYPE_CHECKING

from edgekit.types.reading import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RUN = 8
"""Words in a row that make a quotation."""
MOST_PASSING = 500_000
"""Runs of texts that need not last: some two thousand answers. Beyond, the oldest are forgotten."""
_SAYING = 3
"""Words from which on a text that is shorter than a run counts wherever it appears; below, as a whole message."""

_Said = tuple[str, ...]


class PrivateText:
    """Finds what was private in other texts, word for word: runs of eight words, or whole shorter texts.

    It does not find what was put into other words. Thread-safe. Kept in memory, some hundred bytes a word.
    """

    def __init__(self, most_passing: int = MOST_PASSING) -> None:
        self._lock = Lock()
        self._lasting: dict[int, str] = {}
        self._passing: dict[int, str] = {}
        self._most_passing = most_passing
        self._lengths: set[int] = set()

    def add(self, text: str, reason: str, *, lasting: bool = False) -> None:
        """Note a text: a private document, or an answer that was given from one.

        Args:
            text: what must not leave.
            reason: what ``found_in`` says where it is found, as in ``the document a.md is private``.
            lasting: it is never forgotten, as documents are not.
        """
        words = _words(text)
        if not words:
            return
        runs = map(hash, _runs(words, RUN)) if len(words) >= RUN else (hash(words),)
        with self._lock:
            self._lengths.add(min(len(words), RUN))
            known = self._lasting if lasting else self._passing
            for run in runs:
                known.pop(run, None)  # what is said again is the newest
                known[run] = reason
            while len(self._passing) > self._most_passing:
                del self._passing[next(iter(self._passing))]

    @property
    def empty(self) -> bool:
        """Nothing was noted."""
        return not self._lengths

    def found_in(self, texts: Iterable[str]) -> str:
        """Why these texts, the messages of a request, must stay on the device; "" if nothing was found."""
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
    """The hashes of everything in a text that may have been noted: of runs as long as something that was."""
    if len(words) < _SAYING:
        yield hash(words)
    for length in lengths:
        if length >= _SAYING:
            yield from map(hash, _runs(words, length))


def _runs(words: _Said, length: int) -> Iterator[_Said]:
    return zip(*(words[i:] for i in range(length)), strict=False)


def _words(text: str) -> _Said:
    return tuple(re.findall(r"\w+", plain(text).casefold()))
