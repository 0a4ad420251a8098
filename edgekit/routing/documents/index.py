"""Search by words: BM25 over the passages of the user's documents (Robertson et al., Okapi at TREC-3), by bm25s."""

from __future__ import annotations

import logging
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.errors import ConfigError
from edgekit.routing.documents.documents import split
from edgekit.routing.documents.quotes import PrivateText

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgekit.routing.documents.documents import Document


@dataclass(frozen=True)
class Passage:
    """A piece of a document. ``score`` is BM25's, comparable only within one search."""

    path: str
    text: str
    score: float
    private: bool


class Index:
    """A search index of the passages of documents, kept in memory. Thread-safe.

    Args:
        documents: the result of ``read_documents``.

    Raises:
        ConfigError: the extra ``serve`` is not installed.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        self.passages = tuple(Passage(d.path, text, 0.0, bool(d.private)) for d in documents for text in split(d.text))
        self.private_text = PrivateText()
        for document in documents:
            if document.private:
                self.private_text.add(document.text, f"the document {document.path} is private", lasting=True)
        bm25s = _load()
        tokens = [self._words(p.text) for p in self.passages]
        self._vocabulary = frozenset(w for words in tokens for w in words)
        self._scorer = None
        if self._vocabulary:
            self._scorer = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
            self._scorer.index(tokens, show_progress=False)

    def search(
        self,
        question: str,
        k: int = 4,
        at_most_tokens: int | None = None,
        *,
        count: Callable[[str], int] | None = None,
    ) -> tuple[Passage, ...]:
        """Return the passages with the highest BM25 scores, best first; only those that share a word with the question.

        Args:
            question: the text to search for.
            k: most passages to return.
            at_most_tokens: most tokens of all passages together; passages that do not fit are skipped. None: no limit.
            count: returns the tokens of a text; by default four thirds of its words, or a third of its characters.
        """
        words = [w for w in self._words(question) if w in self._vocabulary]
        if not words or self._scorer is None or k < 1:
            return ()
        scores = self._scorer.get_scores(words)
        tokens_of = count or _estimate
        left = float("inf") if at_most_tokens is None else at_most_tokens
        found: list[Passage] = []
        for place in (-scores).argsort(kind="stable"):
            if scores[place] <= 0 or len(found) == k:
                break
            passage = self.passages[place]
            if (needed := tokens_of(passage.text)) > left:
                continue
            left -= needed
            found.append(Passage(passage.path, passage.text, float(scores[place]), passage.private))
        return tuple(found)

    def _words(self, text: str) -> list[str]:
        """Split a text as bm25s does by default: lower case, at least two letters, without English stop words."""
        composed = unicodedata.normalize("NFKC", text)
        words: list[list[str]] = _load().tokenize([composed], return_ids=False, show_progress=False)
        return words[0]


def _estimate(text: str) -> int:
    return max(4 * len(text.split()), len(text)) // 3 + 1


def _load() -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise ConfigError(f"document search needs {error.name or 'bm25s'}", "pip install 'edgekit[serve]'") from error
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets DEBUG itself, past the root's level
    return bm25s
