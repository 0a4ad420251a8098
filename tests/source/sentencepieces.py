"""A tokenizer.model as Llama 2's: BPE with bytes, spaces as U+2581, one in front, none removed."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

TEXT = "The quick brown fox jumps over the lazy dog. Paris is the capital of France.  Two  spaces. 12345 Hello  world "


def train(folder: Path, **options: Any) -> Path:
    """Train ``folder``/tokenizer.model on TEXT with sentencepiece's own trainer."""
    import sentencepiece

    (folder / "text").write_text("\n".join(TEXT[i:] for i in range(40)))
    normal: dict[str, Any] = {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "model_type": "bpe",
        "byte_fallback": True,
    }
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=340,
        hard_vocab_limit=False,
        minloglevel=2,
        **(normal | options),
    )
    (folder / "text").unlink()
    (folder / "tokenizer.vocab").unlink()
    return folder / "tokenizer.model"


WORDS = ("▁t", "he", "▁the", "er", "or", "ll", "▁H", "el", "▁Hel", "lo", "▁Hello", "▁w", "▁wor", "ld", "▁world", "▁▁")
LETTERS = "▁etaonisrhldumwH.,"


def write(path: Path, *, unigram: bool = False, fallback: bool = True, prefix: bool = True) -> Path:
    """Write a tokenizer.model of WORDS, best first, and LETTERS, whose ids no trainer decides."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{b:02X}>", 0.0, 6) for b in range(256)] if fallback else []
    pieces += [(word, -float(i), 1) for i, word in enumerate(WORDS)]
    pieces += [(letter, -100.0 - i, 1) for i, letter in enumerate(LETTERS)]
    data = b""
    for text, score, kind in pieces:
        entry = _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind)
        data += _field(1, entry)
    trainer = _number(3, 1 if unigram else 2) + _number(35, fallback) + b"".join(_number(40 + i, i) for i in range(3))
    data += _field(2, trainer) + _field(3, _field(1, b"identity") + _number(3, prefix) + _number(4, 0))
    path.write_bytes(data)
    return path


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)
