"""The maximum bytes of text per token, to reject texts that cannot fit a context without encoding them.

A text of n bytes has at least n / reach tokens. That holds if every byte ends up in some token and no rule lets a token
consume more than its own characters, as in byte-level and byte-fallback BPE of the LLaMA family; no bound is claimed
for other tokenizers.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import tokenizers

_SPACE = "\u2581"
"""SentencePiece's sign for a space."""

_KEEPING = ("ByteLevel", "Digits", "Metaspace", "Split")
"""Pre-tokenizers that keep all text, given the check in ``_keeps_text``."""


def find_reach(codec: tokenizers.Tokenizer) -> int | None:
    """The maximum bytes of UTF-8 per token of this tokenizer; None if there is no certain bound."""
    import tokenizers

    model = codec.model
    added = codec.get_added_tokens_decoder().values()
    if not isinstance(model, tokenizers.models.BPE) or codec.truncation or any(t.lstrip or t.rstrip for t in added):
        return None
    normalizers, cutters = list(_parts(codec.normalizer)), list(_parts(codec.pre_tokenizer))
    if not all(map(_keeps_length, normalizers)) or not all(map(_keeps_text, cutters)):
        return None
    vocabulary = codec.get_vocab()
    if any(cutter["type"] == "ByteLevel" for cutter in cutters):
        letters = set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        if normalizers or not letters <= vocabulary.keys():
            return None
        # Each character of the vocabulary is a byte; added tokens match the text literally.
        return max(*map(len, vocabulary), *(len(t.content.encode()) for t in added))
    if not model.byte_fallback or not {f"<0x{byte:02X}>" for byte in range(256)} <= vocabulary.keys():
        return None
    # The sign for a space has three bytes and a space one, so the bound may be too large but never too small.
    return max(len(token.encode()) for token in vocabulary)


def _parts(step: Any) -> Iterator[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer, in tokenizer.json's format."""
    if step is None:
        return
    told = json.loads(step.__getstate__())
    yield from told.get("normalizers", told.get("pretokenizers", [told]))


def _keeps_length(normalizer: dict[str, Any]) -> bool:
    """Whether a normalizer never makes text shorter."""
    if normalizer["type"] == "Prepend":
        return True
    return normalizer["type"] == "Replace" and (normalizer["pattern"], normalizer["content"]) == (
        {"String": " "},
        _SPACE,
    )


def _keeps_text(cutter: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer keeps every character."""
    return cutter["type"] in _KEEPING and cutter.get("behavior") != "Removed"
