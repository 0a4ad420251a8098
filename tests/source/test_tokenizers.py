"""Tokenizers: the tokenizer.json that ships encodes every awkward string as the source's own tokenizer does."""

import json
from pathlib import Path
from typing import Any

import pytest
from ggufs import byte_level_entries, sentencepiece_entries, write_gguf
from tokenizers import Tokenizer

from edgekit.source import TOKENIZER_EDGE_CASES, open_model, source_tokenizer
from edgekit.source.gguf_tokenizer import SPLITS
from edgekit.testing import tiny_checkpoint, tiny_tokenizer
from edgekit.types import Checkpoint


def shipped(checkpoint: Checkpoint) -> Tokenizer:
    return Tokenizer.from_str((checkpoint.file("tokenizer.json") or b"").decode())


def differences(checkpoint: Checkpoint) -> list[str]:
    """Awkward strings that the shipped tokenizer and the source's encode differently."""
    ours, theirs = shipped(checkpoint), source_tokenizer(checkpoint)
    return [
        text[:60] for text in TOKENIZER_EDGE_CASES if ours.encode(text, add_special_tokens=False).ids != theirs(text)
    ]


def gguf(tmp_path: Path, architecture: str = "llama", **options: Any) -> Checkpoint:
    write_gguf(tmp_path / "m.gguf", architecture, **options)
    return open_model(str(tmp_path / "m.gguf"))


def test_the_corpus_is_awkward() -> None:
    text = "".join(TOKENIZER_EDGE_CASES)
    for needed in ("🙂", "\u200d", "生活", "اللغة", "\t\t", "\x1b", "1234567", "\r\n", "\u0301", "<|im_start|>"):
        assert needed in text
    assert "" in TOKENIZER_EDGE_CASES
    assert any(len(s) >= 10_000 and " " not in s for s in TOKENIZER_EDGE_CASES)
    assert any(s.endswith(" ") for s in TOKENIZER_EDGE_CASES)


def test_folder(tmp_path: Path) -> None:
    checkpoint = open_model(str(tiny_checkpoint(tmp_path / "m")))
    assert checkpoint.file("tokenizer.json") == tiny_tokenizer().encode()
    assert differences(checkpoint) == []


def test_a_wrong_tokenizer_is_noticed(tmp_path: Path) -> None:
    """The oracle reads the source, not the file that ships."""
    folder = tiny_checkpoint(tmp_path / "m")
    checkpoint = open_model(str(folder))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:5]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert differences(checkpoint)


def test_gguf_gives_back_the_tokenizer_it_was_made_from(tmp_path: Path) -> None:
    checkpoint = gguf(tmp_path)
    ours, original = shipped(checkpoint), Tokenizer.from_str(tiny_tokenizer())
    for text in TOKENIZER_EDGE_CASES:
        ids = original.encode(text).ids
        assert ours.encode(text).ids == ids
        assert ours.decode(ids, skip_special_tokens=False) == original.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("pre", SPLITS)
def test_gguf_splits_agree_with_the_oracle(tmp_path: Path, pre: str) -> None:
    assert differences(gguf(tmp_path, tokenizer=byte_level_entries(pre))) == []


def test_splits_differ_where_they_should(tmp_path: Path) -> None:
    def pieces(pre: str, text: str) -> list[str]:
        steps = shipped(gguf(tmp_path, tokenizer=byte_level_entries(pre))).pre_tokenizer
        return [piece for piece, _ in steps.pre_tokenize_str(text)]

    assert pieces("gpt-2", "x 1234567") == ["x", "Ġ1234567"]
    assert pieces("smollm", "x 1234567") == ["x", "Ġ", *"1234567"]
    assert pieces("llama-bpe", "x 1234567") == ["x", "Ġ", "123", "456", "7"]
    assert pieces("qwen2", "x 1234567") == ["x", "Ġ", *"1234567"]
    assert pieces("gpt-4o", "HelloWORLDs it's") == ["Hello", "WORLDs", "Ġit's"]


def test_qwen2_composes_characters(tmp_path: Path) -> None:
    tokenizer = shipped(gguf(tmp_path, tokenizer=byte_level_entries("qwen2")))
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("\u00e9").ids


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_agrees_with_the_oracle(tmp_path: Path, prefix: bool) -> None:
    entries = sentencepiece_entries() | {"add_space_prefix": prefix}
    checkpoint = gguf(tmp_path, tokenizer=entries, vocab_size=len(entries["tokens"]))
    assert differences(checkpoint) == []
    tokenizer = shipped(checkpoint)
    tokens = tokenizer.encode("the quick <tool> tab\t", add_special_tokens=False).tokens
    start = ["▁the"] if prefix else ["t", "he"]
    assert tokens[: len(start)] == start
    assert "<tool>" in tokens
    assert tokens[-1] == "<0x09>"
    assert tokenizer.decode(tokenizer.encode("the quick").ids) == "the quick"
    assert tokenizer.encode("in").ids[0] == 1, "a SentencePiece model begins with <s> unless the file says otherwise"


def test_phi3_marks_swallow_the_space_after_them(tmp_path: Path) -> None:
    from test_gguf import fused

    entries = sentencepiece_entries()
    for key, value in (("tokens", "<|end|>"), ("token_type", 3), ("scores", 0.0)):
        entries[key].append(value)
    checkpoint = gguf(tmp_path, "phi3", weights=fused(), tokenizer=entries)
    assert differences(checkpoint) == []
    encode = shipped(checkpoint).encode
    assert encode("<|end|> the", add_special_tokens=False).ids == encode("<|end|>the", add_special_tokens=False).ids


@pytest.mark.parametrize(("added", "expected"), [((True, True), (1, 2)), ((False, False), (None, None))])
def test_tokens_around_a_text(tmp_path: Path, added: tuple[bool, bool], expected: tuple[int | None, ...]) -> None:
    entries = byte_level_entries() | {"add_bos_token": added[0], "add_eos_token": added[1]}
    tokenizer = shipped(gguf(tmp_path, tokenizer=entries))
    plain = tokenizer.encode("The fox", add_special_tokens=False).ids
    around = [i for i in (expected[0],) if i is not None], [i for i in (expected[1],) if i is not None]
    assert tokenizer.encode("The fox").ids == [*around[0], *plain, *around[1]]


def test_transformers_loads_what_a_gguf_gives(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    checkpoint = gguf(tmp_path)
    folder = tmp_path / "out"
    folder.mkdir()
    for file in checkpoint.files:
        (folder / file.name).write_bytes(file.data)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ours = shipped(checkpoint)
    for text in TOKENIZER_EDGE_CASES:
        assert tokenizer(text, verbose=False)["input_ids"] == ours.encode(text).ids
    assert tokenizer.eos_token_id == checkpoint.spec.eos_token_ids[0]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat == "<|im_start|>user\nHi<|im_end|>\n"


@pytest.mark.model
def test_smollm2() -> None:
    """Its Hugging Face tokenizer.json cuts digits one by one, then GPT-2's way; 17 special tokens."""
    checkpoint = open_model("smollm2-135m")
    assert differences(checkpoint) == []
    tokenizer = shipped(checkpoint)
    assert tokenizer.encode("1234567").tokens == list("1234567")
    assert tokenizer.encode("x 42").tokens == ["x", "Ġ", "4", "2"]
    assert tokenizer.encode("<|im_start|>user\nHi<|im_end|>").ids == [1, 4093, 198, 26843, 2]
    assert tokenizer.encode("Hello, world!").ids == [19556, 28, 905, 17]
    for text in TOKENIZER_EDGE_CASES:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
