"""The source's own tokenizer, by another road than the tokenizer.json that ships: what that file must agree with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekit.types import Checkpoint


def source_tokenizer(checkpoint: Checkpoint) -> Callable[[str], list[int]]:
    """A function from text to token ids, as the source itself would: no tokens around it, special tokens recognised.

    A Hugging Face folder is loaded by transformers' AutoTokenizer. A GGUF file has no tokenizer but its metadata;
    for it the oracle is a second implementation of what llama.cpp does (gguf_oracle.py).

    Raises:
        SourceError: when a GGUF file's header cannot be read any more.
    """
    if checkpoint.provenance.kind in ("gguf", "packaged"):
        from edgekit.source.gguf_file import read_gguf
        from edgekit.source.gguf_oracle import make_encoder

        return make_encoder(read_gguf(Path(checkpoint.provenance.location)))
    from edgekit.source.sidefiles import load_tokenizer

    tokenizer = load_tokenizer(Path(checkpoint.provenance.location))

    def encode(text: str) -> list[int]:
        # verbose=False: a text longer than the context is what we mean to give.
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    return encode
