"""Models before their weights are there."""

import json
import shutil
from pathlib import Path

import pytest
from ggufs import write_gguf

from edgekit.errors import SourceError
from edgekit.source import open_config_only, open_model, packaged
from edgekit.testing import tiny_checkpoint, tiny_config


def test_a_config_is_enough_and_gives_every_shape(tmp_path: Path) -> None:
    whole = tiny_checkpoint(tmp_path / "whole", tie_word_embeddings=False)
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "generation_config.json"):
        shutil.copy(whole / name, tmp_path / "bare")
    checkpoint, bare = open_model(str(whole)), open_config_only(str(tmp_path / "bare"))
    assert bare.spec == checkpoint.spec
    assert bare.files == ()
    names = bare.weights.names()
    assert names == checkpoint.weights.names()
    assert all(bare.weights.shape(name) == checkpoint.weights.shape(name) for name in names)
    for ask in (bare.weights.read, bare.weights.nbytes):
        with pytest.raises(SourceError, match=r"cannot read 'model.norm.weight', because only the configuration"):
            ask("model.norm.weight")
    with pytest.raises(SourceError, match="no tensor 'nonsense'"):
        bare.weights.shape("nonsense")


def test_the_tokenizer_beside_it_is_part_of_it(tmp_path: Path) -> None:
    whole = tiny_checkpoint(tmp_path / "whole")
    (whole / "model.safetensors").write_bytes(b"half a download")
    assert open_config_only(str(whole)).file("tokenizer.json") == (whole / "tokenizer.json").read_bytes()


def test_a_gguf_is_its_own_configuration(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    assert open_config_only(str(tmp_path / "tiny.gguf")).spec == open_model(str(tmp_path / "tiny.gguf")).spec


def test_a_packaged_model_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Path:
        raise AssertionError("weights were asked for")

    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packaged, "_download", refuse)
    bare = open_config_only("smollm2-135m")
    assert (bare.spec.layers, bare.spec.hidden_size, bare.provenance.kind) == (30, 576, "packaged")
    assert not (tmp_path / "cache").exists()


@pytest.mark.model
def test_a_packaged_models_configuration_is_that_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = open_model("smollm2-135m")
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "empty"))
    assert open_config_only("smollm2-135m").spec == fetched.spec


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        (None, "has no config.json"),
        ({**tiny_config(), "model_type": "mamba"}, "architecture 'mamba'"),
        ({**tiny_config(), "quantization_config": {"quant_method": "awq"}}, "already quantized"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_said(
    tmp_path: Path, content: dict[str, object] | None, culprit: str
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(SourceError, match=culprit) as caught:
        open_config_only(str(tmp_path))
    assert caught.value.hint


def test_what_is_nothing_is_refused_as_ever() -> None:
    with pytest.raises(SourceError, match="model 'smollm' not found"):
        open_config_only("smollm")
    with pytest.raises(SourceError, match=r"model 'org/absent\.gguf' not found"):
        open_config_only("org/absent.gguf")
