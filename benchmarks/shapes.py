"""Make Llama-shaped checkpoints of random weights, of any size, as BF16 safetensors in shards.

    python benchmarks/shapes.py OUT --shape 8B

Weights are normally distributed with the standard deviation of trained models (0.02), norms are ones. A weight is a
BF16 quantile of the normal distribution picked by 16 random bits, so memory stays at one piece of 64 MB, whatever the
size.
"""

import argparse
import json
import struct
from math import prod
from pathlib import Path
from statistics import NormalDist

import numpy as np

from edgekit.testing import CHAT_TEMPLATE, tiny_tokenizer

SHAPES = {
    "tiny": {"hidden": 64, "inner": 160, "layers": 3, "heads": 4, "kv_heads": 2, "vocab": 384, "shards": 4},
    "135M": {"hidden": 576, "inner": 1536, "layers": 30, "heads": 9, "kv_heads": 3, "vocab": 49152, "shards": 1},
    "1B": {"hidden": 2048, "inner": 8192, "layers": 16, "heads": 32, "kv_heads": 8, "vocab": 128256, "shards": 2},
    "8B": {"hidden": 4096, "inner": 14336, "layers": 32, "heads": 32, "kv_heads": 8, "vocab": 128256, "shards": 4},
}
"""SmolLM2-135M, Llama-3.2-1B and Llama-3.1-8B; the first two tie the head to the token table."""

DEVIATION = 0.02
PIECE = 1 << 25


def config_of(shape: str, layers: int | None = None) -> dict[str, object]:
    """config.json of a shape, with fewer layers if that is wanted."""
    s = SHAPES[shape]
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": s["hidden"],
        "intermediate_size": s["inner"],
        "num_hidden_layers": layers or s["layers"],
        "num_attention_heads": s["heads"],
        "num_key_value_heads": s["kv_heads"],
        "head_dim": s["hidden"] // s["heads"],
        "vocab_size": s["vocab"],
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": shape != "8B",
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def tensors_of(shape: str, layers: int | None = None) -> dict[str, tuple[int, ...]]:
    """Names and shapes, in the order of Hugging Face's shards."""
    s = SHAPES[shape]
    hidden, inner, kv = s["hidden"], s["inner"], s["hidden"] // s["heads"] * s["kv_heads"]
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (s["vocab"], hidden)}
    for i in range(layers or s["layers"]):
        layer = f"model.layers.{i}."
        tensors |= {
            layer + "input_layernorm.weight": (hidden,),
            layer + "mlp.down_proj.weight": (hidden, inner),
            layer + "mlp.gate_proj.weight": (inner, hidden),
            layer + "mlp.up_proj.weight": (inner, hidden),
            layer + "post_attention_layernorm.weight": (hidden,),
            layer + "self_attn.k_proj.weight": (kv, hidden),
            layer + "self_attn.o_proj.weight": (hidden, hidden),
            layer + "self_attn.q_proj.weight": (hidden, hidden),
            layer + "self_attn.v_proj.weight": (kv, hidden),
        }
    tensors["model.norm.weight"] = (hidden,)
    if shape == "8B":
        tensors["lm_head.weight"] = (s["vocab"], hidden)
    return tensors


def make_checkpoint(folder: Path, shape: str, seed: int = 0, layers: int | None = None) -> Path:
    """Write the checkpoint, unless it exists."""
    if (folder / "generation_config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    tensors = tensors_of(shape, layers)
    total = 2 * sum(map(prod, tensors.values()))
    shards = _shards(tensors, total // SHAPES[shape]["shards"])
    random = np.random.default_rng(seed)
    quantiles = _quantiles()
    where = {}
    for i, names in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        where |= dict.fromkeys(names, file)
        _write_shard(folder / file, {name: tensors[name] for name in names}, random, quantiles)
    tokens = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "tokenizer.json").write_text(tiny_tokenizer(384))
    for name, content in {
        "model.safetensors.index.json": {"metadata": {"total_size": total}, "weight_map": where},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **tokens,
            "chat_template": CHAT_TEMPLATE,
        },
        "config.json": config_of(shape, layers),
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3},
    }.items():
        (folder / name).write_text(json.dumps(content, indent=2))
    return folder


def _shards(tensors: dict[str, tuple[int, ...]], limit: int) -> list[list[str]]:
    """Split tensors, in order, into shards of ``limit`` bytes."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in tensors.items():
        if shards[-1] and size >= limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += 2 * prod(shape)
    return shards


def _quantiles() -> np.ndarray:
    """BF16 bits of 65536 equally likely weights."""
    normal = NormalDist(0, DEVIATION)
    values = np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)], np.float32)
    return ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)


def _write_shard(
    path: Path, tensors: dict[str, tuple[int, ...]], random: np.random.Generator, quantiles: np.ndarray
) -> None:
    header, at = {}, 0
    for name, shape in tensors.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (at, at + 2 * prod(shape))}
        at += 2 * prod(shape)
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in tensors.values():
            count = prod(shape)
            if len(shape) == 1:
                file.write(np.full(count, 0x3F80, np.uint16))
                continue
            for start in range(0, count, PIECE):
                bits = np.frombuffer(random.bytes(2 * min(PIECE, count - start)), np.uint16)
                file.write(quantiles[bits])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="8B")
    options = parser.parse_args()
    print(make_checkpoint(options.out, options.shape))


if __name__ == "__main__":
    main()
