"""Literal ids for every class of tokenizer: what transformers or edgekit makes of one later is held against these.

The ids are those of the original libraries: tiktoken 0.14.0 and transformers 4.57.6's GPT2Tokenizer, Qwen2Tokenizer and
BertTokenizer in Python for byte-level BPE and WordPiece, sentencepiece 0.2.3 for the others, and for tokens that are
added GPT2Tokenizer again. tokenizers 0.22.2 gives the same but where it is said.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepieces
import vocabularies
from tokenizers import Tokenizer as Codec
from vocabularies import token

from edgekit.run import Tokenizer
from edgekit.source import open_model, source_readers
from edgekit.testing import tiny_checkpoint
from edgekit.types import Checkpoint

TEXTS = ("Hello world", " Hello  world", "don't tab 12345", "a\n\nb\tc...", "naïve café e\u0301", "生🙂x")

Rows = tuple[tuple[str, str], ...]

GOLDEN: dict[str, Rows] = {
    "gpt2": (
        ("269 274", "Hello world"),
        ("267 36 274", " Hello  world"),
        ("281 279 261 101 102 36 284 285", "don't tab 12345"),
        ("101 14 14 102 13 103 289", "a\n\nb\tc..."),
        ("114 101 199 179 122 105 36 103 101 106 282 36 105 283", "naïve café e\u0301"),
        ("235 152 163 244 163 157 134 124", "生🙂x"),
    ),
    "gpt2, a space in front": (
        ("267 274", " Hello world"),
        ("267 36 274", " Hello  world"),
        ("36 281 279 261 101 102 36 284 285", " don't tab 12345"),
        ("36 101 14 14 102 13 103 289", " a\n\nb\tc..."),
        ("36 114 101 199 179 122 105 36 103 101 106 282 36 105 283", " naïve café e\u0301"),
        ("36 235 152 163 244 163 157 134 124", " 生🙂x"),
    ),
    "qwen2": (
        ("269 274", "Hello world"),
        ("267 36 274", " Hello  world"),
        ("281 279 261 101 102 36 53 54 55 56 57", "don't tab 12345"),
        ("101 278 102 13 103 289", "a\n\nb\tc..."),
        ("114 101 199 179 122 105 36 103 101 106 282 36 282", "naïve café é"),
        ("235 152 163 244 163 157 134 124", "生🙂x"),
    ),
    "smollm": (
        ("269 274", "Hello world"),
        ("267 36 274", " Hello  world"),
        ("281 279 261 101 102 36 53 54 55 56 57", "don't tab 12345"),
        ("101 14 14 102 13 103 289", "a\n\nb\tc..."),
        ("114 101 199 179 122 105 36 103 101 106 282 36 105 283", "naïve café e\u0301"),
        ("235 152 163 244 163 157 134 124", "生🙂x"),
    ),
    "llama3": (
        ("269 274", "Hello world"),
        ("267 36 274", " Hello  world"),
        ("281 279 261 101 102 36 284 55 56 57", "don't tab 12345"),
        ("101 278 102 13 103 289", "a\n\nb\tc..."),
        ("114 101 199 179 122 105 36 103 101 106 282 36 105 283", "naïve café e\u0301"),
        ("235 152 163 244 163 157 134 124", "生🙂x"),
    ),
    "llama": (
        ("265 276 264 279 273", "Hello world"),
        ("275 265 276 264 279 275 273", " Hello  world"),
        ("275 286 279 280 42 277 259 278 101 275 52 53 54 55 56", "don't tab 12345"),
        ("275 278 13 13 101 12 102 291 291 291", "a\n\nb\tc..."),
        ("275 280 278 198 178 121 276 275 102 278 105 198 172 275 276 207 132", "naïve café e\u0301"),
        ("275 234 151 162 243 162 156 133 123", "生🙂x"),
    ),
    "llama, none": (
        ("290 276 264 279 273", "Hello world"),
        ("265 276 264 279 275 273", " Hello  world"),
        ("286 279 280 42 277 259 278 101 275 52 53 54 55 56", "don't tab 12345"),
        ("278 13 13 101 12 102 291 291 291", "a\n\nb\tc..."),
        ("280 278 198 178 121 276 275 102 278 105 198 172 275 276 207 132", "naïve café e\u0301"),
        ("234 151 162 243 162 156 133 123", "生🙂x"),
    ),
    "unigram": (
        ("13 17", "Hello world"),
        ("13 19 17", "Hello  world"),
        ("19 30 23 24 0 21 3 22 0 19 0", "dont ta "),
        ("19 22 0 35 35 35", "a..."),
        ("19 24 22 0 20 19 0 22 0 19 20 0", "nae a e"),
        ("19 0", ""),
    ),
    "unigram, none": (
        ("34 10 12 17", "Hello world"),
        ("13 19 17", " Hello  world"),
        ("30 23 24 0 21 3 22 0 19 0", "dont ta "),
        ("22 0 35 35 35", "a..."),
        ("24 22 0 20 19 0 22 0 19 20 0", "nae a e"),
        ("0", ""),
    ),
    "unigram, bytes": (
        ("269 273", "Hello world"),
        ("269 275 273", "Hello  world"),
        ("275 286 279 280 42 277 259 278 101 275 52 53 54 55 56", "don't tab 12345"),
        ("275 278 13 13 101 12 102 291 291 291", "a\n\nb\tc..."),
        ("275 280 278 198 178 121 276 275 102 278 105 198 172 275 276 207 132", "naïve café e\u0301"),
        ("275 234 151 162 243 162 156 133 123", "生🙂x"),
    ),
    "unigram, words": (
        ("13 17", "Hello world"),
        ("13 17", "Hello world"),
        ("19 30 23 24 0 21 3 22 0 19 0", "dont ta "),
        ("19 22 19 0 19 0 35 35 35", "a  ..."),
        ("19 24 22 0 20 19 0 22 0 19 20 0", "nae a e"),
        ("19 0", ""),
    ),
    "wordpiece": (
        ("4 5", "hello world"),
        ("4 5", "hello world"),
        ("6 7 8 0 22 23 24", "don ' t 12345"),
        ("15 16 18 19 19 19", "a b c..."),
        ("9 10 11 26", "naive cafe e"),
        ("25 0", "\u751f"),
    ),
}
"""Ids and decoded text of each of TEXTS.

In two of them the text that begins with a space gets no other in front, as tokenizers has it: "gpt2, a space in front",
where GPT2Tokenizer puts one there, and the "unigram" ones of Metaspace, where sentencepiece does. "unigram, words" is
tokenizers' own.
"""

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


DOCUMENTS: dict[str, Any] = {
    "gpt2": vocabularies.byte_level(),
    "gpt2, a space in front": vocabularies.byte_level(prefix=True),
    "qwen2": vocabularies.byte_level(nfc=True, before=(split(QWEN2),)),
    "smollm": vocabularies.byte_level(before=({"type": "Digits", "individual_digits": True},)),
    "llama3": vocabularies.byte_level(before=(split(QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")),)),
    "llama": vocabularies.sentencepiece_bpe(),
    "llama, none": vocabularies.sentencepiece_bpe(prefix=False),
    "unigram": vocabularies.unigram(),
    "unigram, none": vocabularies.unigram(scheme="never"),
    "unigram, bytes": vocabularies.unigram(fallback=True),
    "unigram, words": vocabularies.unigram(words=True),
    "wordpiece": vocabularies.wordpiece(),
}

GENERIC = "PreTrainedTokenizerFast"
CLASSES = {
    "gpt2": (GENERIC, "GPT2Tokenizer", "GPT2TokenizerFast"),
    "gpt2, a space in front": (GENERIC, "GPT2Tokenizer", "GPT2TokenizerFast"),
    "qwen2": (GENERIC, "Qwen2Tokenizer", "Qwen2TokenizerFast"),
    "smollm": (GENERIC, "GPT2Tokenizer"),
    "llama3": (GENERIC, "LlamaTokenizerFast"),
    "llama": (GENERIC, "LlamaTokenizer", "LlamaTokenizerFast"),
    "llama, none": (GENERIC, "LlamaTokenizer", "LlamaTokenizerFast"),
    "unigram": (GENERIC, "XLMRobertaTokenizerFast"),
    "unigram, none": (GENERIC, "AlbertTokenizerFast"),
    "unigram, bytes": (GENERIC, "LlamaTokenizerFast"),
    "unigram, words": (GENERIC, "T5TokenizerFast"),
    "wordpiece": (GENERIC, "BertTokenizer", "BertTokenizerFast"),
}
BEFORE = {"llama": [1], "llama, none": [1], "wordpiece": [1]}
AFTER = {"wordpiece": [2]} | {name: [2] for name in CLASSES if name.startswith("unigram")}
"""What the files' own post-processors put around a text."""


def write(folder: Path, name: str, kind: str, document: Any = None, **settings: Any) -> Path:
    """A checkpoint whose tokenizer is one of DOCUMENTS."""
    tiny_checkpoint(folder)
    marks = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if name == "wordpiece":
        marks = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    if name == "gpt2, a space in front":
        settings["add_prefix_space"] = True
    (folder / "tokenizer.json").write_text(json.dumps(document or DOCUMENTS[name]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **marks, **settings}))
    return folder


def hold(checkpoint: Checkpoint, folder: Path, texts: tuple[str, ...], rows: Rows) -> None:
    """The tokenizer that ships in edgekit's runtime, and its files in AutoTokenizer, against literal ids and texts."""
    from transformers import AutoTokenizer

    folder.mkdir()
    for file in checkpoint.files:
        (folder / file.name).write_bytes(file.data)
    ours = Tokenizer(Codec.from_file(str(folder / "tokenizer.json")))
    theirs = AutoTokenizer.from_pretrained(folder)
    for text, (listed, decoded) in zip(texts, rows, strict=True):
        ids = [int(i) for i in listed.split()]
        assert ours.encode(text) == ids, text
        assert theirs.encode(text, add_special_tokens=False) == ids, text
        assert ours.decode(ids) == decoded, text
        plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        assert theirs.decode(ids, **plain) == decoded, text
        stream = ours.stream()
        assert "".join(stream.push(i) for i in ids) + stream.finish() == decoded, text


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in CLASSES.items() for kind in kinds])
def test_every_class(tmp_path: Path, name: str, kind: str) -> None:
    checkpoint = open_model(str(write(tmp_path / "m", name, kind)))
    hold(checkpoint, tmp_path / "out", TEXTS, GOLDEN[name])
    first = source_readers(checkpoint)[0].encode
    codec = Tokenizer(Codec.from_file(str(tmp_path / "out" / "tokenizer.json")))
    for text, (listed, _) in zip(TEXTS, GOLDEN[name], strict=True):
        ids = [int(i) for i in listed.split()]
        assert codec.encode(text, special=True) == [*BEFORE.get(name, []), *ids, *AFTER.get(name, [])]
        assert first(text) == ids


def test_every_class_is_golden() -> None:
    assert set(GOLDEN) == set(DOCUMENTS) == set(CLASSES)


def as_pairs(folder: Path) -> None:
    """vocab.json and merges.txt in the place of tokenizer.json."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""]))


def as_pieces(folder: Path, **options: bool) -> None:
    sentencepieces.write(folder / "tokenizer.model", **options)


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("gpt2", "GPT2Tokenizer", None),
        ("gpt2, a space in front", "GPT2Tokenizer", None),
        ("qwen2", "Qwen2Tokenizer", None),
        ("llama", "LlamaTokenizer", {}),
        ("llama, none", "LlamaTokenizer", {"prefix": False}),
        ("unigram, bytes", "LlamaTokenizer", {"unigram": True}),
    ],
)
def test_older_files(tmp_path: Path, name: str, kind: str, options: dict[str, bool] | None) -> None:
    folder = write(tmp_path / "m", name, kind)
    as_pairs(folder) if options is None else as_pieces(folder, **options)
    (folder / "tokenizer.json").unlink()
    rows = list(GOLDEN[name])
    if name == "unigram, bytes":
        rows[1] = ("275 269 275 273", " Hello  world")  # as sentencepiece has it
    hold(open_model(str(folder)), tmp_path / "out", TEXTS, tuple(rows))


MARKED = ("a <end> b", "a<end>b", "  <end>\n x", "<end><end>", "the<end>", " world <end>s")
ADDED: dict[str, Rows] = {
    "plain": (
        ("101 36 292 36 102", "a <end> b"),
        ("101 292 102", "a<end>b"),
        ("275 292 14 36 124", "  <end>\n x"),
        ("292 292", "<end><end>"),
        ("120 260 292", "the<end>"),
        ("274 36 292 119", " world <end>s"),
    ),
    "lstrip": (
        ("101 292 36 102", "a<end> b"),
        ("101 292 102", "a<end>b"),
        ("292 14 36 124", "<end>\n x"),
        ("292 292", "<end><end>"),
        ("120 260 292", "the<end>"),
        ("274 292 119", " world<end>s"),
    ),
    "rstrip": (
        ("101 36 292 102", "a <end>b"),
        ("101 292 102", "a<end>b"),
        ("275 292 124", "  <end>x"),
        ("292 292", "<end><end>"),
        ("120 260 292", "the<end>"),
        ("274 36 292 119", " world <end>s"),
    ),
    "lstrip, rstrip": (
        ("101 292 102", "a<end>b"),
        ("101 292 102", "a<end>b"),
        ("292 124", "<end>x"),
        ("292 292", "<end><end>"),
        ("120 260 292", "the<end>"),
        ("274 292 119", " world<end>s"),
    ),
    "single_word": (
        ("101 36 292 36 102", "a <end> b"),
        ("101 64 105 114 104 66 102", "a<end>b"),
        ("275 292 14 36 124", "  <end>\n x"),
        ("292 292", "<end><end>"),
        ("120 260 64 105 114 104 66", "the<end>"),
        ("274 36 64 105 114 104 66 119", " world <end>s"),
    ),
    "special": (
        ("101 36 292 36 102", "a  b"),
        ("101 292 102", "ab"),
        ("275 292 14 36 124", "  \n x"),
        ("292 292", ""),
        ("120 260 292", "the"),
        ("274 36 292 119", " world s"),
    ),
    "special, lstrip": (
        ("101 292 36 102", "a b"),
        ("101 292 102", "ab"),
        ("292 14 36 124", "\n x"),
        ("292 292", ""),
        ("120 260 292", "the"),
        ("274 292 119", " worlds"),
    ),
}
"""By the flags of a token that is added: ids and decoded text of each of MARKED.

GPT2Tokenizer finds a single word at the ends of a text and between spaces; tokenizers where no letter is beside it.
"""


@pytest.mark.parametrize("flags", ADDED)
@pytest.mark.parametrize("where", ["tokenizer.json", "added_tokens_decoder"])
def test_added_tokens(tmp_path: Path, flags: str, where: str) -> None:
    added = token("<end>", **{flag: True for flag in flags.split(", ") if flag != "plain"})
    if where == "tokenizer.json":
        folder = write(tmp_path / "m", "gpt2", "GPT2Tokenizer", vocabularies.byte_level(added))
    else:
        folder = write(tmp_path / "m", "gpt2", "GPT2Tokenizer", added_tokens_decoder={"292": added})
    hold(open_model(str(folder)), tmp_path / "out", MARKED, ADDED[flags])


CASED = ("HELLO [New] b", "[NEW]hello", "[new] [New]")
NORMALIZED = {True: ("4 33 16", "33 4", "33 33"), False: ("4 33 16", "0 0 0 4", "0 0 0 33")}
"""A token that is looked for in a text once it is normalized, here to small letters, or as it is, by tokenizers 0.22.2.

It decodes to its content there, and to that in small letters in tokenizers 0.23.
"""


@pytest.mark.parametrize("normalized", NORMALIZED)
def test_added_tokens_are_found_before_or_after_the_normalizer(tmp_path: Path, normalized: bool) -> None:
    document = vocabularies.wordpiece(token("[New]", normalized=normalized))
    checkpoint = open_model(str(write(tmp_path / "m", "wordpiece", GENERIC, document)))
    codec = Tokenizer(Codec.from_str((checkpoint.file("tokenizer.json") or b"").decode()))
    for text, listed in zip(CASED, NORMALIZED[normalized], strict=True):
        ids = [int(i) for i in listed.split()]
        assert codec.encode(text) == ids, text
        assert codec.decode([33]) in ("[New]", "[new]")
