"""The source's own tokenizer, by another road than the tokenizer.json that ships: what that file must agree with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cell import Cell
from edgekit.errors import SourceError
from edgekit.source.corpus import AWKWARD
from edgekit.source.fields import shown
from edgekit.tokenizer_file import check_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekit.types import Checkpoint

SECONDS = 120.0
"""Processor time for one text, a whole corpus at most."""


def try_tokenizer(checkpoint: Checkpoint) -> None:
    """Open the tokenizer.json that will ship with the runtime that will open it, in a cell, and encode awkward texts.

    Raises:
        SourceError: the runtime refuses it, or gives its added tokens other ids than it says.
    """
    data = checkpoint.file("tokenizer.json")
    if data is None:
        return
    what, hint = f"{checkpoint.provenance.id}: tokenizer.json", "take tokenizer.json from the model's own page"
    form = check_tokenizer(data, what, error=SourceError)
    cell = Cell({"do": "open_tokenizer", "text": data.decode("utf-8")})
    try:
        ids = cell.open(what=what, error=SourceError, hint=hint)["ids"]
        for token, i in form.added.items():
            if token and ids.get(token) != i:
                raise SourceError(
                    f"{what} says that {shown(token)} is token {i}, and its runtime makes it {ids.get(token)}",
                    "the ids of added tokens must go on from the vocabulary's without a gap",
                )
        for text in AWKWARD:
            request = {"do": "encode", "text": text, "special": True}
            found = cell.ask(request, seconds=SECONDS, what=what, error=SourceError, hint=hint)["ids"]
            if max(found, default=0) >= checkpoint.spec.vocab_size:
                raise SourceError(f"{what} gives {shown(text)} the id {max(found)}, which has no row", hint)
    finally:
        cell.close()


def source_tokenizer(checkpoint: Checkpoint) -> Callable[[str], list[int]]:
    """A function from text to token ids, as the source itself would: no tokens around it, special tokens recognised.

    A Hugging Face folder is loaded by transformers' AutoTokenizer, in a cell. A GGUF file has no tokenizer but its
    metadata; for it the oracle is a second implementation of what llama.cpp does (gguf_oracle.py).

    Raises:
        SourceError: when a GGUF file's header cannot be read any more, or the folder's tokenizer cannot be opened.
    """
    if checkpoint.provenance.kind in ("gguf", "packaged"):
        from edgekit.source.gguf_file import read_gguf
        from edgekit.source.gguf_oracle import make_encoder

        return make_encoder(read_gguf(Path(checkpoint.provenance.location)))
    from edgekit.source.folder import Folder
    from edgekit.source.sidefiles import open_tokenizer, transformers_cell

    folder = checkpoint.provenance.location
    what, hint = f"the tokenizer of {folder}", "download its files again, or give the bundle's own tokenizer.json there"
    open_tokenizer(Folder(Path(folder)), what, hint)

    def encode(text: str) -> list[int]:
        request = {"do": "encode_in", "folder": folder, "text": text, "special": False}
        return list(transformers_cell().ask(request, seconds=SECONDS, what=what, error=SourceError, hint=hint)["ids"])

    return encode
