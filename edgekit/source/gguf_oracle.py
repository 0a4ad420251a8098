"""A second implementation of llama.cpp's GGUF tokenizers, to check the tokenizer.json made from a file.

Plain Python without ``tokenizers``: regular expressions run in the ``regex`` package, merges are applied one by one,
by rank for byte-level BPE, by score for SentencePiece.
"""

from __future__ import annotations

import heapq
import unicodedata
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import regex

from edgekit.source.gguf_tokenizer import find_split, merges_in, tokens_of, types_of
from edgekit.source.sentencepiece_model import CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from edgekit.strangers.tokenizer_file import GPT2

if TYPE_CHECKING:
    from edgekit.source.gguf_file import GgufFile

Encode = Callable[[str], list[int]]


def make_encoder(gguf: GgufFile) -> Encode:
    """Make a function from text to token ids that recognizes control and user-defined tokens in text."""
    tokens = tokens_of(gguf)
    ids = {token: i for i, token in enumerate(tokens)}
    types = types_of(gguf, len(tokens))
    added = [t for t, kind in zip(tokens, types, strict=True) if kind in (CONTROL, UNKNOWN, USER_DEFINED)]
    marks = regex.compile("|".join(regex.escape(t) for t in sorted(added, key=len, reverse=True)) or r"(?!)")
    byte_level = gguf.text("tokenizer.ggml.model") == "gpt2"
    encode_plain = _byte_level(gguf, ids) if byte_level else _sentencepiece(gguf, tokens, types)
    strips = not byte_level and gguf.architecture == "phi3"
    plain = {"<s>", "<unk>", "<|endoftext|>"} | {
        t for t, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED
    }

    def encode(text: str) -> list[int]:
        out: list[int] = []
        at = 0
        for match in marks.finditer(text):
            if match.start() < at:
                continue
            out += encode_plain(text[at : match.start()])
            out.append(ids[match.group()])
            at = match.end()
            if strips and match.group() not in plain:
                at += len(text[at:]) - len(text[at:].lstrip())
        return out + encode_plain(text[at:])

    return encode


def _byte_level(gguf: GgufFile, ids: dict[str, int]) -> Encode:
    split = find_split(gguf)
    pattern = regex.compile(split.regex or GPT2)
    ranks = {tuple(m.split(" ", 1)): i for i, m in enumerate(merges_in(gguf))}
    letters = _byte_letters()

    def encode(text: str) -> list[int]:
        if split.nfc:
            text = unicodedata.normalize("NFC", text)
        out: list[int] = []
        for part in _cut_digits(text) if split.digits else [text]:
            for piece in pattern.findall(part):
                word = "".join(letters[b] for b in piece.encode())
                if split.whole and word in ids:
                    out.append(ids[word])
                else:
                    out += [ids[p] for p in _merge(list(word), lambda a, b: ranks.get((a, b)))]
        return out

    return encode


def _cut_digits(text: str) -> list[str]:
    return [part for part in regex.split(r"(\p{N})", text) if part]


def _byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte (openai/gpt-2, bytes_to_unicode)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    letter = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [letter[b] for b in range(256)]


def _sentencepiece(gguf: GgufFile, tokens: list[str], types: list[int]) -> Encode:
    """llama.cpp's llm_tokenizer_spm: merge the neighbours whose union has the best score, leftmost first."""
    scores: list[float] = gguf.items("tokenizer.ggml.scores", float, len(tokens))
    pieces = {t: i for i, t in enumerate(tokens) if types[i] == NORMAL}
    bytes_of = {t: i for i, t in enumerate(tokens)}
    unknown = gguf.token("unknown")
    prefix = "▁" if gguf.flag("tokenizer.ggml.add_space_prefix", True) else ""

    def cost(left: str, right: str) -> float | None:
        i = pieces.get(left + right)
        return None if i is None else -scores[i]

    def expand(piece: str) -> Iterator[int]:
        if piece in pieces:
            yield pieces[piece]
            return
        codes = [bytes_of.get(f"<0x{b:02X}>") for b in piece.encode()]
        if None not in codes:
            yield from (c for c in codes if c is not None)
        elif unknown is not None:
            yield unknown

    def encode(text: str) -> list[int]:
        if not text:
            return []
        return [i for piece in _merge(list(prefix + text.replace(" ", "▁")), cost) for i in expand(piece)]

    return encode


def _merge(parts: list[str], cost: Callable[[str, str], float | None]) -> list[str]:
    """Merge neighbours, cheapest first and leftmost among equals, until no pair has a cost."""
    before, after = list(range(-1, len(parts) - 1)), list(range(1, len(parts) + 1))
    alive = [True] * len(parts)
    heap: list[tuple[float, int, int, str, str]] = []

    def offer(left: int) -> None:
        right = after[left]
        if left >= 0 and right < len(parts):
            price = cost(parts[left], parts[right])
            if price is not None:
                heapq.heappush(heap, (price, left, right, parts[left], parts[right]))

    for i in range(len(parts) - 1):
        offer(i)
    while heap:
        _, left, right, a, b = heapq.heappop(heap)
        if not (alive[left] and right < len(parts) and alive[right] and parts[left] == a and parts[right] == b):
            continue
        if after[left] != right:
            continue
        parts[left] = a + b
        alive[right] = False
        after[left] = after[right]
        if after[right] < len(parts):
            before[after[right]] = left
        offer(left)
        if before[left] >= 0:
            offer(before[left])
    return [part for part, lives in zip(parts, alive, strict=True) if lives]
