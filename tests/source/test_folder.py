"""Hugging Face folders: every stored type, shards, fused tensors, and reads that take only what is asked for."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgekit.source import fingerprint, open_model, tensors
from edgekit.testing import tiny_checkpoint, tiny_config, tiny_weights
from edgekit.types import Checkpoint

INDEX = "model.safetensors.index.json"


def rewrite(folder: Path, weights: dict[str, np.ndarray]) -> None:
    """Replace the weights of a tiny checkpoint."""
    save_file(weights, folder / "model.safetensors")


def edit(path: Path, **changes: Any) -> None:
    """Replace entries of a JSON file; None removes."""
    content = json.loads(path.read_text())
    content = {k: v for k, v in (content | changes).items() if v is not None}
    path.write_text(json.dumps(content))


def shard(folder: Path, parts: int = 3) -> dict[str, str]:
    """Split the single file into shards with an index; return the weight map."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = list(weights)
    where: dict[str, str] = {}
    for i in range(parts):
        file = f"model-{i + 1:05d}-of-{parts:05d}.safetensors"
        save_file({name: weights[name] for name in names[i::parts]}, folder / file)
        where |= dict.fromkeys(names[i::parts], file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


@pytest.mark.parametrize("kind", ["F64", "F32", "F16", "BF16"])
def test_reads_every_stored_type(tmp_path: Path, kind: str) -> None:
    folder = tiny_checkpoint(tmp_path / "m")
    dtype = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[kind]
    stored = {name: (value * np.float64(1.1)).astype(dtype) for name, value in tiny_weights(tiny_config()).items()}
    rewrite(folder, stored)
    weights = open_model(str(folder)).weights
    assert set(weights.names()) == set(stored)
    for name, value in stored.items():
        read = weights.read(name)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, value.astype(np.float32))
        assert weights.shape(name) == value.shape
        assert weights.stored(name) == kind
        assert weights.nbytes(name) == value.nbytes


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_double_precision_is_read_as_transformers_does(tmp_path: Path, architecture: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint(tmp_path / "m", architecture)
    edit(folder / "config.json", torch_dtype="float64", pad_token_id=0)
    wide = {name: value * np.float64(1.1) for name, value in load_file(folder / "model.safetensors").items()}
    rewrite(folder, wide)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    weights = open_model(str(folder)).weights
    for layer in range(2):
        for part in ("self_attn.o_proj", "mlp.down_proj", "input_layernorm"):
            name = f"model.layers.{layer}.{part}.weight"
            np.testing.assert_array_equal(weights.read(name), theirs[name].numpy())
    for name in weights.names():
        np.testing.assert_array_equal(weights.read(name, 3, 9), weights.read(name)[3:9])


def test_reads_only_the_rows_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = open_model(str(tiny_checkpoint(tmp_path / "m"))).weights
    whole = weights.read("model.embed_tokens.weight")
    amounts = []
    fill = tensors._fill
    monkeypatch.setattr(
        tensors, "_fill", lambda file, into, *rest: (amounts.append(len(into)), fill(file, into, *rest))
    )
    for start, stop in ((0, 1), (7, 200), (383, None), (5, 5), (380, 900)):
        amounts.clear()
        part = weights.read("model.embed_tokens.weight", start, stop)
        np.testing.assert_array_equal(part, whole[start:stop])
        assert sum(amounts) == part.nbytes
    np.testing.assert_array_equal(weights.read("model.norm.weight", 3, 9), weights.read("model.norm.weight")[3:9])


def test_large_tensors_are_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_checkpoint(tmp_path / "m")
    stored = {name: value.astype(ml_dtypes.bfloat16) for name, value in tiny_weights(tiny_config()).items()}
    rewrite(folder, stored)
    monkeypatch.setattr(tensors, "_BATCH", 64 * 100)
    read = open_model(str(folder)).weights.read("model.embed_tokens.weight", 1)
    np.testing.assert_array_equal(read, stored["model.embed_tokens.weight"][1:].astype(np.float32))


def test_opening_reads_no_weights(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m", vocab_size=400)
    file = folder / "model.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    os.truncate(file, header)
    os.truncate(file, header + sum(v.nbytes for v in tiny_weights(tiny_config(vocab_size=400)).values()))
    assert not open_model(str(folder)).weights.read("model.norm.weight").any()


def test_nothing_stays_open_and_threads_may_read_together(tmp_path: Path) -> None:
    weights = open_model(str(tiny_checkpoint(tmp_path / "m"))).weights
    before = len(list(Path("/proc/self/fd").iterdir()))
    names = weights.names() * 8
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(weights.read, names))
    for name, value in zip(names, read, strict=True):
        np.testing.assert_array_equal(value, weights.read(name))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_shards_with_an_index(tmp_path: Path) -> None:
    single = tiny_checkpoint(tmp_path / "single")
    several = tiny_checkpoint(tmp_path / "several")
    shard(several)
    one, many = open_model(str(single)), open_model(str(several))
    assert one.weights.names() == many.weights.names()
    for name in one.weights.names():
        np.testing.assert_array_equal(one.weights.read(name), many.weights.read(name))


def test_fingerprint_covers_all_weight_files(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m")
    checkpoint = open_model(str(folder))
    assert checkpoint.provenance.sha256 == ""
    assert checkpoint.provenance.id == "m"
    file = folder / "model.safetensors"
    assert fingerprint(checkpoint).sha256 == sha256(file.read_bytes()).hexdigest()
    shard(folder)
    lines = "".join(f"{p.name} {sha256(p.read_bytes()).hexdigest()}\n" for p in sorted(folder.glob("*.safetensors")))
    heard: list[tuple[int, int]] = []
    found = fingerprint(open_model(str(folder)), lambda task, done, total, unit="B": heard.append((done, total)))
    assert found.sha256 == sha256(lines.encode()).hexdigest()
    assert heard[-1][0] == heard[-1][1] > 0


def test_a_padded_embedding_counts_its_rows(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m", vocab_size=512)
    edit(folder / "config.json", vocab_size=390)
    checkpoint = open_model(str(folder))
    assert checkpoint.spec.vocab_size == 512
    assert json.loads(checkpoint.file("config.json") or b"")["vocab_size"] == 512


def test_a_tied_model_may_store_its_head_twice(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m")
    weights = tiny_weights(tiny_config())
    rewrite(folder, weights | {"lm_head.weight": weights["model.embed_tokens.weight"].copy()})
    checkpoint = open_model(str(folder))
    assert checkpoint.spec.tied
    assert "lm_head.weight" not in checkpoint.weights.names()


def test_a_head_that_differs_is_kept_whatever_the_config_says(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m")
    weights = tiny_weights(tiny_config())
    rewrite(folder, weights | {"lm_head.weight": weights["model.embed_tokens.weight"] * 2})
    checkpoint = open_model(str(folder))
    assert not checkpoint.spec.tied
    np.testing.assert_array_equal(
        checkpoint.weights.read("lm_head.weight"), weights["model.embed_tokens.weight"] * np.float32(2)
    )
    assert json.loads(checkpoint.file("config.json") or b"")["tie_word_embeddings"] is False


def made_by_transformers(folder: Path, architecture: str, **overrides: Any) -> tuple[Checkpoint, dict[str, np.ndarray]]:
    """A tiny model that transformers itself made and saved, opened, and its parameters."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny_checkpoint(folder, architecture)
    sizes = {k: v for k, v in tiny_config(architecture).items() if k not in ("architectures", "torch_dtype")}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**({"pad_token_id": 3} | sizes | overrides)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return open_model(str(folder)), {name: value.numpy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
@pytest.mark.parametrize("tied", [True, False])
def test_opens_what_transformers_saves(tmp_path: Path, architecture: str, tied: bool) -> None:
    options = {"attention_bias": True, "mlp_bias": True} if architecture == "llama" else {}
    checkpoint, expected = made_by_transformers(tmp_path / "m", architecture, tie_word_embeddings=tied, **options)
    assert checkpoint.spec.tied == tied
    if tied:
        expected.pop("lm_head.weight")
    assert set(checkpoint.weights.names()) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(checkpoint.weights.read(name), value)


def test_phi3_shows_its_fused_tensors_in_parts(tmp_path: Path) -> None:
    checkpoint, saved = made_by_transformers(tmp_path / "m", "phi3", num_key_value_heads=2, tie_word_embeddings=False)
    read = checkpoint.weights.read
    for i in range(2):
        layer = f"model.layers.{i}."
        qkv = [read(f"{layer}self_attn.{p}_proj.weight") for p in "qkv"]
        assert [len(rows) for rows in qkv] == [64, 32, 32]
        np.testing.assert_array_equal(np.concatenate(qkv), saved[f"{layer}self_attn.qkv_proj.weight"])
        halves = [read(f"{layer}mlp.{p}_proj.weight") for p in ("gate", "up")]
        np.testing.assert_array_equal(np.concatenate(halves), saved[f"{layer}mlp.gate_up_proj.weight"])
    k = read("model.layers.1.self_attn.k_proj.weight", 5, 9)
    np.testing.assert_array_equal(k, saved["model.layers.1.self_attn.qkv_proj.weight"][69:73])
