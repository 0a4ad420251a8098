"""Bad checkpoints: each is one error that names the culprit and says what to do."""

import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from ggufs import write_gguf
from safetensors.numpy import save_file
from test_folder import INDEX, edit, rewrite, shard

from edgekit.errors import SourceError
from edgekit.source import open_model
from edgekit.testing import tiny_checkpoint, tiny_config, tiny_weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "m")


def refused(model: Path | str, *culprits: object) -> None:
    """Opening fails, with every culprit in the message and a hint."""
    with pytest.raises(SourceError) as caught:
        open_model(str(model))
    for culprit in culprits:
        assert str(culprit) in caught.value.message
    assert caught.value.hint


def test_missing_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(folder, INDEX, "model-00002-of-00003.safetensors", "missing")


def test_truncated_shard(folder: Path) -> None:
    file = folder / "model.safetensors"
    size = file.stat().st_size
    os.truncate(file, size - 100)
    refused(folder, file, "truncated", size - 100, size)


@pytest.mark.parametrize("size", [0, 5, 40])
def test_shard_truncated_inside_its_header(folder: Path, size: int) -> None:
    os.truncate(folder / "model.safetensors", size)
    refused(folder, "model.safetensors", "truncated")


def test_file_truncated_after_it_was_opened(folder: Path) -> None:
    weights = open_model(str(folder)).weights
    os.truncate(folder / "model.safetensors", 5000)
    with pytest.raises(SourceError, match=r"truncated.*inside tensor") as caught:
        for name in weights.names():
            weights.read(name)
    assert str(folder / "model.safetensors") in caught.value.message


def test_file_gone_after_it_was_opened(folder: Path) -> None:
    weights = open_model(str(folder)).weights
    (folder / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="not found"):
        weights.read("model.norm.weight")


def test_damaged_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[10] = 0
    file.write_bytes(data)
    refused(folder, file, "damaged header")


def test_tensor_whose_bytes_contradict_its_shape(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"shape":[384,64]', b'"shape":[384,32]'))
    refused(folder, file, "model.embed_tokens.weight", "[384, 32]")


def test_index_naming_a_tensor_that_is_not_there(folder: Path) -> None:
    where = shard(folder)
    where["model.layers.9.mlp.up_proj.weight"] = "model-00001-of-00003.safetensors"
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    refused(folder, INDEX, "model.layers.9.mlp.up_proj.weight", "model-00001-of-00003.safetensors")


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..\\x.safetensors", ".."]
)
def test_index_leading_out_of_the_folder(folder: Path, name: str) -> None:
    where = shard(folder)
    where["model.norm.weight"] = name
    save_file({"model.norm.weight": np.ones(64, np.float32)}, folder.parent / "outside.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    refused(folder, INDEX, repr(name), "not inside the folder")


def test_index_without_a_map(folder: Path) -> None:
    shard(folder)
    (folder / INDEX).write_text("{}")
    refused(folder, INDEX, "weight_map")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_values_that_are_not_finite(folder: Path, value: float, dtype: type) -> None:
    weights = {name: array.astype(dtype) for name, array in tiny_weights(tiny_config()).items()}
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name][3, 5] = value
    rewrite(folder, weights)
    read = open_model(str(folder)).weights.read
    with pytest.raises(SourceError, match="NaN or infinite") as caught:
        read(name)
    assert name in caught.value.message
    assert "model.safetensors" in caught.value.message
    assert read(name, 4).shape == (60, 128)


def test_finite_values_whose_sum_overflows_are_fine(folder: Path) -> None:
    weights = tiny_weights(tiny_config())
    weights["model.norm.weight"][:] = 3e38
    rewrite(folder, weights)
    assert open_model(str(folder)).weights.read("model.norm.weight").max() == np.float32(3e38)


@pytest.mark.parametrize(
    ("key", "value", "tensor"),
    [
        ("hidden_size", 32, "model.embed_tokens.weight"),
        ("intermediate_size", 96, "mlp.gate_proj.weight"),
        ("num_attention_heads", 2, "self_attn.q_proj.weight"),
        ("num_key_value_heads", 4, "self_attn.k_proj.weight"),
        ("head_dim", 8, "self_attn.q_proj.weight"),
        ("vocab_size", 500, "model.embed_tokens.weight"),
        ("num_hidden_layers", 3, "model.layers.2.input_layernorm.weight"),
        ("tie_word_embeddings", False, "lm_head.weight"),
        ("attention_bias", True, "self_attn.q_proj.bias"),
        ("model_type", "qwen3", "self_attn.q_norm.weight"),
    ],
)
def test_config_that_contradicts_the_tensors(folder: Path, key: str, value: object, tensor: str) -> None:
    edit(folder / "config.json", **{key: value})
    refused(folder, tensor)


def test_bias_that_the_config_does_not_know_of(folder: Path) -> None:
    weights = tiny_weights(tiny_config())
    rewrite(folder, weights | {"model.layers.0.self_attn.q_proj.bias": np.ones(64, np.float32)})
    refused(folder, "unexpected tensor 'model.layers.0.self_attn.q_proj.bias'")


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.bool_, np.int64])
def test_types_that_are_not_floating_point(folder: Path, kind: type) -> None:
    weights = tiny_weights(tiny_config())
    weights["model.norm.weight"] = np.ones(64, kind)
    rewrite(folder, weights)
    named = {np.int8: "I8", np.uint8: "U8", np.bool_: "BOOL", np.int64: "I64"}[kind]
    refused(folder, "model.norm.weight", f"stored as {named}")


@pytest.mark.parametrize(("value", "what"), [(1e300, "beyond float32"), (np.nan, "NaN or inf"), (np.inf, "NaN or inf")])
def test_double_precision_that_is_no_float32(folder: Path, value: float, what: str) -> None:
    weights = {name: value.astype(np.float64) for name, value in tiny_weights(tiny_config()).items()}
    weights["model.norm.weight"][7] = value
    rewrite(folder, weights)
    with pytest.raises(SourceError, match=f"'model.norm.weight' holds (values )?{what}"):
        open_model(str(folder)).weights.read("model.norm.weight")


def test_more_tokens_than_the_embedding_has_rows(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m", vocab_size=310)
    (folder / "tokenizer.json").write_bytes((tiny_checkpoint(tmp_path / "n") / "tokenizer.json").read_bytes())
    refused(folder, "tokenizer.json", "310 rows")


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    refused(folder, folder, "no tokenizer")


def test_tokenizer_that_is_none(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 3}')
    refused(folder, "tokenizer.json", "is not a supported tokenizer")


def test_config_missing(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, folder, "no config.json")


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_config_that_is_not_json(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    refused(folder, folder / "config.json")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused_with_the_reason(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, name, "pickle", "run code")
    refused(folder / name, name, "pickle", "run code")


def test_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, folder, "no safetensors files")


def test_shards_without_an_index(folder: Path) -> None:
    shard(folder)
    (folder / INDEX).unlink()
    refused(folder, "3 safetensors files", INDEX)


def test_a_bundle_is_not_a_checkpoint(folder: Path) -> None:
    (folder / "edgekit.json").write_text("{}")
    refused(folder, folder, "edgekit bundle")


def test_an_adapter_is_not_a_checkpoint(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    refused(folder, folder, "adapter")


def test_one_file_of_a_folder(folder: Path) -> None:
    refused(folder / "model.safetensors", "one file of a checkpoint")
    (folder / "notes.txt").write_text("hello")
    refused(folder / "notes.txt", "is not a checkpoint")


def test_a_name_that_is_nothing(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere", "not found")
    with pytest.raises(SourceError) as caught:
        open_model("smolm2-135")
    assert "did you mean 'smollm2-135m'" in caught.value.hint


@pytest.mark.parametrize("kind", ["gguf", "safetensors", "config", "tokenizer"])
def test_damage_anywhere_is_an_error_that_the_user_sees(folder: Path, kind: str) -> None:
    """Bytes replaced at random: the file opens, or is refused; nothing else may come out."""
    if kind == "gguf":
        write_gguf(folder.parent / "m.gguf")
    model, file = {
        "gguf": (folder.parent / "m.gguf", folder.parent / "m.gguf"),
        "safetensors": (folder, folder / "model.safetensors"),
        "config": (folder, folder / "config.json"),
        "tokenizer": (folder, folder / "tokenizer.json"),
    }[kind]
    data = file.read_bytes()
    random = np.random.default_rng(0)
    refusals = 0
    for _ in range(150):
        damaged = bytearray(data)
        at = int(random.integers(0, min(len(data), 6000)))
        damaged[at : at + 2] = random.bytes(2)
        file.write_bytes(damaged)
        try:
            open_model(str(model))
        except SourceError as error:
            assert error.hint
            refusals += 1
    assert refusals > 10


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "yarn", "factor": "x"},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": "x"},
        {"rope_type": "yarn", "factor": 2.0, "beta_fast": [32]},
        {"rope_type": "linear", "factor": -1.0},
        {"rope_type": ["yarn"]},
        {"partial_rotary_factor": "half"},
        "yarn",
    ],
)
def test_rope_of_wrong_types(folder: Path, rope: object) -> None:
    edit(folder / "config.json", rope_scaling=rope)
    refused(folder, "config.json")
