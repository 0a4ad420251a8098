"""Answers from the user's own files: adds passages to a question, and keeps private ones on the device."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgekit.routing.documents import Index, read_documents, with_passages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgekit.routing.documents import Library
    from edgekit.types.routing import Request

PASSAGES = 3
SHARE = 0.4
"""Largest share of the device's context that passages may fill; the rest is for the question and its answer."""


class Grounding:
    """An indexed folder of documents. Thread-safe.

    Attributes:
        words: a sentence that summarizes what was read and what was skipped.
    """

    def __init__(self, folder: Path, *, context: int, count: Callable[[str], int]) -> None:
        """Read and index the folder.

        Args:
            folder: the folder of text files; see documents.read_documents.
            context: the device's context length in tokens.
            count: returns the number of tokens of a text.

        Raises:
            RouteError: the folder does not exist, has nothing readable, or too much.
            ConfigError: bm25s is not installed.
        """
        library = read_documents(folder)
        self.words = _describe(library)
        self._index = Index(library.documents)
        self._most = int(SHARE * context)
        self._count = count

    def ground(self, request: Request) -> Request:
        """Add the passages that match the request; it becomes private if one of them is, or if it quotes one."""
        asked = [m.content for m in request.messages if m.role == "user"] or [request.text]
        grounded = with_passages(request, self._index.search(asked[-1], PASSAGES, self._most, count=self._count))
        # The passages would be sent too, so they are searched as well.
        quoted = "" if grounded.private else self.find_quote(grounded)
        return replace(grounded, private=quoted) if quoted else grounded

    def find_quote(self, request: Request) -> str:
        """Return why what would be sent must stay here: it quotes a private document; "" if it does not."""
        if self._index.private_text.empty:
            return ""
        reading = request.outgoing.reading
        if not reading.whole:
            return "it is too long to search for private text"
        return self._index.private_text.found_in(reading.wording)

    def remember(self, request: Request, answer: str) -> None:
        """Treat an answer to a private request as private text in the rest of the conversation."""
        if request.private and answer:
            self._index.private_text.add(answer, request.private)


def _describe(library: Library) -> str:
    read, private = len(library.documents), sum(bool(d.private) for d in library.documents)
    text = f"Answers use {read} {'document' if read == 1 else 'documents'}"
    text += f", {private} of them private: questions about those stay on this device." if private else ", none private."
    if library.skipped:
        first = library.skipped[0]
        others = f" and {len(library.skipped) - 1} more" if len(library.skipped) > 1 else ""
        text += f" Skipped: {first.path} ({first.reason}){others}."
    return text
