"""Check an untrusted tokenizer.json before the ``tokenizers`` package opens it.

That package trusts its files: a normalizer may expand one character to a million, a malformed table ends the process, a
regular expression may run for hours. So every component must have a known type and bounded numbers, and a tokenizer
with a regular expression that is not in KNOWN runs in a cell (see cell.py). Standard library only.
"""

from __future__ import annotations

from base64 import b64decode
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from edgekit.strangers import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edgekit.errors import EdgekitError

MAX_BYTES = 64 << 20
"""Most bytes of the file; the largest published has 33 MB."""

MAX_ID = 2**22
"""Upper bound (exclusive) of token ids; the largest published vocabulary has 262,208."""

MAX_TOKEN = 4096
"""Most characters of a token. Text is matched against tokens at every character."""

MAX_STEPS = 32
"""Most components of a sequence, and most parts of a template."""

MAX_GROWTH = 64
"""Most characters that a normalizer or decoder may make from one."""

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
KNOWN = frozenset({LLAMA3, QWEN2, TEKKEN, GPT4O, GPT2}) | {
    *(r"\p{N}", r"\p{N}{1,3}", r"\d", r"\d{1,3}", r"\s+", " {2,}", r"\A | \z"),
}
"""Regular expressions of published tokenizers that run in linear time."""

_TEXTS = {"type", "content", "prepend", "replacement", "prefix", "suffix", "pad_token", "word_delimiter_token"}


@dataclass(frozen=True)
class TokenizerForm:
    """The content of a checked tokenizer.json.

    ``tokens`` is the highest id plus one, ``added`` the ids of added tokens. ``plain``: all regular expressions are in
    KNOWN, so it may run in this process. ``document``: the parsed JSON.
    """

    tokens: int
    added: Mapping[str, int]
    plain: bool
    document: Mapping[str, Any]


def check_tokenizer(data: bytes, where: str, *, error: type[EdgekitError]) -> TokenizerForm:
    """Check a tokenizer.json. The ``tokenizers`` package checks that its parts are consistent.

    Args:
        data: content of the file.
        where: name of the file in messages.
        error: class of the error to raise.

    Raises:
        error: it is not JSON or not a tokenizer, or has an unknown component, a number out of range, or colliding ids.
    """
    content = parse_json(data, where, error=error)
    try:
        vocabulary = _read_vocabulary(content.get("model"))
        added = _read_added(content.get("added_tokens") or [], vocabulary)
        patterns = [p for part in ("normalizer", "pre_tokenizer", "decoder") for p in _walk(content.get(part), part)]
        _check_template(content.get("post_processor"))
        _check_lengths(content.get("truncation"), content.get("padding"))
    except ValueError as reason:
        raise error(f"{where} is not a supported tokenizer: {reason}", _HINT) from reason
    tokens = max(max(vocabulary.values(), default=-1), max(added.values(), default=-1)) + 1
    return TokenizerForm(tokens, added, all(pattern in KNOWN for pattern in patterns), content)


_HINT = "download tokenizer.json from the model's own page"


def _read_vocabulary(model: object) -> Mapping[str, int]:
    """Ids by token, for any of the four model types."""
    if not isinstance(model, dict):
        raise ValueError("its model is not an object")
    kind = model.get("type", "BPE")
    if kind not in ("BPE", "Unigram", "WordPiece", "WordLevel"):
        raise ValueError(f"unknown model type {_shown(kind)}")
    vocabulary = model.get("vocab")
    if kind == "Unigram":
        vocabulary = _read_pieces(vocabulary)
    if not isinstance(vocabulary, dict):
        raise ValueError("its vocabulary is not an object")
    if not all(type(i) is int and 0 <= i < MAX_ID for i in vocabulary.values()):
        raise ValueError(f"an id in its vocabulary is not a whole number from 0 to {MAX_ID - 1}")
    if len(set(vocabulary.values())) != len(vocabulary):
        raise ValueError("two tokens in its vocabulary have the same id")
    if any(len(token) > MAX_TOKEN for token in vocabulary):
        raise ValueError(f"a token in its vocabulary has more than {MAX_TOKEN} characters")
    _whole(model, "max_input_chars_per_word", 1, 10_000)
    if kind.startswith("Word") and model.get("unk_token") not in vocabulary:
        raise ValueError("its 'unk_token' is not in its vocabulary")
    dropout = model.get("dropout")
    if dropout not in (None, 0):
        raise ValueError(f"its 'dropout' is {_shown(dropout)}, which makes tokenization random")
    return vocabulary


def _read_pieces(pieces: object) -> dict[str, int]:
    if not isinstance(pieces, list):
        raise ValueError("its vocabulary is not a list")
    found = {}
    for i, piece in enumerate(pieces):
        pair = isinstance(piece, list) and len(piece) == 2 and isinstance(piece[0], str)
        if not pair or not isinstance(piece[1], (int, float)) or not isfinite(piece[1]):
            raise ValueError(f"entry {i} in its vocabulary is not a piece with a score")
        if len(piece[0]) > 256:
            raise ValueError("a piece in its vocabulary has more than 256 characters")
        found[piece[0]] = i
    return found


def _read_added(entries: object, vocabulary: Mapping[str, int]) -> dict[str, int]:
    if not isinstance(entries, list):
        raise ValueError("'added_tokens' is not a list")
    names = {i: token for token, i in vocabulary.items()}
    added: dict[str, int] = {}
    for entry in entries:
        if not isinstance(entry, dict):
            raise ValueError("an added token is not an object")
        text, i = entry.get("content"), entry.get("id")
        if not isinstance(text, str) or len(text) > MAX_TOKEN:
            raise ValueError(f"the content of an added token is not text of at most {MAX_TOKEN} characters")
        if type(i) is not int or not 0 <= i < MAX_ID:
            raise ValueError(f"the added token {_shown(text)} has the invalid id {_shown(i)}")
        if added.get(text, i) != i or vocabulary.get(text, i) != i:
            raise ValueError(f"token {_shown(text)} has two ids")
        if names.setdefault(i, text) != text:
            raise ValueError(f"tokens {_shown(names[i])} and {_shown(text)} have the same id {i}")
        added[text] = i
    return added


# Ranges of a component's numbers, by its type. Other entries are strings, flags and nulls.
_NUMBERS: dict[str, dict[str, tuple[int, int]]] = {
    "Strip": {"start": (0, 16), "stop": (0, 16)},
    "FixedLength": {"length": (1, 2**20)},
}
_PARTS = {
    "normalizer": "Sequence BertNormalizer Strip StripAccents NFC NFD NFKC NFKD Lowercase Nmt Precompiled Replace "
    "Prepend ByteLevel",
    "pre_tokenizer": "Sequence BertPreTokenizer ByteLevel CharDelimiterSplit Delimiter Metaspace Whitespace "
    "WhitespaceSplit Split Punctuation Digits UnicodeScripts FixedLength",
    "decoder": "Sequence BPEDecoder ByteLevel WordPiece Metaspace CTC Replace Fuse Strip ByteFallback",
}
_INNER = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}


def _walk(root: object, part: str) -> Iterator[str]:
    """Check the components of one part and yield their regular expressions."""
    growth, steps = 1.0, 0
    todo = [root] if root is not None else []
    while todo:
        component = todo.pop()
        kind = component.get("type") if isinstance(component, dict) else None
        if not isinstance(component, dict) or kind not in _PARTS[part].split():
            raise ValueError(f"unknown component {_shown(kind)} in its {part}")
        steps += 1
        if kind == "Sequence":
            inner = component.get(_INNER[part])
            if not isinstance(inner, list):
                raise ValueError(f"a sequence in its {part} is not a list")
            todo += inner
        _check_entries(component, part)
        if kind == "Precompiled":
            _check_charsmap(component.get("precompiled_charsmap"))
        if "pattern" in component:
            pattern, is_regex = _read_pattern(component["pattern"], part)
            growth *= max(1.0, len(component.get("content") or "") / (1 if is_regex else len(pattern)))
            if is_regex:
                yield pattern
        growth *= max(1, len(component.get("prepend") or ""))
        if steps > MAX_STEPS or growth > MAX_GROWTH:
            raise ValueError(
                f"its {part} has more than {MAX_STEPS} components, or can make text {MAX_GROWTH} times longer"
            )


def _check_entries(component: Mapping[str, Any], part: str) -> None:
    for key, value in component.items():
        if key in (_INNER[part], "pattern", "precompiled_charsmap"):
            continue
        if key in _TEXTS or isinstance(value, str):
            if value is not None and (not isinstance(value, str) or len(value) > MAX_TOKEN):
                raise ValueError(f"'{key[:60]}' of its {part} is not text of at most {MAX_TOKEN} characters")
        elif value is not None and not isinstance(value, bool):
            low, high = _NUMBERS.get(component["type"], {}).get(key, (0, 2**20))
            _whole(component, key, low, high)


def _read_pattern(pattern: object, part: str) -> tuple[str, bool]:
    """Return a pattern and whether it is a regular expression."""
    if isinstance(pattern, dict) and len(pattern) == 1:
        [(kind, text)] = pattern.items()
        if kind in ("String", "Regex") and isinstance(text, str) and 0 < len(text) <= MAX_TOKEN:
            if kind == "Regex" and part == "decoder" and text not in KNOWN:
                raise ValueError("its decoder has a regular expression")
            return text, kind == "Regex"
    raise ValueError(f"invalid pattern {_shown(pattern)} in its {part}")


def _check_charsmap(text: object) -> None:
    """Check SentencePiece's table: the length of a trie of 4-byte units, the trie, the strings it points into."""
    if text is None:
        return
    try:
        data = b64decode(str(text), validate=True)
    except ValueError:
        data = b""
    size = int.from_bytes(data[:4], "little")
    if len(data) < 4 or size % 4 or not 0 < size <= len(data) - 4:
        raise ValueError("its 'precompiled_charsmap' is not a SentencePiece table")


def _check_template(root: object) -> None:
    """Check the post-processor, which adds tokens around a text."""
    known = {"Sequence", "TemplateProcessing", "ByteLevel", "BertProcessing", "RobertaProcessing"}
    todo, steps = ([root] if root is not None else []), 0
    while todo:
        part = todo.pop()
        steps += 1
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(part, dict) or kind not in known:
            raise ValueError(f"unknown post-processor {_shown(kind)}")
        inner = part.get("processors", [])
        pieces = [part.get(key) or [] for key in ("single", "pair")]
        tokens = part.get("special_tokens") or {}
        if not isinstance(inner, list) or not isinstance(tokens, dict):
            raise ValueError("its post-processor has an entry of the wrong type")
        todo += inner
        ids = [t.get("ids") if isinstance(t, dict) else None for t in tokens.values()]
        for some in (inner, *pieces, *ids, tokens):
            if not isinstance(some, (list, dict)) or len(some) > MAX_STEPS:
                raise ValueError(f"its post-processor has a template or a token of more than {MAX_STEPS} parts")
        for i in (i for some in ids if isinstance(some, list) for i in some):
            if type(i) is not int or not 0 <= i < MAX_ID:
                raise ValueError(f"its post-processor adds the invalid id {_shown(i)}")
        if steps > MAX_STEPS:
            raise ValueError(f"its post-processor has more than {MAX_STEPS} components")


def _check_lengths(truncation: object, padding: object) -> None:
    """Check the lengths for truncation and padding, neither of which edgekit applies."""
    for part in (truncation, padding):
        if part is not None and not isinstance(part, dict):
            raise ValueError("its truncation or padding is not an object")
    if isinstance(truncation, dict):
        _whole(truncation, "max_length", 1, 2**24)
        _whole(truncation, "stride", 0, 2**24)
    if isinstance(padding, dict):
        _whole(padding, "pad_to_multiple_of", 1, 2**20)
        _whole(padding, "pad_id", 0, MAX_ID)
        strategy = padding.get("strategy")
        if isinstance(strategy, dict):
            _whole(strategy, "Fixed", 1, 2**20)


def _whole(values: Mapping[str, Any], key: str, low: int, high: int) -> None:
    value = values.get(key)
    if value is not None and (type(value) is not int or not low <= value <= high):
        raise ValueError(f"its '{key[:60]}' is {_shown(value)}, not a whole number from {low} to {high}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
