"""GGUF files: every type, llama.cpp's order of rows, its metadata, its ropes, and what is refused."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from ggufs import byte_level_entries, permute, write_gguf

from edgekit.errors import SourceError
from edgekit.source import open_model
from edgekit.source.tensors import Extent, FileWeights
from edgekit.testing import tiny_config, tiny_weights
from edgekit.types import Checkpoint


def opened(tmp_path: Path, architecture: str = "llama", **options: Any) -> tuple[Checkpoint, dict[str, np.ndarray]]:
    weights = write_gguf(tmp_path / "m.gguf", architecture, **options)
    return open_model(str(tmp_path / "m.gguf")), weights


def refused(tmp_path: Path, culprit: str, **options: Any) -> None:
    write_gguf(tmp_path / "m.gguf", **options)
    with pytest.raises(SourceError) as caught:
        open_model(str(tmp_path / "m.gguf"))
    assert culprit in caught.value.message
    assert "m.gguf" in caught.value.message
    assert caught.value.hint


def with_biases(architecture: str) -> dict[str, np.ndarray]:
    weights = tiny_weights(tiny_config(architecture))
    random = np.random.default_rng(1)
    for i in range(2):
        for name, rows in (("q", 64), ("k", 32), ("v", 32)):
            weights[f"model.layers.{i}.self_attn.{name}_proj.bias"] = random.standard_normal(rows).astype(np.float32)
    return weights


def fused() -> dict[str, np.ndarray]:
    weights = tiny_weights(tiny_config("phi3"))
    for i in range(2):
        layer = f"model.layers.{i}."
        for fused_name, parts in (
            ("self_attn.qkv_proj", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            ("mlp.gate_up_proj", ["mlp.gate_proj", "mlp.up_proj"]),
        ):
            rows = [weights.pop(f"{layer}{part}.weight") for part in parts]
            weights[f"{layer}{fused_name}.weight"] = np.concatenate(rows)
    return weights


def encodings() -> list[GGMLQuantizationType]:
    """Every block type that the gguf package can dequantize."""
    found = []
    for kind in GGMLQuantizationType:
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            continue
        found.append(kind)
    return found


@pytest.mark.parametrize("kind", encodings(), ids=lambda kind: kind.name)
def test_reads_every_type_by_rows(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    block, size = GGML_QUANT_SIZES[kind]
    rows, columns = 70, 512
    raw = np.random.default_rng(0).integers(0, 60, (rows, columns // block * size)).astype(np.uint8)
    (tmp_path / "x").write_bytes(b"header" + raw.tobytes())
    weights = FileWeights({"x": Extent(tmp_path / "x", 6, raw.nbytes, (rows, columns), kind.name)}, ())
    with np.errstate(all="ignore"):
        expected = dequantize(raw, kind)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(weights.read("x"), expected)
    np.testing.assert_array_equal(weights.read("x", 5, 69), expected[5:69])
    assert weights.nbytes("x") == raw.nbytes


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0, GGMLQuantizationType.BF16])
def test_quantized_file_gives_what_was_written(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    checkpoint, written = opened(tmp_path, "qwen2", weights=with_biases("qwen2"), kind=kind)
    name = "model.layers.1.mlp.down_proj.weight"
    np.testing.assert_array_equal(checkpoint.weights.read(name), dequantize(quantize(written[name], kind), kind))
    assert checkpoint.weights.stored(name) == kind.name
    assert checkpoint.weights.stored("model.norm.weight") == "F32"


@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (3, 1)])
def test_rows_of_q_and_k_come_back_in_order(tmp_path: Path, heads: tuple[int, int]) -> None:
    checkpoint, written = opened(tmp_path, num_attention_heads=heads[0], num_key_value_heads=heads[1])
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not np.array_equal(permute(written[name], heads[0]), written[name])
    for tensor in checkpoint.weights.names():
        np.testing.assert_array_equal(checkpoint.weights.read(tensor), written[tensor])
    for start, stop in ((0, 1), (3, 30), (15, 17), (16, 32), (40, None)):
        np.testing.assert_array_equal(checkpoint.weights.read(name, start, stop), written[name][start:stop])


def test_smollm3_is_interleaved_and_leaves_out_rotations(tmp_path: Path) -> None:
    checkpoint, written = opened(tmp_path, "smollm3", num_hidden_layers=4)
    for tensor in checkpoint.weights.names():
        np.testing.assert_array_equal(checkpoint.weights.read(tensor), written[tensor])
    assert checkpoint.spec.rotary == (True, True, True, False)


def test_qwen2_has_biases_in_plain_order(tmp_path: Path) -> None:
    checkpoint, written = opened(tmp_path, "qwen2", weights=with_biases("qwen2"))
    assert checkpoint.spec.qkv_bias
    assert set(checkpoint.weights.names()) == set(written)
    for tensor in written:
        np.testing.assert_array_equal(checkpoint.weights.read(tensor), written[tensor])


def test_interleaved_biases_come_back_in_order(tmp_path: Path) -> None:
    weights = with_biases("llama")
    weights |= {f"model.layers.{i}.self_attn.o_proj.bias": np.ones(64, np.float32) for i in range(2)}
    checkpoint, written = opened(tmp_path, weights=weights)
    name = "model.layers.1.self_attn.q_proj.bias"
    np.testing.assert_array_equal(checkpoint.weights.read(name), written[name])
    np.testing.assert_array_equal(checkpoint.weights.read(name, 3, 20), written[name][3:20])


def test_qwen3_has_norms_of_heads(tmp_path: Path) -> None:
    weights = tiny_weights(tiny_config("qwen3"))
    for i in range(2):
        for name in "qk":
            weights[f"model.layers.{i}.self_attn.{name}_norm.weight"] = np.linspace(0.5, 1.5, 16, dtype=np.float32)
    checkpoint, written = opened(tmp_path, "qwen3", weights=weights)
    assert checkpoint.spec.qk_norm
    assert set(checkpoint.weights.names()) == set(written)


def test_phi3_shows_its_fused_tensors_in_parts(tmp_path: Path) -> None:
    long, short = np.linspace(1, 4, 6), np.linspace(1, 2, 6)
    checkpoint, written = opened(
        tmp_path,
        "phi3",
        weights=fused(),
        tensors={"rope_factors_long.weight": long, "rope_factors_short.weight": short},
        metadata={".rope.dimension_count": 12, ".rope.scaling.original_context_length": 128},
    )
    read = checkpoint.weights.read
    parts = [read(f"model.layers.0.self_attn.{p}_proj.weight") for p in "qkv"]
    np.testing.assert_array_equal(np.concatenate(parts), written["model.layers.0.self_attn.qkv_proj.weight"])
    parts = [read(f"model.layers.1.mlp.{p}_proj.weight") for p in ("gate", "up")]
    np.testing.assert_array_equal(np.concatenate(parts), written["model.layers.1.mlp.gate_up_proj.weight"])
    rope = checkpoint.spec.rope
    assert (rope.kind, rope.dim, rope.original_context, rope.factor) == ("longrope", 12, 128, 4.0)
    np.testing.assert_allclose(rope.long_factor, long, rtol=1e-6)
    np.testing.assert_allclose(rope.short_factor, short, rtol=1e-6)


def test_head_is_tied_when_the_file_has_none(tmp_path: Path) -> None:
    assert opened(tmp_path)[0].spec.tied
    checkpoint, written = opened(tmp_path, tie_word_embeddings=False)
    assert not checkpoint.spec.tied
    np.testing.assert_array_equal(checkpoint.weights.read("lm_head.weight"), written["lm_head.weight"])


def test_spec_says_what_the_metadata_says(tmp_path: Path) -> None:
    spec = opened(tmp_path, metadata={"tokenizer.ggml.eot_token_id": 3}, rope_theta=50000.0)[0].spec
    assert (spec.hidden_size, spec.layers, spec.heads, spec.kv_heads, spec.head_dim) == (64, 2, 4, 2, 16)
    assert (spec.vocab_size, spec.context_length, spec.norm_eps, spec.rope.theta) == (384, 512, 1e-5, 50000.0)
    assert (spec.bos_token_id, spec.eos_token_ids, spec.pad_token_id) == (1, (2, 3), 3)


def test_a_window_makes_a_llama_a_mistral(tmp_path: Path) -> None:
    spec = opened(tmp_path, metadata={".attention.sliding_window": 128})[0].spec
    assert (spec.architecture, spec.windows) == ("mistral", (128, 128))


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaled_ropes(tmp_path: Path, kind: str) -> None:
    rope = opened(
        tmp_path,
        "qwen2",
        weights=with_biases("qwen2"),
        metadata={
            ".rope.scaling.type": kind,
            ".rope.scaling.factor": 4.0,
            ".rope.scaling.original_context_length": 128,
        },
    )[0].spec.rope
    assert (rope.kind, rope.factor) == (kind, 4.0)
    assert kind == "linear" or rope.original_context == 128


def llama3_divisors(factor: float, dim: int = 64, theta: float = 500000.0, low: float = 1.0) -> np.ndarray:
    """convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors."""
    found = []
    for frequency in 1.0 / theta ** (np.arange(0, dim, 2) / dim):
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4.0:
            found.append(1.0)
        elif wavelength > 8192 / low:
            found.append(factor)
        else:
            smooth = (8192 / wavelength - low) / (4.0 - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found)


def test_llama3_scaling_is_derived_from_its_divisors(tmp_path: Path) -> None:
    options = {"head_dim": 64, "rope_theta": 500000.0, "max_position_embeddings": 131072}
    for factor in (8.0, 32.0):
        rope = opened(tmp_path, tensors={"rope_freqs.weight": llama3_divisors(factor)}, **options)[0].spec.rope
        assert (rope.kind, rope.factor, rope.low_freq_factor, rope.high_freq_factor) == ("llama3", factor, 1.0, 4.0)
        assert rope.original_context == 8192
    other = llama3_divisors(8.0, low=2.0)
    refused(tmp_path, "rope_freqs.weight", tensors={"rope_freqs.weight": other}, **options)
    assert opened(tmp_path, tensors={"rope_freqs.weight": np.ones(32)}, **options)[0].spec.rope.kind == "default"


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3", "smollm3"])
def test_config_is_understood_by_transformers(tmp_path: Path, architecture: str) -> None:
    from transformers import AutoConfig

    from edgekit.source.architectures import parse_config

    options: dict[str, Any] = {"weights": with_biases("qwen2")} if architecture == "qwen2" else {}
    if architecture == "phi3":
        factors = {f"rope_factors_{k}.weight": np.linspace(1, 2, 8) for k in ("long", "short")}
        extra = {".rope.scaling.original_context_length": 128}
        options = {"weights": fused(), "tensors": factors, "metadata": extra}
    checkpoint, _ = opened(tmp_path, architecture, **options)
    config = checkpoint.file("config.json") or b""
    (tmp_path / "config.json").write_bytes(config)
    auto = AutoConfig.from_pretrained(tmp_path)
    assert auto.rope_parameters["rope_type"] == checkpoint.spec.rope.kind
    assert auto.rope_parameters["rope_theta"] == checkpoint.spec.rope.theta
    assert auto.num_key_value_heads == checkpoint.spec.kv_heads
    assert auto.tie_word_embeddings == checkpoint.spec.tied
    assert parse_config(json.loads(config), "config.json") == checkpoint.spec


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_weights_are_those_that_transformers_reads_from_the_file(tmp_path: Path, architecture: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    options = {"weights": with_biases("qwen2")} if architecture == "qwen2" else {}
    checkpoint, _ = opened(tmp_path, architecture, kind=GGMLQuantizationType.Q8_0, **options)
    (tmp_path / "config.json").write_bytes(checkpoint.file("config.json") or b"")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    theirs = load_gguf_checkpoint(tmp_path / "m.gguf", return_tensors=True, model_to_load=model)["tensors"]
    assert set(theirs) == set(checkpoint.weights.names())
    for name, tensor in theirs.items():
        np.testing.assert_allclose(checkpoint.weights.read(name), tensor.numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("culprit", "options"),
    [
        ("architecture 'gemma3'", {"architecture": "gemma3"}),
        ("unknown rope scaling 'dynamic'", {"metadata": {".rope.scaling.type": "dynamic"}}),
        ("8 experts", {"metadata": {".expert_count": 8}}),
        ("'llama.feed_forward_length' is [128, 96]", {"metadata": {".feed_forward_length": [128, 96]}}),
        ("'llama.block_count' is missing", {"metadata": {".block_count": None}}),
        ("keys and values have different head sizes", {"metadata": {".attention.value_length": 8}}),
        ("one of 3 parts", {"metadata": {"split.count": 3}}),
        ("unexpected tensor 'blk.0.ffn_gate_inp.weight'", {"tensors": {"blk.0.ffn_gate_inp.weight": np.ones((8, 64))}}),
        ("'model.embed_tokens.weight' has shape [384, 64]", {"metadata": {".embedding_length": 32}}),
        ("no tensor 'model.layers.2.", {"metadata": {".block_count": 3}}),
        ("'llama.residual_scale'", {"metadata": {".residual_scale": 0.5}}),
        ("no tokenizer", {"tokenizer": {"model": "none"}}),
        ("tokenizer 'bert'", {"tokenizer": {**byte_level_entries(), "model": "bert"}}),
        ("'tokenizer.ggml.eos_token_id' is 9999", {"tokenizer": {**byte_level_entries(), "eos_token_id": 9999}}),
        ("damaged tokenizer", {"tokenizer": {**byte_level_entries(), "merges": ["nothing-to-merge"]}}),
        ("(the pre-tokenizer) is 'jais', which is unknown", {"tokenizer": byte_level_entries("jais")}),
        ("(the pre-tokenizer) is 'default', which is unknown", {"tokenizer": byte_level_entries("default")}),
        ("(the pre-tokenizer) is missing", {"tokenizer": byte_level_entries(None)}),
        ("323 tokens, but the embedding has only 300 rows", {"vocab_size": 300}),
    ],
)
def test_refusals_name_the_culprit(tmp_path: Path, culprit: str, options: dict[str, Any]) -> None:
    refused(tmp_path, culprit, **options)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    weights = tiny_weights(tiny_config())
    weights["model.layers.0.self_attn.q_proj.weight"][7, 7] = np.nan
    checkpoint, _ = opened(tmp_path, weights=weights)
    with pytest.raises(SourceError, match=r"m\.gguf: tensor 'model.layers.0.self_attn.q_proj.weight' holds NaN"):
        checkpoint.weights.read("model.layers.0.self_attn.q_proj.weight")


def test_types_that_cannot_be_dequantized(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    entry = b"token_embd.weight" + struct.pack("<IQQ", 2, 64, 384)
    at = data.index(entry) + len(entry)
    for number, name in ((24, "I8"), (999, "number 999")):
        (tmp_path / "m.gguf").write_bytes(data[:at] + struct.pack("<I", number) + data[at + 4 :])
        with pytest.raises(SourceError, match=f"'token_embd.weight' has GGUF type {name}"):
            open_model(str(tmp_path / "m.gguf"))


@pytest.mark.parametrize("cut", [5, 20, 100, 2000, 8000, -10])
def test_truncated_files(tmp_path: Path, cut: int) -> None:
    write_gguf(tmp_path / "m.gguf")
    size = (tmp_path / "m.gguf").stat().st_size
    os.truncate(tmp_path / "m.gguf", cut if cut > 0 else size + cut)
    with pytest.raises(SourceError, match="truncated"):
        open_model(str(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    ("head", "culprit"),
    [
        (b"GGML" + bytes(40), "not a GGUF file"),
        (b"GGUF" + struct.pack("<I", 9) + bytes(40), "version 9"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(40), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<I", 77), "damaged"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, head: bytes, culprit: str) -> None:
    (tmp_path / "m.gguf").write_bytes(head)
    with pytest.raises(SourceError, match=culprit):
        open_model(str(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    ("culprit", "options"),
    [
        ("an unmerged adapter", {"metadata": {"general.type": "adapter"}}),
        ("an unmerged adapter", {"tensors": {"blk.0.attn_q.weight.lora_a": np.ones((2, 64))}}),
        ("holds 'mmproj', not a language model", {"metadata": {"general.type": "mmproj"}}),
        ("classifier or reward model", {"tensors": {"cls.output.weight": np.ones((2, 64))}}),
        ("attention.causal' is false", {"metadata": {".attention.causal": False}}),
        ("is one of 3 parts", {"metadata": {"split.count": 3}}),
    ],
)
def test_what_is_no_language_model_is_told(tmp_path: Path, culprit: str, options: dict[str, Any]) -> None:
    refused(tmp_path, culprit, **options)


def test_a_pointer_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(SourceError, match="Git LFS pointer"):
        open_model(str(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    ("kind", "original", "trained", "context"),
    [("yarn", 128, 128, 512), ("yarn", None, 512, 2048), ("linear", None, 512, 2048)],
)
def test_contexts_reach_as_far_as_their_scaling(
    tmp_path: Path, kind: str, original: int | None, trained: int, context: int
) -> None:
    """llama.cpp: without its original context yarn starts from the file's context_length."""
    scaling = {".rope.scaling.type": kind, ".rope.scaling.factor": 4.0}
    scaling |= {".rope.scaling.original_context_length": original} if original else {}
    write_gguf(tmp_path / "m.gguf", metadata=scaling)
    spec = open_model(str(tmp_path / "m.gguf")).spec
    assert (spec.rope.original_context, spec.context_length) == (trained, context)


def test_a_block_beyond_those_that_the_file_counts_is_left_aside(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", metadata={".block_count": 1})
    assert open_model(str(tmp_path / "m.gguf")).spec.layers == 1


def ends(tmp_path: Path, *texts: str, types: dict[str, int] | None = None, **keys: int) -> list[str]:
    """The texts of the tokens that end an answer of a file with more tokens."""
    entries = byte_level_entries()
    for text in texts:
        entries["tokens"].append(text)
        entries["token_type"].append((types or {}).get(text, 3))
    entries |= {f"{key}_token_id": entries["tokens"].index(texts[i]) for key, i in keys.items()}
    write_gguf(tmp_path / "m.gguf", tokenizer=entries, vocab_size=len(entries["tokens"]))
    checkpoint = open_model(str(tmp_path / "m.gguf"))
    ids = checkpoint.spec.eos_token_ids
    generation = json.loads(checkpoint.file("generation_config.json") or b"")["eos_token_id"]
    assert ids == tuple(generation if isinstance(generation, list) else [generation])
    assert ids[0] == 2, "what the file names comes first"
    return [entries["tokens"][i] for i in ids[1:]]


@pytest.mark.parametrize(
    ("texts", "keys", "found"),
    [
        (["<|eot_id|>", "<|eom_id|>", "<|start_header_id|>"], {}, ["<|eot_id|>", "<|eom_id|>"]),
        (["<start_of_turn>", "<end_of_turn>"], {}, ["<end_of_turn>"]),
        (["<|end|>", "<|endoftext|>"], {}, ["<|end|>", "<|endoftext|>"]),
        (["<｜end▁of▁sentence｜>", "_<EOT>", "[EOT]"], {}, ["<｜end▁of▁sentence｜>", "_<EOT>", "[EOT]"]),
        (["<|return|>", "<|call|>", "<|end|>"], {}, ["<|return|>", "<|call|>"]),
        (["<|calls|>", "<|flush|>", "<|end|>"], {}, ["<|calls|>", "<|flush|>"]),
        (["<|tool_response>", "</s>"], {}, ["<|tool_response>"]),
        (["zzz"], {"eot": 0}, ["zzz"]),
        (["zzz", "yyy"], {"eom": 1, "fim_pad": 0}, ["yyy", "zzz"]),
        (["<|repo_name|>", "<|file_sep|>", "<|fim_prefix|>"], {}, ["<|repo_name|>", "<|file_sep|>"]),
        (["<|bye|>"], {}, []),
    ],
)
def test_an_answer_ends_where_llama_cpp_ends_it(
    tmp_path: Path, texts: list[str], keys: dict[str, int], found: list[str]
) -> None:
    assert ends(tmp_path, *texts, **keys) == found


def test_a_known_end_is_one_whatever_its_type(tmp_path: Path) -> None:
    """llama.cpp: "control-looking token was not control-type; its type will be overridden"."""
    assert ends(tmp_path, "<|eot_id|>", "<end_of_turn>", types={"<|eot_id|>": 1, "<end_of_turn>": 4}) == [
        "<|eot_id|>",
        "<end_of_turn>",
    ]
    added = json.loads(open_model(str(tmp_path / "m.gguf")).file("tokenizer.json") or b"")["added_tokens"]
    assert {entry["content"]: entry["special"] for entry in added[-2:]} == {"<|eot_id|>": True, "<end_of_turn>": True}
