"""Tokens of several files come out in tokenizer.json as AutoTokenizer has them, or the contradiction is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_folder import edit
from tokenizers import Tokenizer

from edgekit.errors import SourceError
from edgekit.source import complete_export, open_model
from edgekit.source.oracle import try_tokenizer
from edgekit.testing import tiny_checkpoint, tiny_tokenizer
from edgekit.types import Checkpoint, Provenance, SideFile

FIRST = max(json.loads(tiny_tokenizer())["model"]["vocab"].values()) + 1
"""The id of the first token that is added."""

TEXT = "Hi <|im_end|> [A]x<B> <x> .[A][A]<B>The"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose embedding has rows to spare."""
    return tiny_checkpoint(tmp_path / "m", vocab_size=FIRST + 4)


def token(text: str, **flags: bool) -> dict[str, Any]:
    flat = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    return {"content": text, **flat, "special": True} | flags


def shipped(folder: Path) -> Tokenizer:
    checkpoint = open_model(str(folder))
    try_tokenizer(checkpoint)
    return Tokenizer.from_str((checkpoint.file("tokenizer.json") or b"").decode())


def decoder(*texts: str, at: int = FIRST, **flags: bool) -> dict[str, Any]:
    return {str(at + i): token(text, **flags) for i, text in enumerate(texts)}


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "decoder": ({"added_tokens_decoder": decoder("[A]", "<B>")}, {}),
    "decoder, plain tokens": ({"added_tokens_decoder": decoder("[A]", "<B>", special=False, normalized=True)}, {}),
    "decoder, other flags": ({"added_tokens_decoder": {"2": token("<|im_end|>", lstrip=True, rstrip=True)}}, {}),
    "decoder, one of the vocabulary": ({"added_tokens_decoder": {"273": token("The")}}, {}),
    "added_tokens.json": ({}, {"added_tokens.json": {"[A]": FIRST, "<B>": FIRST + 1}}),
    "added_tokens.json, not in order": ({}, {"added_tokens.json": {"<B>": FIRST + 1, "[A]": FIRST}}),
    "added_tokens.json, special": (
        {"additional_special_tokens": ["[A]"]},
        {"added_tokens.json": {"[A]": FIRST, "<B>": FIRST + 1}},
    ),
    "added_tokens.json beside a decoder": (
        {"added_tokens_decoder": decoder("[A]")},
        {"added_tokens.json": {"[A]": FIRST, "<B>": FIRST + 1}},
    ),
    "additional": ({"additional_special_tokens": ["[A]", {"__type": "AddedToken", **token("<B>", lstrip=True)}]}, {}),
    "extra, a list": ({"extra_special_tokens": ["[A]", "<B>"]}, {}),
    "extra, by name": ({"extra_special_tokens": {"image_token": "[A]", "audio_token": "<B>"}}, {}),
    "a name of its own": ({"image_token": "[A]"}, {}),
    "named": ({"pad_token": "[A]", "sep_token": "<B>"}, {}),
    "special_tokens_map.json": (
        {},
        {"special_tokens_map.json": {"pad_token": token("[A]"), "additional_special_tokens": ["<B>", "<x>"]}},
    ),
    "special_tokens_map.json beside a decoder": (
        {"added_tokens_decoder": decoder("<B>")},
        {"special_tokens_map.json": {"pad_token": "[A]"}},
    ),
    "an end of the vocabulary": ({"eos_token": "The"}, {}),
}


def write(folder: Path, settings: dict[str, Any], files: dict[str, Any]) -> None:
    edit(folder / "tokenizer_config.json", **settings)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("name", VARIANTS)
def test_as_transformers_has_them(folder: Path, tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    write(folder, *VARIANTS[name])
    checkpoint = open_model(str(folder))
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for file in checkpoint.files:
        (bundle / file.name).write_bytes(file.data)
    ours, theirs, again = shipped(folder), AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(bundle)
    flags = {i: (t.content, t.special, t.lstrip, t.rstrip) for i, t in theirs.added_tokens_decoder.items()}
    assert {i: (t.content, t.special, t.lstrip, t.rstrip) for i, t in ours.get_added_tokens_decoder().items()} == flags
    assert ours.encode(TEXT, add_special_tokens=False).ids == theirs(TEXT)["input_ids"] == again(TEXT)["input_ids"]
    assert (again.eos_token, again.pad_token) == (theirs.eos_token, theirs.pad_token)
    assert theirs.eos_token_id in checkpoint.spec.eos_token_ids


def test_literal_ids(folder: Path) -> None:
    """Made with transformers 4.57.6 and tokenizers 0.22.2; transformers 5.24.0 gives the same."""
    write(folder, *VARIANTS["added_tokens.json, special"])
    assert shipped(folder).encode("The [A]x<B>").ids == [273, 224, 323, 91, 324]


def test_lists_of_two_files_are_joined(folder: Path) -> None:
    """As transformers 4.57.6 does; 5.24.0 forgets the second."""
    edit(folder / "tokenizer_config.json", additional_special_tokens=["[A]"])
    (folder / "special_tokens_map.json").write_text('{"additional_special_tokens": ["<B>", "[A]"]}')
    assert shipped(folder).encode("The [A]x<B>").ids == [273, 224, 323, 91, 324]


@pytest.mark.parametrize(
    ("settings", "files", "said"),
    [
        ({"added_tokens_decoder": decoder("[A]", at=FIRST + 1)}, {}, f"{FIRST + 1}.* next free id is {FIRST}"),
        ({"added_tokens_decoder": decoder("[A]", at=40)}, {}, "id 40.*which is 'E'"),
        ({"added_tokens_decoder": decoder("<|im_end|>", at=3)}, {}, "'<|im_end|>'.* id 3.*but 2 in tokenizer.json"),
        ({}, {"added_tokens.json": {"[A]": 3}}, "'.A.'.* id 3.*which is '<pad>'"),
        ({}, {"added_tokens.json": {"The": FIRST}}, f"'The'.* id {FIRST}.*but 273 in"),
        (
            {"added_tokens_decoder": decoder("[A]", "<B>", "[C]", "[D]", "[E]")},
            {},
            "328 tokens, but the embedding has only 327",
        ),
        ({}, {"added_tokens.json": {"[A]": "7"}}, "'.A.' has the invalid id '7'"),
        ({}, {"added_tokens.json": {"[A]": -1}}, "has the invalid id -1"),
        ({"additional_special_tokens": "[A]"}, {}, "'additional_special_tokens' is \"\\[A\\]\", not a list of tokens"),
        ({"extra_special_tokens": [3]}, {}, "'extra_special_tokens'"),
        ({"added_tokens_decoder": {"999999999999": token("x")}}, {}, "'added_tokens_decoder'"),
    ],
)
def test_contradictions_are_refused(folder: Path, settings: dict[str, Any], files: dict[str, Any], said: str) -> None:
    write(folder, settings, files)
    with pytest.raises(SourceError, match=said.replace("<|", r"<\|").replace("|>", r"\|>")) as caught:
        open_model(str(folder))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("settings", "files"),
    [
        ({"pad_token": "[A]"}, {}),
        ({"pad_token": "[A]"}, {"added_tokens.json": {"[A]": FIRST}}),
        ({"pad_token": "[A]", "added_tokens_decoder": decoder("[A]")}, {}),
        ({"mask_token": "[A]"}, {}),
    ],
)
def test_padding_without_a_row_is_left_out(tmp_path: Path, settings: dict[str, Any], files: dict[str, Any]) -> None:
    """Nothing is ever fed with it; in transformers it has an id that the model refuses."""
    folder = tiny_checkpoint(tmp_path / "m", vocab_size=FIRST)
    write(folder, settings, files)
    assert "[A]" not in shipped(folder).get_vocab()


@pytest.mark.parametrize(
    "part",
    [
        {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}},
        {
            "padding": {
                "strategy": {"Fixed": 64},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 3,
                "pad_type_id": 0,
                "pad_token": "<pad>",
            }
        },
    ],
)
def test_texts_are_neither_cut_nor_filled_up(folder: Path, part: dict[str, Any]) -> None:
    edit(folder / "tokenizer.json", **part)
    text = "The quick brown fox jumps over the lazy dog."
    assert shipped(folder).encode(text).ids == Tokenizer.from_str(tiny_tokenizer()).encode(text).ids


@pytest.mark.parametrize(
    ("kind", "stored", "wanted", "spaced"),
    [
        ("GPT2Tokenizer", False, True, True),
        ("GPT2TokenizerFast", True, False, False),
        ("GPT2Tokenizer", True, None, False),
        ("PreTrainedTokenizerFast", False, True, False),
        ("PreTrainedTokenizerFast", True, None, True),
    ],
)
def test_a_space_in_front_is_the_classs_to_say(
    folder: Path, tmp_path: Path, kind: str, stored: bool, wanted: bool | None, spaced: bool
) -> None:
    """As in transformers 5.24.0; 4.57.6 reads what is shipped in the same way, since it names no class but the last."""
    content = json.loads((folder / "tokenizer.json").read_text())
    edit(folder / "tokenizer.json", pre_tokenizer=content["pre_tokenizer"] | {"add_prefix_space": stored})
    edit(folder / "tokenizer_config.json", tokenizer_class=kind, add_prefix_space=wanted)
    assert shipped(folder).encode("fox").tokens[0].startswith("Ġ") == spaced
    settings = json.loads(open_model(str(folder)).file("tokenizer_config.json") or b"")
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings.get("add_prefix_space", False) == spaced


@pytest.mark.parametrize("local", [True, False])
def test_an_export_has_them_too(folder: Path, local: bool) -> None:
    """What optimum exports of a folder, or of a hub id, whose files it wrote itself."""
    write(folder, *VARIANTS["added_tokens.json"])
    edit(folder / "config.json", eos_token_id=3)
    own = open_model(str(folder))
    names = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    files = tuple(SideFile(name, (folder / name).read_bytes()) for name in names)
    origin = Provenance("m", "optimum", "", "", str(folder) if local else "org/m")
    export = complete_export(Checkpoint(replace(own.spec, eos_token_ids=(2,)), own.weights, files, origin))
    assert export.spec.eos_token_ids == (2, 3)
    assert json.loads(export.file("generation_config.json") or b"")["eos_token_id"] == [2, 3]
    assert ("[A]" in (export.file("tokenizer.json") or b"").decode()) == local
    assert export.file("chat_template.jinja") == own.file("chat_template.jinja")


@pytest.mark.parametrize(
    ("kind", "end"),
    [("Qwen2Tokenizer", "<|endoftext|>"), ("GPT2TokenizerFast", "<|endoftext|>"), ("LlamaTokenizer", "</s>")],
)
def test_an_end_that_only_the_class_stands_for(tmp_path: Path, kind: str, end: str) -> None:
    """AutoTokenizer of such a folder has an eos_token that no file of it names."""
    import transformers

    folder = tiny_checkpoint(tmp_path / "m", vocab_size=FIRST + 4)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_end|>", end))
    settings = {"tokenizer_class": kind, "eos_token": None}
    written = {k: v for k, v in json.loads((folder / "tokenizer_config.json").read_text()).items() if k not in settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(written | {"tokenizer_class": kind}))
    checkpoint = open_model(str(folder))
    assert json.loads(checkpoint.file("tokenizer_config.json") or b"")["eos_token"] == end
    assert json.loads(path.read_text())["model"]["vocab"].get(end, 2) in checkpoint.spec.eos_token_ids
    assert getattr(transformers, kind)().eos_token == end
    (folder / "tokenizer_config.json").write_text(json.dumps(written | settings))
    shipped = json.loads(open_model(str(folder)).file("tokenizer_config.json") or b"")
    assert shipped["eos_token"] is None, "null says that there is none"
