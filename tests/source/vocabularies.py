"""tokenizer.json of every class, written out: pieces by hand, best first, so that no trainer decides an id.

Ids begin with SPECIAL; what follows is said of each function.
"""

from __future__ import annotations

from typing import Any

from sentencepieces import LETTERS, WORDS

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")

BYTE_WORDS = (
    *("he", " t", " the", "el", "lo", " H", " Hel", " Hello", "Hel", "Hello", "or", "ld", " w", " wor", " world", "  "),
    *("er", "ll", "\n\n", "'t", "do", "don", "é", "\u0301", "12", "345", "34", " 1", "..", "...", "ta", "tab"),
)
"""Tokens of two bytes or more of the byte-level vocabulary, best first."""

WORDPIECES = (
    *("[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "don", "'", "t", "na", "##ive", "cafe", "##s", "un"),
    *("##known", "a", "b", "##b", "c", ".", ",", "!", "1", "##2", "##345", "生", "e", "x", "##x", "<", ">", "s", "y"),
)


def letters() -> dict[int, str]:
    """The letter that stands for each byte in a byte-level vocabulary, as GPT-2's bytes_to_unicode has it."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def byte_ranks() -> dict[bytes, int]:
    """Ids by token, as tiktoken's mergeable_ranks: the bytes behind SPECIAL, then BYTE_WORDS."""
    tokens = [bytes([b]) for b in range(256)] + [word.encode() for word in BYTE_WORDS]
    return {token: len(SPECIAL) + i for i, token in enumerate(tokens)}


def byte_level(*added: dict[str, Any], prefix: bool = False, nfc: bool = False, before: tuple[Any, ...] = ()) -> Any:
    """Byte-level BPE of ``byte_ranks``; ``before``: pre-tokenizers that cut first, instead of GPT-2's if one splits."""
    alphabet, ranks = letters(), byte_ranks()
    spelled = {token: "".join(alphabet[b] for b in token) for token in ranks}
    merges = [
        [spelled[token[:at]], spelled[token[at:]]]
        for token in ranks
        for at in range(1, len(token))
        if token[:at] in ranks and token[at:] in ranks
    ]
    own = not any(step["type"] == "Split" for step in before)
    level = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": own}
    vocabulary = {token: i for i, token in enumerate(SPECIAL)} | {spelled[t]: i for t, i in ranks.items()}
    return document(
        {"type": "BPE", "vocab": vocabulary, "merges": merges},
        *added,
        normalizer={"type": "NFC"} if nfc else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*before, level]} if before else level,
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    )


def pieces(*, fallback: bool = True) -> list[tuple[str, float]]:
    """SentencePiece's: the first three of SPECIAL, the bytes, WORDS, LETTERS: the ids of ``sentencepieces.write``."""
    found = [*((token, 0.0) for token in SPECIAL[:3])]
    found += [(f"<0x{b:02X}>", 0.0) for b in range(256)] if fallback else []
    found += [(word, -float(i)) for i, word in enumerate(WORDS)]
    return [*found, *((letter, -100.0 - i) for i, letter in enumerate(LETTERS))]


def sentencepiece_bpe(*added: dict[str, Any], prefix: bool = True) -> Any:
    """As Llama 2's tokenizer.json: spaces become U+2581 while a text is normalized."""
    vocabulary = {piece: i for i, (piece, _) in enumerate(pieces())}
    known = {*WORDS, *LETTERS}
    merges = [[word[:at], word[at:]] for word in WORDS for at in range(1, len(word)) if {word[:at], word[at:]} <= known]
    steps = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    return document(
        {
            "type": "BPE",
            "vocab": vocabulary,
            "merges": merges,
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
        },
        *added,
        normalizer={
            "type": "Sequence",
            "normalizers": [*steps, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}],
        },
        post_processor=around(["<s>"], [], {"<s>": 1}),
        decoder=_sentencepiece_decoder(prefix=prefix),
        known=3,
    )


def unigram(*added: dict[str, Any], fallback: bool = False, scheme: str = "always", words: bool = False) -> Any:
    """Unigram of ``pieces``; ``words``: white space separates words and is lost, as T5's has it."""
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": words}
    steps = [{"type": "WhitespaceSplit"}, metaspace]
    found = [[piece, score] for piece, score in pieces(fallback=fallback)]
    decoder = _sentencepiece_decoder(prefix=scheme != "never") if fallback else metaspace
    return document(
        {"type": "Unigram", "unk_id": 0, "vocab": found, "byte_fallback": fallback},
        *added,
        pre_tokenizer={"type": "Sequence", "pretokenizers": steps} if words else metaspace,
        post_processor=around([], ["</s>"], {"</s>": 2}),
        decoder=decoder,
        known=3,
    )


def wordpiece(*added: dict[str, Any]) -> Any:
    """As uncased BERT's; its special tokens are the first four of WORDPIECES."""
    vocabulary = {piece: i for i, piece in enumerate(WORDPIECES)}
    model = {"type": "WordPiece", "vocab": vocabulary, "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    return document(
        {**model, "max_input_chars_per_word": 100},
        *added,
        normalizer={
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=around(["[CLS]"], ["[SEP]"], {"[CLS]": 1, "[SEP]": 2}),
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
        special=WORDPIECES[:4],
    )


def document(
    model: dict[str, Any],
    *added: dict[str, Any],
    special: tuple[str, ...] = SPECIAL,
    known: int = 4,
    **parts: Any,
) -> dict[str, Any]:
    """tokenizer.json of a model, its first ``known`` special tokens, and what is added behind the vocabulary."""
    entries = [token(text, special=True) | {"id": i} for i, text in enumerate(special[:known])]
    following = len(model["vocab"])
    entries += [{**entry, "id": following + i} for i, entry in enumerate(added)]
    steps = {key: parts.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor", "decoder")}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": entries, **steps, "model": model}


def around(before: list[str], after: list[str], ids: dict[str, int]) -> dict[str, Any]:
    """A post-processor that puts special tokens around a text."""
    single = [
        *({"SpecialToken": {"id": text, "type_id": 0}} for text in before),
        {"Sequence": {"id": "A", "type_id": 0}},
        *({"SpecialToken": {"id": text, "type_id": 0}} for text in after),
    ]
    special = {text: {"id": text, "ids": [i], "tokens": [text]} for text, i in ids.items()}
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


def token(text: str, **flags: bool) -> dict[str, Any]:
    """An added token; unless said it keeps its neighbours' spaces and is no special one."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"content": text, **plain, **flags}


def _sentencepiece_decoder(*, prefix: bool) -> dict[str, Any]:
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return {"type": "Sequence", "decoders": [space, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]}
