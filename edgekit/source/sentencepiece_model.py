"""Convert a SentencePiece tokenizer.model to a tokenizer.json that encodes as sentencepiece does.

transformers 5 converts such a file to a pre-tokenizer that adds no space before a text that starts with one, but
sentencepiece, and so every model trained before, adds it; it also makes BPE of a Unigram model. Therefore the file is
parsed here; field numbers are those of sentencepiece_model.proto. ``oracle.try_tokenizer`` compares the result with
sentencepiece if it is installed.
"""

from __future__ import annotations

import struct
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from edgekit.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Piece types; llama.cpp's token types (llama_token_type) are the same.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4

_UNIGRAM, _BPE = 1, 2
"""Model types (TrainerSpec.ModelType) that are converted here; the first is the default."""

MAX_PIECES = 2**20
MAX_SQUARES = 2**28
"""Largest sum of squared token lengths, the cost of finding the merges. Published models have 2**24."""


@dataclass(frozen=True)
class Pieces:
    """A SentencePiece vocabulary, BPE or Unigram, in id order, and how text is normalized for it.

    ``prefix``: prepend a space to the text. ``single_spaces``: strip spaces at both ends and collapse runs.
    ``charsmap``: the normalization table, b"" for none.
    """

    tokens: list[str]
    scores: list[float]
    types: list[int]
    unknown: str | None = None
    byte_fallback: bool = True
    prefix: bool = True
    single_spaces: bool = False
    charsmap: bytes = b""
    unigram: bool = False


def read_pieces(data: bytes, where: str) -> Pieces | None:
    """Read a tokenizer.model. Returns None if it is not a SentencePiece BPE or Unigram model.

    Raises:
        SourceError: it is one, but damaged.
    """
    try:
        found = _read(data)
    except (ValueError, IndexError, struct.error, UnicodeDecodeError):
        return None
    if found is None:
        return None
    if len(set(found.tokens)) != len(found.tokens) or sum(len(t) ** 2 for t in found.tokens) > MAX_SQUARES:
        raise SourceError(f"{where} has duplicate or too long pieces", "download the file again")
    return found


def _read(data: bytes) -> Pieces | None:
    rows: list[tuple[str, float, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for field, value in _fields(data):
        if len(rows) > MAX_PIECES:
            raise ValueError("too many pieces")
        if field == 1:
            piece = dict(_fields(value))
            (score,) = struct.unpack("<f", piece.get(2, b"\0\0\0\0"))
            rows.append((piece[1].decode(), score, piece.get(3, NORMAL)))
        elif field == 2:
            trainer = dict(_fields(value))
        elif field == 3:
            normalizer = dict(_fields(value))
    # 24: treat_whitespace_as_suffix; 5: escape_whitespaces.
    if not rows or trainer.get(3, _UNIGRAM) not in (_UNIGRAM, _BPE) or trainer.get(24) or not normalizer.get(5, 1):
        return None
    tokens, scores, types = (list(column) for column in zip(*rows, strict=True))
    return Pieces(
        tokens=tokens,
        scores=scores,
        types=types,
        unknown=next((t for t, k in zip(tokens, types, strict=True) if k == UNKNOWN), None),
        byte_fallback=bool(trainer.get(35, 0)),
        prefix=bool(normalizer.get(3, 1)),
        single_spaces=bool(normalizer.get(4, 1)),
        charsmap=normalizer.get(2, b""),
        unigram=trainer.get(3, _UNIGRAM) == _UNIGRAM,
    )


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of a protobuf message's fields; values are int or bytes. Raises ValueError, IndexError."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind, size = key & 7, {1: 8, 5: 4}.get(key & 7, 0)
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        if kind not in (1, 2, 5) or at + size > len(data):
            raise ValueError("not a protobuf message")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError("unterminated varint")


def convert_pieces(pieces: Pieces, settings: Mapping[str, Any], where: str) -> str:
    """Convert a tokenizer.model to tokenizer.json, as LlamaTokenizer of transformers 4 reads it.

    Args:
        pieces: the model.
        settings: tokenizer_config.json. ``legacy`` (default true) prepends the space to every part of a text between
            special tokens, not only to the first; ``add_prefix_space`` and ``add_bos_token`` are used too.
        where: name of the file in messages.

    Raises:
        SourceError: the ``tokenizers`` package refuses the result.
    """
    with building(f"{where} is damaged", "download the file again"):
        tokenizer = build_tokenizer(pieces, settings)
        kinds = (UNKNOWN, CONTROL, USER_DEFINED)
        added = [(t, k) for t, k in zip(pieces.tokens, pieces.types, strict=True) if k in kinds]
        tokenizer.add_tokens([AddedToken(t, special=k != USER_DEFINED, normalized=False) for t, k in added])
        surround(tokenizer, _outer(pieces, settings, "bos", "<s>"), _outer(pieces, settings, "eos", "</s>"))
        return str(tokenizer.to_str())


@contextmanager
def building(what: str, hint: str) -> Iterator[None]:
    """Turn errors of the ``tokenizers`` package into a SourceError that begins with ``what``.

    The package raises plain Exception for inconsistent merges and tokens; its panics are BaseException.
    """
    try:
        yield
    except (SourceError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        said = " ".join(str(error).split())[:200]
        raise SourceError(f"{what}: {said}", hint) from error


def build_tokenizer(pieces: Pieces, settings: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer of a vocabulary without special tokens; ``settings`` as in convert_pieces."""
    tokenizer = Tokenizer(_unigram(pieces) if pieces.unigram else _bpe(pieces))
    said = settings.get("add_prefix_space")
    prefix = pieces.prefix if said is None else bool(said)
    steps: list[Any] = [normalizers.Precompiled(pieces.charsmap)] if pieces.charsmap else []
    if pieces.single_spaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex(r"\A | \z"), "")]
    if settings.get("legacy") in (None, True):
        steps += [normalizers.Prepend("▁")] if prefix else []
        steps.append(normalizers.Replace(" ", "▁"))
    else:
        scheme = "first" if prefix else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    decoding: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*decoding, decoders.Strip(" ", 1, 0)] if prefix else decoding)
    return tokenizer


def _bpe(pieces: Pieces) -> models.BPE:
    merges = merges_of(pieces.tokens, pieces.scores, pieces.types)
    vocabulary = {token: i for i, token in enumerate(pieces.tokens)}
    options: dict[str, Any] = {"unk_token": pieces.unknown, "fuse_unk": True, "byte_fallback": pieces.byte_fallback}
    return models.BPE(vocabulary, merges, **options)


def _unigram(pieces: Pieces) -> models.Unigram:
    """Pieces that stand for no text, as those of bytes, score so low that a text which spells them is cut further.

    That holds while all of its letters are known: an unknown one scores lower than every piece.
    """
    normal = [s for s, kind in zip(pieces.scores, pieces.types, strict=True) if kind == NORMAL]
    low = 10 * min(normal, default=0.0)
    spelled = (NORMAL, USER_DEFINED)
    scores = (s if kind in spelled else low for s, kind in zip(pieces.scores, pieces.types, strict=True))
    unknown = None if pieces.unknown is None else pieces.tokens.index(pieces.unknown)
    return models.Unigram(list(zip(pieces.tokens, scores, strict=True)), unknown, pieces.byte_fallback)


def merges_of(tokens: list[str], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """The merges implied by SentencePiece's scores: every split of a piece into two pieces, best score first.

    Pieces with equal scores stay in id order, as in transformers' SentencePieceExtractor.
    """
    pieces = {token: i for i, token in enumerate(tokens) if types[i] == NORMAL}
    found: list[tuple[float, int, int, int, str, str]] = []
    for token, i in pieces.items():
        for at in range(1, len(token)):
            left, right = pieces.get(token[:at]), pieces.get(token[at:])
            if left is not None and right is not None:
                found.append((-scores[i], i, left, right, token[:at], token[at:]))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _outer(pieces: Pieces, settings: Mapping[str, Any], name: str, default: str) -> tuple[str, int] | None:
    """The token added at an end of a text: bos by default, eos if the settings request it, as in LlamaTokenizer."""
    said = settings.get(f"{name}_token") or default
    text = said["content"] if isinstance(said, dict) else said
    wanted = settings.get(f"add_{name}_token")
    used = name == "bos" if wanted is None else bool(wanted)
    return (text, pieces.tokens.index(text)) if used and text in pieces.tokens else None


def surround(tokenizer: Tokenizer, bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> None:
    """Make a tokenizer add tokens, given as text and id, around a text."""
    if special := [token for token in (bos, eos) if token]:
        single = [*(bos or ())[:1], "$A", *(eos or ())[:1]]
        pair = [*single, *(f"{part}:1".replace("$A", "$B") for part in single)]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
