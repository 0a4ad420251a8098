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


def test_stops_come_from_the_generation_config(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[2, 0, 2])
    assert open_model(str(folder)).spec.eos_token_ids == (2, 0)


def test_stop_is_found_through_the_tokenizer_when_no_config_names_it(folder: Path) -> None:
    config = tiny_config() | {"eos_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink()
    assert open_model(str(folder)).spec.eos_token_ids == (2,)


def test_chat_template_in_its_own_file_wins(folder: Path) -> None:
    (folder / "chat_template.json").write_text('{"chat_template": "from json"}')
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
