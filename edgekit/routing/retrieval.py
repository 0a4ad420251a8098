"""Answers from the user's own files: passages put before a question, and what is private kept on the device."""

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
"""Of the device's context, what passages may take: the rest is for the question and its answer."""


class Grounding:
    """A folder of documents beside a router. May be used by several threads at once.

    Attributes:
        words: what was read and what was not, in a sentence.
    """

    def __init__(self, folder: Path, *, context: int, count: Callable[[str], int]) -> None:
        """Read and index the folder.

        Args:
            folder: of text files; see recall.read_documents.
            context: tokens that the device takes.
            count: tokens of a text.

        Raises:
            RouteError: no such folder, nothing in it to read, or too much.
            ConfigError: bm25s is not installed.
        """
        library = read_documents(folder)
        self.words = _describe(library)
        self._index = Index(library.documents)
        self._most = int(SHARE * context)
        self._count = count

    def ground(self, request: Request) -> Request:
        """The request with passages that share its words, private where one of them is, or where it quotes one."""
        asked = [m.content for m in request.messages if m.role == "user"] or [request.text]
        grounded = with_passages(request, self._index.search(asked[-1], PASSAGES, self._most, count=self._count))
        # With its passages, as these would leave too; not where it stays already.
        quoted = "" if grounded.private else self.find_quote(grounded)
        return replace(grounded, private=quoted) if quoted else grounded

    def find_quote(self, request: Request) -> str:
        """Why a request must stay here by what would be sent of it: the private document it quotes; "" for none."""
        if self._index.private_text.empty:
            return ""
        reading = request.outgoing.reading
        if not reading.whole:
            return "it is too long to be looked through for private documents"
        return self._index.private_text.found_in(reading.wording)

    def remember(self, request: Request, answer: str) -> None:
        """What was answered from private text is private, when the conversation comes back with it."""
        if request.private and answer:
            self._index.private_text.add(answer, request.private)


def _describe(library: Library) -> str:
    read, private = len(library.documents), sum(bool(d.private) for d in library.documents)
    said = f"Answers draw on {read} {'document' if read == 1 else 'documents'}"
    said += f"; what is asked of {private} private among them stays on this device." if private else ", none private."
    if library.skipped:
        first = library.skipped[0]
        others = f" and {len(library.skipped) - 1} others" if len(library.skipped) > 1 else ""
        said += f" Left out: {first.path} ({first.reason}){others}."
    return said
