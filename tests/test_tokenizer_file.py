"""tokenizer.json of strangers: what is refused before a runtime sees it, and what must run apart."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgekit.errors import SourceError
from edgekit.strangers.tokenizer_file import LLAMA3, TokenizerForm, check_tokenizer
from edgekit.testing import tiny_tokenizer


def check(**parts: Any) -> TokenizerForm:
    document = {**json.loads(tiny_tokenizer()), **parts}
    return check_tokenizer(json.dumps(document).encode(), "tokenizer.json", error=SourceError)


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def sequence(key: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", key: list(parts)}


SPACE = replace({"String": " "}, "▁")


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"normalizer": sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, SPACE)},
        {"pre_tokenizer": sequence("pretokenizers", split(LLAMA3), {"type": "ByteLevel", "use_regex": False})},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}},
        {
            "decoder": sequence(
                "decoders",
                replace({"String": "▁"}, " "),
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            )
        },
        {"normalizer": sequence("normalizers", replace({"Regex": " {2,}"}, " "), {"type": "NFKC"})},
    ],
)
def test_what_published_models_hold_is_plain(parts: dict[str, Any]) -> None:
    form = check(**parts)
    assert form.plain
    assert form.added["<|im_start|>"] == 1
    assert form.tokens > 300


def test_an_unknown_expression_is_not_plain() -> None:
    assert not check(pre_tokenizer=split(r"\w+x|[^ ]+")).plain
    assert not check(normalizer=replace({"Regex": "(a+)+b"}, "")).plain


DOUBLING = replace({"String": "a"}, "aa")


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": replace({"String": ""}, "x")},
        {"normalizer": replace({"Regex": ""}, "x")},
        {"normalizer": sequence("normalizers", *[DOUBLING] * 20)},
        {"normalizer": {"type": "Prepend", "prepend": "a" * 1000}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA////AAAA"}},
        {"normalizer": {"type": "Unheard"}},
        {"normalizer": 3},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"pre_tokenizer": sequence("pretokenizers", *[split("a")] * 100)},
        {"decoder": {"type": "Strip", "content": "a", "start": 10**9, "stop": 10**9}},
        {"decoder": replace({"Regex": "(a+)+b"}, "")},
        {"post_processor": {"type": "TemplateProcessing", "single": [{}] * 1000, "pair": [], "special_tokens": {}}},
        {"padding": {"strategy": {"Fixed": 2**40}}},
        {"truncation": {"max_length": 0}},
        {"model": 3},
        {"model": {"type": "BPE", "vocab": {"a": 2**40}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": True}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a" * 10_000: 0}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.5}},
        {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a" * 100_000, -1.0]]}},
        {"model": {"type": "WordPiece", "unk_token": "x", "max_input_chars_per_word": 9, "vocab": {"a": 0}}},
        {"added_tokens": [{"id": 5, "content": "zz"}]},
        {"added_tokens": [{"id": 2**40, "content": "zz"}]},
        {"added_tokens": [{"id": 1, "content": 3}]},
        {"added_tokens": [{"id": 900, "content": "zz"}, {"id": 901, "content": "zz"}]},
    ],
)
def test_what_loops_grows_crashes_or_collides_is_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(SourceError) as caught:
        check(**parts)
    assert caught.value.hint
    assert "tokenizer.json is not a supported tokenizer" in caught.value.message
