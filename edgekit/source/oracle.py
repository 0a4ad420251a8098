"""Independent readers of the source's tokenizer, to check the tokenizer.json that ships against."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import SourceError
from edgekit.source.corpus import TOKENIZER_EDGE_CASES
from edgekit.source.fields import shown
from edgekit.source.sentencepiece_model import read_pieces
from edgekit.strangers.cell import LARGE_MEMORY, Cell
from edgekit.strangers.tokenizer_file import check_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekit.source.folder import Folder
    from edgekit.types import Checkpoint

SECONDS = 120.0
"""Processor time allowed for one text, at most a whole corpus."""


def try_tokenizer(checkpoint: Checkpoint) -> None:
    """Open the tokenizer.json that will ship with the ``tokenizers`` package, in a cell, and encode awkward strings.

    Raises:
        SourceError: the package refuses it, assigns other ids to its added tokens, or gives an id without a row.
    """
    data = checkpoint.file("tokenizer.json")
    if data is None:
        return
    what, hint = f"{checkpoint.provenance.id}: tokenizer.json", "download tokenizer.json from the model's own page"
    form = check_tokenizer(data, what, error=SourceError)
    cell = Cell({"do": "open_tokenizer", "text": data.decode("utf-8")})
    try:
        ids = cell.open(what=what, error=SourceError, hint=hint)["ids"]
        for token, i in form.added.items():
            if token and ids.get(token) != i:
                raise SourceError(
                    f"{what} gives {shown(token)} id {i}, but the tokenizers package assigns {ids.get(token)}",
                    "ids of added tokens must continue those of the vocabulary without a gap",
                )
        for text in TOKENIZER_EDGE_CASES:
            request = {"do": "encode", "text": text, "special": True}
            found = cell.ask(request, seconds=SECONDS, what=what, error=SourceError, hint=hint)["ids"]
            if max(found, default=0) >= checkpoint.spec.vocab_size:
                raise SourceError(f"{what} gives {shown(text)} id {max(found)}, which has no embedding row", hint)
        _compare_with_sentencepiece(checkpoint, cell, what)
    finally:
        cell.close()


def _compare_with_sentencepiece(checkpoint: Checkpoint, cell: Cell, what: str) -> None:
    """Raise SourceError if a tokenizer.json converted from a tokenizer.model encodes differently from it."""
    from edgekit.source.folder import Folder

    place = Path(checkpoint.provenance.location)
    own = _read_sentencepiece(Folder(place), checkpoint) if place.is_dir() else None
    if own is None:
        return

    def ours(text: str) -> list[int]:
        request = {"do": "encode", "text": text, "special": False}
        return list(cell.ask(request, seconds=SECONDS, what=what, error=SourceError, hint="")["ids"])

    wrong = [text for text in TOKENIZER_EDGE_CASES if ours(text) != own.encode(text)]
    if wrong:
        raise SourceError(
            f"{place / 'tokenizer.model'} cannot be converted to tokenizer.json: {own.name} encodes {len(wrong)} of "
            f"{len(TOKENIZER_EDGE_CASES)} test strings differently, the first is {shown(wrong[0][:40])}",
            "copy tokenizer.json from the model's page into the folder",
        )


@dataclass(frozen=True)
class Reader:
    """A reader of a source's tokenizer. ``encode`` recognizes special tokens in the text and adds none around it."""

    name: str
    encode: Callable[[str], list[int]]


def source_readers(checkpoint: Checkpoint) -> tuple[Reader, ...]:
    """Return the available readers of the source's own tokenizer, most trusted first.

    They do not always agree: of a LlamaTokenizer's tokenizer.json transformers 5 uses only the vocabulary. So
    tokenizer.json is read as is first, then a tokenizer.model with sentencepiece if that is installed, then
    AutoTokenizer is used, all in cells. For a GGUF file, whose tokenizer is metadata, the reader is a second
    implementation of llama.cpp's rules (gguf_oracle.py).

    Raises:
        SourceError: no reader can open it.
    """
    if checkpoint.provenance.kind in ("gguf", "packaged"):
        from edgekit.source.gguf_file import read_gguf
        from edgekit.source.gguf_oracle import make_encoder

        return (Reader("llama.cpp's rules", make_encoder(read_gguf(Path(checkpoint.provenance.location)))),)
    from edgekit.source.folder import Folder

    folder = Folder(Path(checkpoint.provenance.location))
    readers = [_read_folder(folder, generic=True)] if folder.has("tokenizer.json") else []
    if (own := _read_sentencepiece(folder, checkpoint)) is not None:
        readers.append(own)
    try:
        readers.append(_read_folder(folder))
    except SourceError:
        if not readers:
            raise
    return tuple(readers)


def source_tokenizer(checkpoint: Checkpoint) -> Callable[[str], list[int]]:
    """The encoder of the most trusted reader in ``source_readers``. Raises SourceError as that does."""
    return source_readers(checkpoint)[0].encode


def _read_folder(folder: Folder, *, generic: bool = False) -> Reader:
    """Read a folder's tokenizer with transformers: with its own class, or (``generic``) tokenizer.json as is."""
    from edgekit.source.sidefiles import open_tokenizer, transformers_cell

    place = str(folder.path)
    what, hint = f"the tokenizer of {place}", "download its files again, or copy the bundle's tokenizer.json there"
    name = open_tokenizer(folder, what, hint, generic=generic)["name"]

    def encode(text: str) -> list[int]:
        request = {"do": "encode_in", "folder": place, "text": text, "special": False, "generic": generic}
        return list(transformers_cell().ask(request, seconds=SECONDS, what=what, error=SourceError, hint=hint)["ids"])

    return Reader("tokenizer.json as it is" if generic else name, encode)


def _read_sentencepiece(folder: Folder, checkpoint: Checkpoint) -> Reader | None:
    """Read tokenizer.model with sentencepiece; None if it is missing or the folder has a tokenizer.json."""
    from edgekit.source.sidefiles import read_token_files

    data = checkpoint.file("tokenizer.json")
    if data is None or folder.has("tokenizer.json") or not folder.has("tokenizer.model"):
        return None
    if find_spec("sentencepiece") is None:
        return None
    file = str(folder.path / "tokenizer.model")
    if read_pieces(folder.read("tokenizer.model"), file) is None:
        return None  # transformers' own conversion, or tiktoken's file of the same name
    added = check_tokenizer(data, str(folder.path), error=SourceError).added
    legacy = read_token_files(folder).settings.get("legacy") in (None, True)
    request = {"do": "open_sentencepiece", "file": file, "marks": dict(added), "legacy": legacy}
    cell, hint = Cell(request, memory=LARGE_MEMORY), "download the file again"
    name = cell.open(what=file, error=SourceError, hint=hint)["name"]

    def encode(text: str) -> list[int]:
        request = {"do": "encode", "text": text, "special": False}
        return list(cell.ask(request, seconds=SECONDS, what=file, error=SourceError, hint=hint)["ids"])

    return Reader(name, encode)
