"""The user's own documents: read, indexed and searched on the device."""

from edgekit.recall.documents import Document, Library, Skipped, read_documents, split
from edgekit.recall.index import Index, Passage
from edgekit.recall.prompt import with_passages
from edgekit.recall.quotes import PrivateText

__all__ = [
    "Document",
    "Index",
    "Library",
    "Passage",
    "PrivateText",
    "Skipped",
    "read_documents",
    "split",
    "with_passages",
]
