"""Tiny GGUF files, written as llama.cpp's converter writes them: its names, its order of q and k rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from edgekit.testing import CHAT_TEMPLATE, tiny_config, tiny_tokenizer, tiny_weights

INTERLEAVED = ("llama", "smollm3")
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a Hugging Face tensor."""
    stem, _, kind = name.rpartition(".")
    layer, rest = "", stem
    if stem.startswith("model.layers."):
        number, _, rest = stem.removeprefix("model.layers.").partition(".")
        layer = f"blk.{number}."
    return f"{layer}{NAMES[rest]}.{kind}"


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """convert_hf_to_gguf.py, LlamaModel.permute."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(
    path: Path,
    architecture: str = "llama",
    *,
    weights: dict[str, np.ndarray] | None = None,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    tokenizer: dict[str, Any] | None = None,
    **overrides: Any,
) -> dict[str, np.ndarray]:
    """Write a tiny GGUF file; return the weights in Hugging Face's names and order.

    Args:
        path: the file.
        architecture: llama.cpp's name.
        weights: Hugging Face's names and rows; random ones when absent.
        kind: encoding of matrices.
        metadata: more entries, the architecture's prefix added where the key begins with a dot; None removes.
        tensors: more tensors under llama.cpp's names.
        tokenizer: entries of ``tokenizer.ggml``, instead of the tiny byte-level one.
        overrides: entries of tiny_config to replace.
    """
    config = tiny_config(architecture, **overrides)
    weights = tiny_weights(config) if weights is None else weights
    writer = GGUFWriter(path, architecture)
    entries = {
        ".block_count": config["num_hidden_layers"],
        ".context_length": config["max_position_embeddings"],
        ".embedding_length": config["hidden_size"],
        ".feed_forward_length": config["intermediate_size"],
        ".attention.head_count": config["num_attention_heads"],
        ".attention.head_count_kv": config["num_key_value_heads"],
        ".attention.key_length": config["head_dim"],
        ".attention.value_length": config["head_dim"],
        ".attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        ".rope.dimension_count": config["head_dim"],
        ".rope.freq_base": float(config["rope_theta"]),
    }
    entries |= {f"tokenizer.ggml.{key}": value for key, value in (tokenizer or byte_level_entries()).items()}
    entries |= {"general.name": "tiny", "tokenizer.chat_template": CHAT_TEMPLATE} | (metadata or {})
    for key, value in entries.items():
        add(writer, architecture + key if key.startswith(".") else key, value)
    for name, value in weights.items():
        stored = value
        if architecture in INTERLEAVED and "q_proj" in name:
            stored = permute(value, config["num_attention_heads"])
        if architecture in INTERLEAVED and "k_proj" in name:
            stored = permute(value, config["num_key_value_heads"])
        if stored.ndim == 2 and kind != GGMLQuantizationType.F32:
            writer.add_tensor(gguf_name(name), quantize(stored, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(stored, np.float32))
    for name, value in (tensors or {}).items():
        writer.add_tensor(name, value.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def add(writer: GGUFWriter, key: str, value: Any) -> None:
    """Add an entry of the type its value has."""
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def byte_level_entries(pre: str | None = "gpt-2") -> dict[str, Any]:
    """``tokenizer.ggml`` entries of the tiny byte-level tokenizer."""
    content = json.loads(tiny_tokenizer())
    vocabulary = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    special = {entry["content"] for entry in content["added_tokens"]}
    merges = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": vocabulary,
        "token_type": [3 if token in special else 1 for token in vocabulary],
        "merges": merges,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "padding_token_id": 3,
        "unknown_token_id": 0,
        "add_bos_token": False,
    }


def sentencepiece_entries() -> dict[str, Any]:
    """``tokenizer.ggml`` entries of a made-up SentencePiece BPE tokenizer with bytes and a user-defined token."""
    words = ["▁t", "he", "▁the", "in", "▁a", "▁in", "er", "on", "▁th", "re", "▁▁", "an", "and", "▁and", "qu", "ick"]
    letters = sorted(set("▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,é世界"))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words, *letters, "<tool>"]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(words) + len(letters)), 4]
    scores = [0.0] * 259 + [-float(i) for i in range(len(words))] + [-1000.0 - i for i in range(len(letters))] + [0.0]
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "token_type": types,
        "scores": scores,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
