"""How much text one token can stand for: what is longer than a context full of such tokens does not fit it.

A text of n bytes has at least n / reach tokens, whatever it says. That holds where every byte ends up in some token and
no rule lets one token swallow more than its own letters, which is so for byte-level and for byte-fallback BPE as the
LLaMA family uses them; for all others nothing is claimed.
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
"""What cuts text before it becomes tokens and, as it is looked at below, loses none of it."""


def find_reach(codec: tokenizers.Tokenizer) -> int | None:
    """Most bytes of UTF-8 that a token of this tokenizer stands for, None where nothing can be said for certain."""
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
        # Each letter is a byte; an added token is found in the text as it is written.
        return max(*map(len, vocabulary), *(len(t.content.encode()) for t in added))
    if not model.byte_fallback or not {f"<0x{byte:02X}>" for byte in range(256)} <= vocabulary.keys():
        return None
    # The sign for a space takes three bytes, and the space one: longer than it may be, never shorter.
    return max(len(token.encode()) for token in vocabulary)


def _parts(step: Any) -> Iterator[dict[str, Any]]:
    """What a normalizer or pre-tokenizer consists of, as tokenizer.json has it."""
    if step is None:
        return
    told = json.loads(step.__getstate__())
    yield from told.get("normalizers", told.get("pretokenizers", [told]))


def _keeps_length(normalizer: dict[str, Any]) -> bool:
    """Whether it makes no text shorter."""
    if normalizer["type"] == "Prepend":
        return True
    return normalizer["type"] == "Replace" and (normalizer["pattern"], normalizer["content"]) == (
        {"String": " "},
        _SPACE,
    )


def _keeps_text(cutter: dict[str, Any]) -> bool:
    """Whether every character is still there behind it."""
    return cutter["type"] in _KEEPING and cutter.get("behavior") != "Removed"
