"""A folder with tokenizer.model alone: converted so that it agrees with sentencepiece itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sentencepieces import train, write
from tokenizers import Tokenizer

from edgekit.errors import SourceError
from edgekit.source import TOKENIZER_EDGE_CASES, open_model, oracle, source_readers
from edgekit.source.oracle import try_tokenizer
from edgekit.source.sentencepiece_model import NORMAL, Pieces, convert_pieces, read_pieces
from edgekit.testing import tiny_checkpoint
from edgekit.types import Checkpoint

LLAMA = {"tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}

UNIGRAM = {"model_type": "unigram", "required_chars": "<0xA>"}

MARKS = " Hello<s> Hello  world</s>Hello"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tiny_checkpoint(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    return folder


def opened(folder: Path, settings: dict[str, Any] | None = None, **options: Any) -> tuple[Checkpoint, Tokenizer]:
    train(folder, **options)
    (folder / "tokenizer_config.json").write_text(json.dumps(LLAMA | (settings or {})))
    checkpoint = open_model(str(folder))
    return checkpoint, Tokenizer.from_str((checkpoint.file("tokenizer.json") or b"").decode())


def tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    return list(tokenizer.encode(text, add_special_tokens=False).tokens)


GOLDEN = {
    " Hello  world": ([275, 265, 276, 264, 279, 275, 273], [265, 276, 264, 279, 275, 273]),
    "Hello</s>Hello world": (
        [265, 276, 264, 279, 2, 265, 276, 264, 279, 273],
        [265, 276, 264, 279, 2, 290, 276, 264, 279, 273],
    ),
    "   the": ([274, 275, 261], [274, 261]),
    "the world.\n": ([261, 273, 291, 13], [261, 273, 291, 13]),
    "x 🙂": ([275, 123, 275, 243, 162, 156, 133], [275, 123, 275, 243, 162, 156, 133]),
    "": ([], []),
}
"""Text -> ids with ``legacy`` true and false, by AutoTokenizer of transformers 4.57.6 with tokenizers 0.22.2.

Those of the first column are sentencepiece 0.2.3's own wherever there is no </s> in the text.
"""


@pytest.mark.parametrize("text", GOLDEN)
@pytest.mark.parametrize("legacy", [True, None, False])
def test_literal_ids(folder: Path, text: str, legacy: bool | None) -> None:
    write(folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps(LLAMA | {"legacy": legacy}))
    checkpoint = open_model(str(folder))
    ids = GOLDEN[text][legacy is False]
    tokenizer = Tokenizer.from_str((checkpoint.file("tokenizer.json") or b"").decode())
    assert tokenizer.encode(text, add_special_tokens=False).ids == ids
    assert tokenizer.encode(text).ids == [1, *ids]
    assert source_readers(checkpoint)[0].encode(text) == ids


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("options", [{}, {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}])
@pytest.mark.parametrize("kind", [{}, UNIGRAM, UNIGRAM | {"byte_fallback": False}])
def test_agrees_with_sentencepiece(folder: Path, prefix: bool, options: dict[str, Any], kind: dict[str, Any]) -> None:
    import sentencepiece

    checkpoint, ours = opened(folder, add_dummy_prefix=prefix, **options, **kind)
    theirs = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    for text in (*TOKENIZER_EDGE_CASES, " Hello  world", "<0x41> fox"):
        if not any(mark in text for mark in ("<s>", "</s>", "<unk>")):
            assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text), text
    try_tokenizer(checkpoint)


@pytest.mark.parametrize(
    ("settings", "text", "expected"),
    [
        ({}, " Hello  world", ["▁▁", "Hello", "▁▁world"]),
        ({"legacy": True}, " Hello  world", ["▁▁", "Hello", "▁▁world"]),
        ({"legacy": None}, "Hello", ["▁Hello"]),
        ({"legacy": False}, " Hello  world", ["▁Hello", "▁▁world"]),
        ({"legacy": True}, "Hello</s>Hello", ["▁Hello", "</s>", "▁Hello"]),
        ({"legacy": False}, "Hello</s>Hello", ["▁Hello", "</s>", "Hello"]),
        ({"add_prefix_space": False}, "Hello world", ["Hello", "▁world"]),
    ],
)
def test_spaces_in_front(folder: Path, settings: dict[str, Any], text: str, expected: list[str]) -> None:
    """What ``legacy`` means since transformers' pull request 24565. Training decides how pieces are cut further."""
    _, tokenizer = opened(folder, settings)
    found = tokens(tokenizer, text)
    for mark in ("</s>",):
        assert found.count(mark) == expected.count(mark)
    assert "".join(found) == "".join(expected)


@pytest.mark.parametrize(
    ("settings", "around"), [({}, "<s> ."), ({"add_bos_token": False}, "."), ({"add_eos_token": True}, "<s> . </s>")]
)
def test_tokens_around_a_text(folder: Path, settings: dict[str, Any], around: str) -> None:
    _, tokenizer = opened(folder, settings)
    inner = tokens(tokenizer, "Hello")
    assert tokenizer.encode("Hello").tokens == [t for p in around.split() for t in (inner if p == "." else [p])]


def test_the_oracle_is_sentencepiece(folder: Path) -> None:
    checkpoint, ours = opened(folder)
    readers = source_readers(checkpoint)
    assert readers[0].name.startswith("sentencepiece 0.")
    assert readers[-1].name.startswith("transformers ")
    for text in (MARKS, *TOKENIZER_EDGE_CASES):
        assert readers[0].encode(text) == ours.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("legacy", [True, False])
def test_the_oracle_cuts_at_special_tokens(folder: Path, legacy: bool) -> None:
    checkpoint, ours = opened(folder, {"legacy": legacy})
    assert source_readers(checkpoint)[0].encode(MARKS) == ours.encode(MARKS, add_special_tokens=False).ids


def test_what_is_converted_wrongly_is_refused(folder: Path) -> None:
    """A space of U+2581 at the end is removed by sentencepiece and has no place in tokenizer.json."""
    checkpoint, _ = opened(folder, remove_extra_whitespaces=True)
    with pytest.raises(SourceError, match=r"sentencepiece 0\..* encodes 1 of 26 .* '▁ already ▁▁ there ▁'") as caught:
        try_tokenizer(checkpoint)
    assert "tokenizer.json from the model's page" in caught.value.hint


def test_without_sentencepiece_nothing_is_compared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, _ = opened(folder, remove_extra_whitespaces=True)
    monkeypatch.setattr(oracle, "find_spec", lambda _name: None)
    try_tokenizer(checkpoint)


def test_other_files_of_the_name_are_left_to_transformers(tmp_path: Path) -> None:
    assert read_pieces(train(tmp_path, model_type="word", byte_fallback=False).read_bytes(), "x") is None
    assert read_pieces(b"IQ== 0\nIg== 1\n", "x") is None, "tiktoken's"
    assert read_pieces(b"", "x") is None
    data = train(tmp_path).read_bytes()
    assert read_pieces(data, "x") is not None
    for length in range(0, len(data) - 1, 97):
        read_pieces(data[:length], "x")


def test_damage_is_named() -> None:
    pieces = Pieces(["<unk>", "a", "\ud800"], [0.0] * 3, [2, NORMAL, NORMAL], unknown="<unk>")
    with pytest.raises(SourceError, match="x is damaged"):
        convert_pieces(pieces, {}, "x")
