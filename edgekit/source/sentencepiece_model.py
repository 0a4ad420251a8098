"""tokenizer.model of SentencePiece -> tokenizer.json, so that it agrees with sentencepiece itself.

transformers 5 converts such a file with a pre-tokenizer that adds no space in front of a text that begins with one;
sentencepiece, and with it every model trained before, does. It also makes BPE of a Unigram model. So the file is read
here: field numbers are those of sentencepiece_model.proto. ``oracle.try_tokenizer`` compares the result with
sentencepiece where that is installed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from edgekit.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Types of a piece, and token types of llama.cpp (llama_token_type), which are the same.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_UNIGRAM, _BPE = 1, 2
"""Types of a model that are converted here (TrainerSpec.ModelType); the first is the one that is assumed."""

MAX_PIECES = 2**20
MAX_SQUARES = 2**28
"""Sum of the squared lengths of all tokens: what finding the merges between them costs. Published ones have 2**24."""


@dataclass(frozen=True)
class Pieces:
    """A vocabulary of SentencePiece, BPE or Unigram, in the order of ids, and how a text is made ready for it.

    ``prefix``: a space is put in front of a text. ``single_spaces``: spaces at its ends are
    removed, and others joined. ``charsmap``: the table of a normalization, b"" for none.
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
    """Read a tokenizer.model; None where it is no BPE or Unigram model of SentencePiece.

    Raises:
        SourceError: it is one, and damaged.
    """
    try:
        found = _read(data)
    except (ValueError, IndexError, struct.error, UnicodeDecodeError):
        return None
    if found is None:
        return None
    if len(set(found.tokens)) != len(found.tokens) or sum(len(t) ** 2 for t in found.tokens) > MAX_SQUARES:
        raise SourceError(f"{where}: its pieces are not all different, or too long", "download the file again")
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
    # 24: spaces behind words and not in front; 5: spaces that stay spaces.
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
    """The fields of a protobuf message: number and value, a whole number or bytes. Raises ValueError, IndexError."""
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
            raise ValueError("no protobuf message")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError("a number without an end")


def convert_pieces(pieces: Pieces, settings: Mapping[str, Any], where: str) -> str:
    """tokenizer.json of a tokenizer.model, as LlamaTokenizer reads it in transformers 4.

    Args:
        pieces: the model.
        settings: tokenizer_config.json: ``legacy``, true unless said, puts the space in front of every part of a text
            between special tokens and not only in front of the first; ``add_prefix_space`` and ``add_bos_token``.
        where: the file, for messages.

    Raises:
        SourceError: ``tokenizers`` refuses it.
    """
    try:
        tokenizer = build_tokenizer(pieces, settings)
        kinds = (UNKNOWN, CONTROL, USER_DEFINED)
        added = [(t, k) for t, k in zip(pieces.tokens, pieces.types, strict=True) if k in kinds]
        tokenizer.add_tokens([AddedToken(t, special=k != USER_DEFINED, normalized=False) for t, k in added])
        _wrap(tokenizer, pieces, settings)
        return str(tokenizer.to_str())
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # panics of tokenizers are no Exception
        said = " ".join(str(error).split())[:200]
        raise SourceError(f"{where} is damaged: {said}", "download the file again") from error


def build_tokenizer(pieces: Pieces, settings: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a vocabulary, without its special tokens; ``settings`` as in convert_pieces."""
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
    """The merges that SentencePiece's scores stand for: every split of a piece into two pieces, best score first.

    Pieces with the same score keep the order of their ids, as in transformers' SentencePieceExtractor.
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


def _wrap(tokenizer: Tokenizer, pieces: Pieces, settings: Mapping[str, Any]) -> None:
    """The tokens around a text: a first one unless the settings say otherwise, as LlamaTokenizer does."""
    single, special = ["$A"], []
    for name, default, at in (("bos", True, 0), ("eos", False, 1)):
        said = settings.get(f"{name}_token") or {"bos": "<s>", "eos": "</s>"}[name]
        text = said["content"] if isinstance(said, dict) else said
        wanted = settings.get(f"add_{name}_token")
        if (default if wanted is None else bool(wanted)) and text in pieces.tokens:
            single.insert(at * len(single), text)
            special.append((text, pieces.tokens.index(text)))
    if special:
        pair = [*single, *(f"{part}:1".replace("$A", "$B") for part in single)]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
