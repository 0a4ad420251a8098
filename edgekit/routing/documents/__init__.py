"""The user's own documents: read, indexed and searched on the device."""

from edgekit.routing.documents.documents import Document, Library, Skipped, read_documents, split
from edgekit.routing.documents.index import Index, Passage
from edgekit.routing.documents.prompt import with_passages
from edgekit.routing.documents.quotes import PrivateText

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
