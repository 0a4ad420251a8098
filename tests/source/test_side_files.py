"""Side files: copied as they are, made where they are missing."""

import json
from pathlib import Path

import pytest
from test_folder import edit

from edgekit.errors import SourceError
from edgekit.source import open_model
from edgekit.testing import CHAT_TEMPLATE, tiny_checkpoint, tiny_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "m")


def loaded(folder: Path, name: str) -> dict[str, object]:
    return dict(json.loads(open_model(str(folder)).file(name) or b""))


def test_copied_as_they_are(folder: Path) -> None:
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
    checkpoint = open_model(str(folder))
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert checkpoint.file(name) == (folder / name).read_bytes()
    assert checkpoint.file("special_tokens_map.json") is not None
    assert checkpoint.file("chat_template.jinja") == CHAT_TEMPLATE.encode()
    assert checkpoint.file("absent") is None


def test_generation_config_is_made_from_the_config(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", eos_token_id=[2, 3])
    assert loaded(folder, "generation_config.json") == {"bos_token_id": 1, "eos_token_id": [2, 3]}


@pytest.mark.parametrize(
    ("config", "generation", "tokenizer", "ends"),
    [
        (2, [2, 0, 2], "<|im_end|>", (2, 0)),
        (3, 2, "<|im_end|>", (2, 3)),
        ([3, 1], [0], "<|im_end|>", (0, 3, 1, 2)),
        (1, None, "<|im_end|>", (1, 2)),
        (None, None, {"content": "<|im_end|>"}, (2,)),
        (None, None, None, ()),
        ("absent", None, "<pad>", (3,)),
        ("absent", None, None, (2,)),
        ("absent", 3, None, (3,)),
        (1, 0, "The", (0, 1, 273)),
    ],
)
def test_an_answer_ends_at_what_any_file_names(
    folder: Path, config: object, generation: object, tokenizer: object, ends: tuple[int, ...]
) -> None:
    """LlamaConfig's default, 2, counts only where no file names an end."""
    values = tiny_config() | {"eos_token_id": config}
    if config == "absent":
        del values["eos_token_id"]
    (folder / "config.json").write_text(json.dumps(values))
    edit(folder / "generation_config.json", eos_token_id=generation)
    edit(folder / "tokenizer_config.json", eos_token=tokenizer)
    checkpoint = open_model(str(folder))
    assert checkpoint.spec.eos_token_ids == ends
    shipped = json.loads(checkpoint.file("generation_config.json") or b"").get("eos_token_id")
    assert (set(shipped) if isinstance(shipped, list) else {shipped} - {None}) == set(ends)


def test_the_end_named_in_the_special_tokens_map_counts(folder: Path) -> None:
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<pad>", "lstrip": false}}')
    assert open_model(str(folder)).spec.eos_token_ids == (2, 3)


def test_a_file_wins_over_the_settings_and_they_over_a_processors(folder: Path) -> None:
    (folder / "chat_template.json").write_text('{"chat_template": "from json"}')
    assert open_model(str(folder)).file("chat_template.jinja") == CHAT_TEMPLATE.encode()
    edit(folder / "tokenizer_config.json", chat_template=None)
    assert open_model(str(folder)).file("chat_template.jinja") == b"from json"
    (folder / "chat_template.jinja").write_text("from jinja")
    assert open_model(str(folder)).file("chat_template.jinja") == b"from jinja"


def test_chat_template_is_put_where_javascript_looks(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template=None)
    assert open_model(str(folder)).file("chat_template.jinja") is None
    (folder / "chat_template.jinja").write_text("from jinja")
    assert loaded(folder, "tokenizer_config.json")["chat_template"] == "from jinja"


def test_named_chat_templates(folder: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    edit(folder / "tokenizer_config.json", chat_template=named)
    assert open_model(str(folder)).file("chat_template.jinja") == b"plain"


def test_tokenizer_config_is_made(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|im_end|>"}}')
    settings = loaded(folder, "tokenizer_config.json")
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["eos_token"] == {"content": "<|im_end|>"}


def test_older_byte_level_tokenizer_is_converted(folder: Path) -> None:
    from tokenizers import Tokenizer

    content = json.loads((folder / "tokenizer.json").read_text())
    merges = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    edit(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    (folder / "tokenizer.json").unlink()
    converted = Tokenizer.from_str((open_model(str(folder)).file("tokenizer.json") or b"").decode())
    text = "The quick brown fox, 12 times."
    assert converted.encode(text, add_special_tokens=False).ids == original.encode(text).ids


def test_sentencepiece_model_is_converted(folder: Path) -> None:
    import sentencepiece
    from tokenizers import Tokenizer

    text = "The quick brown fox jumps over the lazy dog. Paris is the capital of France. "
    (folder / "text").write_text("\n".join(text[i:] for i in range(40)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.json").unlink()
    marks = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **marks}))
    processor = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    converted = Tokenizer.from_str((open_model(str(folder)).file("tokenizer.json") or b"").decode())
    for sample in ("The lazy dog is in Paris.", "fox 🙂 é"):
        assert converted.encode(sample, add_special_tokens=False).ids == processor.encode(sample)


def test_tokenizer_that_cannot_be_converted(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\x00damaged")
    with pytest.raises(SourceError) as caught:
        open_model(str(folder))
    assert "tokenizer.model" in caught.value.message
    assert "edgekit[sentencepiece]" in caught.value.hint


def test_templates_of_their_own_folder(folder: Path) -> None:
    """transformers reads them from files; genai and transformers.js take the one text of tokenizer_config.json."""
    from transformers import AutoTokenizer

    (folder / "chat_template.jinja").write_text("plain")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    (folder / "additional_chat_templates" / "notes.txt").write_text("not a template")
    checkpoint = open_model(str(folder))
    assert checkpoint.file("chat_template.jinja") == b"plain"
    assert checkpoint.file("additional_chat_templates/tool_use.jinja") == b"tools"
    assert json.loads(checkpoint.file("tokenizer_config.json") or b"")["chat_template"] == "plain"
    assert AutoTokenizer.from_pretrained(folder).chat_template == {"default": "plain", "tool_use": "tools"}


def test_a_list_of_templates_ships_as_files(folder: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    edit(folder / "tokenizer_config.json", chat_template=named)
    checkpoint = open_model(str(folder))
    assert checkpoint.file("additional_chat_templates/tool_use.jinja") == b"tools"
    assert json.loads(checkpoint.file("tokenizer_config.json") or b"")["chat_template"] == "plain", "genai wants a text"


def test_an_object_of_templates_ships_as_files(folder: Path) -> None:
    from transformers import AutoTokenizer

    named = {"tool_use": "tools", "default": "plain"}
    edit(folder / "tokenizer_config.json", chat_template=named)
    checkpoint = open_model(str(folder))
    assert checkpoint.file("chat_template.jinja") == b"plain"
    assert checkpoint.file("additional_chat_templates/tool_use.jinja") == b"tools"
    assert AutoTokenizer.from_pretrained(folder).chat_template == named


@pytest.mark.parametrize("name", ["../../outside", "a/b", "", ".hidden", 7])
def test_a_name_that_could_be_no_files_is_refused(folder: Path, name: object) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": name, "template": "x"}]
    edit(folder / "tokenizer_config.json", chat_template=named)
    with pytest.raises(SourceError, match="'chat_template'"):
        open_model(str(folder))


def test_one_named_template_is_the_one(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template=[{"name": "chatml", "template": "plain"}])
    assert open_model(str(folder)).file("chat_template.jinja") == b"plain"


@pytest.mark.parametrize("in_files", [True, False])
def test_several_templates_without_a_default_are_refused(folder: Path, in_files: bool) -> None:
    if in_files:
        (folder / "additional_chat_templates").mkdir()
        for name in ("rag", "tool_use"):
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(name)
    else:
        named = [{"name": name, "template": name} for name in ("rag", "tool_use")]
        edit(folder / "tokenizer_config.json", chat_template=named)
    with pytest.raises(SourceError, match="templates 'rag', 'tool_use', but none is called 'default'"):
        open_model(str(folder))


def test_a_template_that_a_link_leads_out_to_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "default.jinja").write_text("secret")
    (folder / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match=r"default\.jinja"):
        open_model(str(folder))
