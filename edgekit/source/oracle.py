"""The source's own tokenizer, by another road than the tokenizer.json that ships: what that file must agree with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekit.types import Checkpoint

SECONDS = 120.0
"""Processor time for one text, a whole corpus at most."""


def source_tokenizer(checkpoint: Checkpoint) -> Callable[[str], list[int]]:
    """A function from text to token ids, as the source itself would: no tokens around it, special tokens recognised.

    A Hugging Face folder is loaded by transformers' AutoTokenizer, in a cell. A GGUF file has no tokenizer but its metadata;
    for it the oracle is a second implementation of what llama.cpp does (gguf_oracle.py).

    Raises:
        SourceError: when a GGUF file's header cannot be read any more, or the folder's tokenizer cannot be opened.
    """
    if checkpoint.provenance.kind in ("gguf", "packaged"):
        from edgekit.source.gguf_file import read_gguf
        from edgekit.source.gguf_oracle import make_encoder

        return make_encoder(read_gguf(Path(checkpoint.provenance.location)))
    from edgekit.source.folder import Folder
    from edgekit.source.sidefiles import load_tokenizer

    folder = checkpoint.provenance.location
    what, hint = f"the tokenizer of {folder}", "download its files again, or give the bundle's own tokenizer.json there"
    cell = load_tokenizer(Folder(Path(folder)))
    cell.open(what=what, error=SourceError, hint=hint)

    def encode(text: str) -> list[int]:
        request = {"do": "encode", "text": text, "special": False}
        return list(cell.ask(request, seconds=SECONDS, what=what, error=SourceError, hint=hint)["ids"])

    return encode
