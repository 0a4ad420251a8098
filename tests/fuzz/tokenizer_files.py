"""tokenizer.json, of a checkpoint and of a bundle as its maker sealed it: what grows, loops, crashes or collides."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from tests.fuzz.case import Case, Step, pack
from tests.fuzz.values import damaged_text, json_steps, read

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_PATTERNS = (
    "(a+)+b", "(a|a)*b", "a*a*a*b", "(?:(?:(?:a{1,1000}){1,1000}){1,1000})", "(" * 5000 + ")" * 5000, "(", "", r"\1(a)",
    r"(?<n>\g<n>?a)", r"(?<=a*)b", "[" + "a-z" * 1000 + "]", r"(\s*)*x", "(?i)(e|é|E)+$", "a{100000}" * 20, "\\p{X}",
    r"\s+", r"\p{N}{1,3}",
)  # fmt: skip
_TEXTS = ("", "x", "aaaaaaaaaa" * 100, "\x00", "▁", "a" * 5000)


def _replace(kind: str, pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _nested(key: str, depth: int, leaf: dict[str, Any]) -> dict[str, Any]:
    for _ in range(depth):
        leaf = {"type": "Sequence", key: [leaf]}
    return leaf


_NORMALIZERS = st.one_of(
    st.builds(_replace, st.sampled_from(("String", "Regex")), st.sampled_from(_PATTERNS), st.sampled_from(_TEXTS)),
    st.sampled_from([
        {"type": "Sequence", "normalizers": [_replace("String", "a", "aa")] * 40},
        {"type": "Prepend", "prepend": "a" * 4000}, {"type": "Prepend", "prepend": ""}, {"type": "Nmt"}, {"type": "X"},
        *({"type": "Precompiled", "precompiled_charsmap": table}
          for table in ("", "AAAA////AAAA", "////fwAAAAA=", "BAAAAAAAAAA=", None)),
        _nested("normalizers", 20, {"type": "NFC"}), _nested("normalizers", 60, {"type": "NFC"}), [], 3,
    ]),
)  # fmt: skip
_PRE = st.one_of(
    st.sampled_from(_PATTERNS).map(_split),
    st.sampled_from([
        {"type": "FixedLength", "length": 0}, {"type": "FixedLength", "length": 1}, {"type": "Digits"},
        {"type": "Metaspace", "replacement": "", "prepend_scheme": "first", "split": True}, {"type": "Whitespace"},
        {"type": "Delimiter", "delimiter": "ab"}, {"type": "Sequence", "pretokenizers": [_split("a")] * 100},
    ]),
)  # fmt: skip
_DECODERS = st.one_of(
    st.builds(_replace, st.sampled_from(("String", "Regex")), st.sampled_from(_PATTERNS), st.sampled_from(_TEXTS)),
    st.sampled_from([
        {"type": "Strip", "content": "a", "start": 10**9, "stop": 10**9}, {"type": "CTC"}, {"type": "ByteFallback"},
        {"type": "Sequence", "decoders": [_replace("String", "a", "aa")] * 40},
    ]),
)  # fmt: skip
_X = {"SpecialToken": {"id": "X", "type_id": 0}}
_A = {"Sequence": {"id": "A", "type_id": 0}}
_POST = st.sampled_from([
    {"type": "TemplateProcessing", "single": [_A] * 1000, "pair": [], "special_tokens": {}},
    {"type": "TemplateProcessing", "single": [_X], "pair": [], "special_tokens": {}},
    {"type": "TemplateProcessing", "single": [_X], "pair": [],
     "special_tokens": {"X": {"id": "X", "ids": [2**32 - 1], "tokens": ["X"]}}},
    {"type": "BertProcessing", "sep": ["a", 2**40], "cls": ["b", 1]}, {"type": "X"},
])  # fmt: skip
_LENGTHS = st.sampled_from([
    {"padding": {"strategy": {"Fixed": 2**40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "x"}},
    {"truncation": {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 5}},
    {"truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}},
])  # fmt: skip
_MODELS = st.sampled_from([
    {"type": "Unigram", "unk_id": 0, "vocab": [["a" * 100_000, -1.0]] * 10},
    {"type": "Unigram", "unk_id": 5, "vocab": [["a", -1.0]]},
    {"type": "Unigram", "unk_id": None, "vocab": [["b", -1.0]]},
    {"type": "WordPiece", "unk_token": "x", "continuing_subword_prefix": "##", "max_input_chars_per_word": 10**9,
     "vocab": {"a": 0}},
    {"type": "WordLevel", "unk_token": "x", "vocab": {"a": 0}}, {"type": "BPE", "vocab": {"a": 2**40}, "merges": []},
    {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}, {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]},
    {"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]},
    {"type": "BPE", "dropout": 0.5, "vocab": {"a": 0}, "merges": []},
])  # fmt: skip
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_ADDED = st.builds(
    lambda i, text, flags: {"id": i, "content": text, **dict.fromkeys(_FLAGS, flags)},
    st.sampled_from((0, 1, 5, 322, 323, 350, 383, 384, 2**31, 2**32, 2**40, -1)),
    st.sampled_from(("", "zz", "<unk>", "a", " ", "z" * 10_000)), st.booleans(),
)  # fmt: skip


def cases(seed: Callable[[str], Path]) -> st.SearchStrategy[Case]:
    """Components and values, by ``build`` of a checkpoint and by ``run`` and ``inspect`` of a bundle."""
    folder = seed("model")
    document = read(folder, "tokenizer.json")
    small = {key: value for key, value in document.items() if key != "model"}

    def replaced(key: str) -> Callable[[Any], tuple]:
        return lambda value: (f"{key} {json.dumps(value)[:60]}", {**document, key: value})

    changed = st.one_of(
        _NORMALIZERS.map(replaced("normalizer")), _PRE.map(replaced("pre_tokenizer")),
        _DECODERS.map(replaced("decoder")), _POST.map(replaced("post_processor")), _MODELS.map(replaced("model")),
        _LENGTHS.map(lambda part: (json.dumps(part)[:60], {**document, **part})),
        _ADDED.map(lambda token: (f"added {json.dumps(token)[:60]}",
                                  {**document, "added_tokens": [*document["added_tokens"], token]})),
    )  # fmt: skip
    whole = changed.map(lambda pair: (pair[0], ("write", pack(json.dumps(pair[1])))))
    values = st.one_of(
        json_steps("tokenizer.json", small, typed=False).filter(lambda change: change[1][0].do != "write"),
        damaged_text("tokenizer.json", json.dumps(document)),
    ).map(lambda change: (change[0], change[1]))

    def place(base: str, change: tuple) -> tuple[Step, ...]:
        if change[0] == "write":
            return (Step("write", f"{base}/tokenizer.json", change[1]),)
        return tuple(Step(s.do, f"{base}/tokenizer.json", s.text, s.where, s.at, s.length) for s in change)

    def case(how: str, change: tuple, command: tuple[str, ...]) -> Case:
        base = command[1]
        steps = (*place(base, change), *((Step("reseal", "bundle"),) if base == "bundle" else ()))
        return Case(f"tokenizer: {command[0]} {base}: {how}", command, (base,), steps)

    commands = st.sampled_from([
        ("build", "model", "-o", "out/bundle", "--offline"), ("run", "bundle", "a" * 32, "--max-new-tokens", "4"),
        ("run", "bundle", "Hello", "--max-new-tokens", "4"), ("inspect", "model"), ("inspect", "bundle"),
    ])  # fmt: skip
    return st.one_of(whole, values).flatmap(lambda pair: st.builds(case, st.just(pair[0]), st.just(pair[1]), commands))
