"""Which files and tensors make the model: as transformers has it, or a refusal that says what the folder is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from test_folder import INDEX, edit, rewrite, shard
from transformers import AutoModelForCausalLM

from edgekit.errors import SourceError
from edgekit.source import layout, open_model
from edgekit.testing import tiny_checkpoint, tiny_config, tiny_weights

Weights = dict[str, np.ndarray]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
INV_FREQ = "model.layers.0.self_attn.rotary_emb.inv_freq"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An untied model."""
    return tiny_checkpoint(tmp_path / "m", tie_word_embeddings=False)


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "m")


def stored(folder: Path) -> Weights:
    return dict(load_file(folder / "model.safetensors"))


def agrees(folder: Path) -> None:
    """What is opened is, tensor by tensor, what transformers loads."""
    checkpoint = open_model(str(folder))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = {name: value.numpy() for name, value in model.state_dict().items()}
    if checkpoint.spec.tied:
        np.testing.assert_array_equal(expected.pop(HEAD), expected[EMBEDDING])
    assert set(checkpoint.weights.names()) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(checkpoint.weights.read(name), value)


def refused(folder: Path, *culprits: str, hint: str = "") -> SourceError:
    with pytest.raises(SourceError) as caught:
        open_model(str(folder))
    for culprit in culprits:
        assert culprit in caught.value.message
    assert caught.value.hint
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


# --- files ------------------------------------------------------------------------------------


def test_an_index_may_list_buffers_that_are_stored_or_not(folder: Path) -> None:
    rewrite(folder, stored(folder) | {INV_FREQ: np.ones(8, np.float32)})
    where = shard(folder, 2)
    agrees(folder)
    where["model.layers.1.self_attn.rotary_emb.inv_freq"] = "model-00001-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    agrees(folder)


def test_shards_are_read_whole_wherever_the_index_places_a_tensor(folder: Path) -> None:
    where = shard(folder, 2)
    files = sorted(set(where.values()))
    del where["model.norm.weight"]
    where[HEAD] = files[where[HEAD] == files[0]]
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    agrees(folder)


def test_an_index_may_name_the_single_file(folder: Path) -> None:
    where = dict.fromkeys(stored(folder), "model.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    agrees(folder)


def test_an_index_whose_shards_are_gone_does_not_count(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {HEAD: "model-00001-of-00002.safetensors"}}))
    agrees(folder)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.fp16.safetensors", "consolidated.safetensors", "tf_model.h5"]
)
def test_what_transformers_would_not_read_beside_the_model_is_let_be(folder: Path, name: str) -> None:
    save_file({"model.norm.weight": np.zeros(64, np.float32)}, folder / name)
    agrees(folder)


def test_a_file_that_the_config_names(folder: Path) -> None:
    rewrite(folder, {name: 2 * value for name, value in stored(folder).items()})
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    tiny_weights_again = tiny_weights(tiny_config(tie_word_embeddings=False))
    rewrite(folder, tiny_weights_again)
    edit(folder / "config.json", transformers_weights="other.safetensors")
    agrees(folder)
    assert open_model(str(folder)).weights.read("model.norm.weight").mean() > 1.5
    for wrong in ("../m/other.safetensors", "absent.safetensors", "pytorch_model.bin", 3):
        edit(folder / "config.json", transformers_weights=wrong)
        (folder / "pytorch_model.bin").write_bytes(b"")
        refused(folder, "config.json", json.dumps(wrong).strip('"'))


def test_a_model_in_one_file_and_another_in_shards(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "kept")
    shard(folder, 2)
    (folder / "kept").rename(folder / "model.safetensors")
    refused(folder, "two models", "model.safetensors", "model-00001-of-00002.safetensors", hint="one model is left")
    (folder / INDEX).unlink()
    refused(folder, "two models", "model-00001-of-00002.safetensors")


def test_shards_of_two_splits(folder: Path) -> None:
    shard(folder, 3)
    save_file({"model.norm.weight": np.zeros(64, np.float32)}, folder / "model-00001-of-00002.safetensors")
    refused(folder, INDEX, "does not list", "model-00001-of-00002.safetensors")


def test_a_lone_file_of_any_name_unless_it_is_a_shard(folder: Path) -> None:
    for name in ("weights.safetensors", "model.fp16.safetensors", "model-00001-of-00001.safetensors"):
        next(folder.glob("*.safetensors")).rename(folder / name)
        assert open_model(str(folder)).weights.names()
    next(folder.glob("*.safetensors")).rename(folder / "model-00001-of-00003.safetensors")
    refused(folder, "one of 3 shards", INDEX)


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth"])
def test_a_pickle_beside_a_lone_file_of_another_name(folder: Path, pickle: str) -> None:
    (folder / "model.safetensors").rename(folder / "extra.safetensors")
    (folder / pickle).write_text("{}")
    refused(folder, pickle, "extra.safetensors", "pickle")
    (folder / pickle).rename(folder / "training_args.bin")
    assert open_model(str(folder)).weights.names()


def test_several_files_without_an_index(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "model.fp16.safetensors")
    (folder / "model.safetensors").rename(folder / "model.fp32.safetensors")
    refused(folder, "2 safetensors files", "model.fp16.safetensors", "model.fp32.safetensors", hint="keep only one")


@pytest.mark.parametrize(
    ("name", "culprit"),
    [
        ("pytorch_model.bin.index.json", "pickle"),
        ("model.ckpt", "pickle"),
        ("m.gguf", "m.gguf"),
        ("tf_model.h5", "TensorFlow"),
        ("flax_model.msgpack", "Flax"),
        ("training_args.bin", "no safetensors files"),
        ("adapter_model.bin", "adapter"),
        ("adapter_model.safetensors", "adapter"),
    ],
)
def test_folders_without_weights_that_are_read(folder: Path, name: str, culprit: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, culprit)


@pytest.mark.parametrize(
    ("content", "culprit", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS", "git lfs pull"),
        (b"PK\x03\x04archive/data.pkl" + bytes(90), "pickle", "sandbox"),
        (b"GGUF\x03\x00\x00\x00" + bytes(90), "GGUF", ".gguf"),
        (b"<!DOCTYPE html><html><head><title>Sign in", "web page", "again"),
    ],
)
def test_another_file_under_the_name_of_the_weights(folder: Path, content: bytes, culprit: str, hint: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "model.safetensors", culprit, hint=hint)


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "smollm3", "phi3"])
def test_names_without_the_base_models_prefix(tmp_path: Path, architecture: str) -> None:
    from test_folder import made_by_transformers

    folder = tmp_path / "m"
    made_by_transformers(folder, architecture, tie_word_embeddings=True, num_key_value_heads=2)
    opened = open_model(str(folder)).weights
    whole = {name: opened.read(name) for name in opened.names()}
    rewrite(folder, {name.removeprefix("model."): value for name, value in stored(folder).items()})
    edit(folder / "config.json", architectures=["LlamaModel"])
    bare = open_model(str(folder)).weights
    assert bare.names() == tuple(whole)
    assert AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)[1]["missing_keys"] in ([], set())
    for name, value in whole.items():
        np.testing.assert_array_equal(bare.read(name), value)


def test_some_names_with_the_prefix_and_some_without(folder: Path) -> None:
    weights = stored(folder)
    weights["norm.weight"] = weights.pop("model.norm.weight")
    weights["model.lm_head.weight"] = weights.pop(HEAD)
    rewrite(folder, weights)
    agrees(folder)


def test_a_tensor_under_both_names(folder: Path) -> None:
    rewrite(folder, stored(folder) | {"norm.weight": np.zeros(64, np.float32)})
    refused(folder, "'model.norm.weight' twice")


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "module.",
        "base_model.model.",
        "language_model.",
        "model.language_model.",
        "llm.",
        "_fsdp_wrapped_module.",
    ],
)
@pytest.mark.parametrize("bare", [False, True])
def test_the_prefix_of_a_wrapper_is_named(tied: Path, prefix: str, bare: bool) -> None:
    rewrite(tied, {prefix + name.removeprefix("model." * bare): value for name, value in stored(tied).items()})
    refused(tied, f"prefix '{prefix.removesuffix('model.') if bare and prefix.startswith('base') else prefix}'")


def test_a_second_model_under_a_prefix(folder: Path) -> None:
    weights = stored(folder)
    rewrite(folder, weights | {f"ref.{name}": value for name, value in weights.items()})
    refused(folder, "two models", "'ref.'")


# --- ties -------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral"])
def test_only_the_head_is_stored(tmp_path: Path, architecture: str) -> None:
    from test_folder import made_by_transformers

    folder = tmp_path / "m"
    made_by_transformers(folder, architecture, tie_word_embeddings=True)
    weights = stored(folder)
    weights[HEAD] = weights.pop(EMBEDDING)
    rewrite(folder, weights)
    agrees(folder)
    assert open_model(str(folder)).spec.tied
    edit(folder / "config.json", tie_word_embeddings=False)
    refused(folder, EMBEDDING)


@pytest.mark.parametrize("row", [0, 17, 383])
def test_one_value_unties(tied: Path, row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_COMPARED", 64 * 50)
    weights = stored(tied)
    weights[HEAD] = weights[EMBEDDING].copy()
    rewrite(tied, weights)
    agrees(tied)
    assert open_model(str(tied)).spec.tied
    weights[HEAD][row, 5] += 1
    rewrite(tied, weights)
    agrees(tied)
    assert not open_model(str(tied)).spec.tied


def test_an_untied_model_without_a_head_is_never_told_to_tie(folder: Path) -> None:
    weights = stored(folder)
    del weights[HEAD]
    rewrite(folder, weights)
    error = refused(folder, "no output head", HEAD)
    assert "tie_word_embeddings" not in error.hint


# --- tensors beside the model -----------------------------------------------------------------

BESIDE: dict[str, Callable[[], Weights]] = {
    "value head": lambda: {
        "v_head.summary.weight": np.ones((1, 64), np.float32),
        "v_head.summary.bias": np.zeros(1, np.float32),
    },
    "score beside a head": lambda: {"score.weight": np.ones((1, 64), np.float32)},
    "position ids": lambda: {"model.position_ids": np.arange(8, dtype=np.int64)},
    "scalar": lambda: {"model.temperature": np.array(1.0, np.float32)},
    "double scalar": lambda: {"model.layers.0.self_attn.k_scale": np.array(1.0, np.float64)},
    "empty": lambda: {"model.layers.0.nothing": np.zeros((0, 64), np.float32)},
    "counter": lambda: {"model.steps": np.array([3], np.int32)},
    "mask": lambda: {"model.causal_mask": np.ones((4, 4), np.bool_)},
    "buffer of the whole model": lambda: {"model.rotary_emb.inv_freq": np.ones(8, np.float32)},
    "tables": lambda: {"model.layers.1.self_attn.rotary_emb.cos_cached": np.ones((1, 1, 9, 16), np.float16)},
    "another layer": lambda: {
        name.replace("layers.0.", "layers.2."): value
        for name, value in tiny_weights(tiny_config()).items()
        if "layers.0." in name
    },
    "prediction of more tokens": lambda: {"mtp.layers.0.mlp.up_proj.weight": np.ones((4, 64), np.float32)},
}


@pytest.mark.parametrize("what", BESIDE)
def test_what_training_leaves_is_left_aside(folder: Path, what: str) -> None:
    whole = open_model(str(folder)).weights
    names, norm = whole.names(), whole.read("model.norm.weight")
    rewrite(folder, stored(folder) | BESIDE[what]())
    agrees(folder)
    assert open_model(str(folder)).weights.names() == names
    np.testing.assert_array_equal(open_model(str(folder)).weights.read("model.norm.weight"), norm)


def test_fewer_layers_than_are_stored(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=1)
    agrees(folder)


LAYER = "model.layers.0.self_attn.q_proj."
KINDS: dict[str, tuple[Weights, str]] = {
    "lora": ({LAYER + "lora_A.default.weight": np.ones((4, 64), np.float32)}, "unmerged"),
    "lora of an embedding": ({"model.embed_tokens.lora_embedding_A": np.ones((4, 384), np.float32)}, "unmerged"),
    "dora": ({LAYER + "lora_magnitude_vector.weight": np.ones(64, np.float32)}, "unmerged"),
    "wrapped layer": ({LAYER + "base_layer.weight": np.ones((64, 64), np.float32)}, "unmerged"),
    "gptq": ({LAYER + "qweight": np.ones((8, 64), np.int32)}, "already quantized"),
    "awq": ({LAYER + "scales": np.ones((1, 64), np.float16)}, "already quantized"),
    "fp8 with scales": ({LAYER + "weight_scale": np.array(1.0, np.float32)}, "already quantized"),
    "bitsandbytes": ({LAYER + "weight.absmax": np.ones(64, np.float32)}, "already quantized"),
    "vision": ({"vision_tower.patch.weight": np.ones((4, 64), np.float32)}, "multimodal"),
    "qwen vision": ({"visual.merger.mlp.0.weight": np.ones((4, 64), np.float32)}, "multimodal"),
    "projector": ({"model.multi_modal_projector.linear_1.weight": np.ones((4, 64), np.float32)}, "multimodal"),
    "a bias of the head": ({"lm_head.bias": np.ones(384, np.float32)}, "unexpected tensor"),
    "learned positions": ({"model.embed_positions.weight": np.ones((9, 64), np.float32)}, "unexpected tensor"),
    "a norm of queries": ({"model.layers.0.self_attn.q_norm.weight": np.ones(16, np.float32)}, "unexpected tensor"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_would_change_the_model_is_refused_for_what_it_is(folder: Path, kind: str) -> None:
    tensors, culprit = KINDS[kind]
    rewrite(folder, stored(folder) | tensors)
    refused(folder, culprit, next(iter(tensors)))


def test_eight_bit_floats_are_already_quantized(folder: Path) -> None:
    from safetensors.torch import save_file

    weights = {name: torch.from_numpy(value) for name, value in stored(folder).items()}
    weights[LAYER + "weight"] = weights[LAYER + "weight"].to(torch.float8_e4m3fn)
    save_file(weights, folder / "model.safetensors")
    refused(folder, "already quantized", LAYER + "weight", "F8_E4M3")


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize(
    ("saved", "head"),
    [
        ("LlamaForSequenceClassification", "score.weight"),
        ("LlamaForTokenClassification", "classifier.weight"),
        ("LlamaForQuestionAnswering", "qa_outputs.weight"),
        ("LlamaForCausalLM", "score.weight"),
        ("Qwen2ForProcessRewardModel", "score.0.weight"),
        ("LlamaForSequenceClassification", ""),
    ],
)
def test_classifiers_are_refused(folder: Path, saved: str, head: str, tie: bool) -> None:
    weights = stored(folder)
    del weights[HEAD]
    rewrite(folder, weights | ({head: np.ones((2, 64), np.float32)} if head else {}))
    edit(folder / "config.json", architectures=[saved], tie_word_embeddings=tie)
    error = refused(folder, "classifier", head or saved)
    assert "tie_word_embeddings" not in error.hint


def test_the_original_releases_names(folder: Path) -> None:
    save_file({"tok_embeddings.weight": np.ones((384, 64), np.float32)}, folder / "consolidated.safetensors")
    (folder / "model.safetensors").unlink()
    refused(folder, "original release", hint="transformers format")


@pytest.mark.parametrize("whole", [True, False])
def test_an_adapters_folder_that_has_a_config(folder: Path, whole: bool) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/base"}')
    if not whole:
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    refused(folder, "adapter", "unmerged", hint="move the adapter's files away" if whole else "merge")


def test_more_layers_than_are_stored(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=4)
    refused(folder, "it holds 2 layers", "has 4")


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "multimodal": ({"model_type": "llava", "text_config": {}, "vision_config": {}}, "multimodal"),
    "translation": ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
    "encoder": ({"model_type": "bert"}, "encoder"),
    "both ways": ({"is_causal": False}, "bidirectional attention"),
    "both ways by another name": ({"use_bidirectional_attention": True}, "bidirectional attention"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_configs_of_what_writes_no_text(folder: Path, kind: str) -> None:
    changes, culprit = CONFIGS[kind]
    edit(folder / "config.json", **changes)
    refused(folder, culprit, "config.json")


def test_a_trainers_folder_of_checkpoints(folder: Path) -> None:
    (folder / "checkpoint-500").mkdir()
    (folder / "config.json").rename(folder / "checkpoint-500" / "config.json")
    refused(folder, "no config.json", hint="checkpoint-500")
