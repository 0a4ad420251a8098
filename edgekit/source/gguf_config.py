"""Convert GGUF metadata to config.json (in the keys of transformers 4 and 5), and map llama.cpp's tensor names.

To add an architecture, add a row to MODELS and one to FAMILIES in architectures.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import SourceError
from edgekit.ranges import HEAD_SIZE
from edgekit.source.fields import shown
from edgekit.source.tensors import Extent, FileWeights
from edgekit.types.tensor_names import EMBEDDING, HEAD

if TYPE_CHECKING:
    from edgekit.source.gguf_file import GgufFile


@dataclass(frozen=True)
class GgufModel:
    """An architecture in llama.cpp: its class in transformers, and whether its q and k rows are interleaved.

    convert_hf_to_gguf.py interleaves them if llama.cpp's rope rotates neighbours (LlamaModel and its subclasses).
    """

    model_type: str
    class_name: str
    interleaved: bool = False


MODELS = {
    "llama": GgufModel("llama", "LlamaForCausalLM", interleaved=True),
    "qwen2": GgufModel("qwen2", "Qwen2ForCausalLM"),
    "qwen3": GgufModel("qwen3", "Qwen3ForCausalLM"),
    "smollm3": GgufModel("smollm3", "SmolLM3ForCausalLM", interleaved=True),
    "phi3": GgufModel("phi3", "Phi3ForCausalLM"),
}

# llama.cpp's tensor names in a layer -> Hugging Face's.
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER = {"token_embd": EMBEDDING, "output": HEAD, "output_norm": "model.norm.weight"}
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# Metadata for arithmetic that the graph does not implement.
_FOREIGN = ("attention.scale", "logit_scale", "residual_scale", "embedding_scale", "attn_logit_softcapping")


def find_model(gguf: GgufFile) -> GgufModel:
    """The row of MODELS for a file. Raises SourceError for an unknown architecture."""
    _refuse_other_kinds(gguf)
    model = MODELS.get(gguf.architecture)
    if model is None:
        raise SourceError(
            f"{gguf.path}: unsupported GGUF architecture {shown(gguf.architecture)}; supported: {', '.join(MODELS)}",
            "use the Hugging Face checkpoint with `exporter=optimum`",
        )
    return model


def _refuse_other_kinds(gguf: GgufFile) -> None:
    """Raise SourceError for a file that does not hold a causal language model."""
    kind = gguf.text("general.type") or "model"
    adapted = next((name for name in gguf.tensors if name.endswith((".lora_a", ".lora_b"))), "")
    if kind == "adapter" or adapted:
        raise SourceError(
            f"{gguf.path} is an unmerged adapter, not a model", "merge it with llama.cpp's llama-export-lora"
        )
    if kind != "model":
        raise SourceError(f"{gguf.path} holds {shown(kind)}, not a language model", "pass the file of the model itself")
    if any(name.startswith("cls.") for name in gguf.tensors):
        raise SourceError(
            f"{gguf.path} is a classifier or reward model, not a text generator: it has a classification head",
            "use the language model that it was trained from",
        )
    if gguf.metadata.get(f"{gguf.architecture}.attention.causal") is False:
        raise SourceError(
            f"{gguf.path}: '{gguf.architecture}.attention.causal' is false; bidirectional attention is not supported",
            "use a causal language model",
        )


def canonical_tensors(gguf: GgufFile, model: GgufModel, config: dict[str, Any]) -> dict[str, Extent]:
    """The tensors by canonical name. phi3's ``ffn_up`` holds gate and up, like ``gate_up_proj``."""
    found: dict[str, Extent] = {}
    for name, extent in gguf.tensors.items():
        if name in _ROPE_TENSORS:
            continue
        stem, _, kind = name.rpartition(".")
        if stem in _OUTER and kind == "weight":
            found[_OUTER[stem]] = extent
            continue
        parts = stem.split(".")
        if len(parts) != 3 or parts[0] != "blk" or parts[2] not in _LAYER:
            raise SourceError(
                f"{gguf.path}: unexpected tensor {shown(name)} for a {model.model_type} model",
                "this variant of the architecture is not supported; use the original model",
            )
        target = _LAYER[parts[2]]
        if model.model_type == "phi3" and target == "mlp.up_proj":
            target = "mlp.gate_up_proj"
        if model.interleaved and parts[2] in ("attn_q", "attn_k"):
            extent = replace(extent, interleaved=config["head_dim"])  # noqa: PLW2901
        found[f"model.layers.{parts[1]}.{target}.{kind}"] = extent
    return found


def make_config(gguf: GgufFile, model: GgufModel) -> dict[str, Any]:
    """Make config.json for a GGUF file. Raises SourceError for features that it cannot express."""
    for key in _FOREIGN:
        if gguf.number(key):
            raise SourceError(
                f"{gguf.path}: '{gguf.architecture}.{key}' is not supported", "use the original checkpoint"
            )
    if experts := gguf.number("expert_count"):
        raise SourceError(
            f"{gguf.path}: {experts} experts; mixture-of-experts models are not supported",
            "use a dense model of the same family",
        )
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise SourceError(f"{gguf.path} has no embedding 'token_embd.weight'", "download the file again")
    hidden, heads = gguf.count("embedding_length"), gguf.count("attention.head_count")
    head_dim = gguf.count("attention.key_length", hidden // heads)
    if gguf.count("attention.value_length", head_dim) != head_dim:
        raise SourceError(
            f"{gguf.path}: keys and values have different head sizes, which is not supported", "use another model"
        )
    context = gguf.count("context_length")
    token = {key: gguf.token(key) for key in ("bos", "eos", "padding")}
    config: dict[str, Any] = {
        "architectures": [model.class_name],
        "model_type": model.model_type,
        "hidden_size": hidden,
        "intermediate_size": gguf.count("feed_forward_length"),
        "num_hidden_layers": gguf.count("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.count("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": embedding.shape[0],
        "max_position_embeddings": context,
        "rms_norm_eps": gguf.number("attention.layer_norm_rms_epsilon") or 1e-5,
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in gguf.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in gguf.tensors,
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "bos_token_id": token["bos"],
        "eos_token_id": token["eos"],
        "pad_token_id": token["padding"],
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "float32",
    }
    window = gguf.number("attention.sliding_window")
    if model.model_type == "llama" and window:
        config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    if config["model_type"] in ("mistral", "phi3"):
        config["sliding_window"] = window or None
    return config | _rope(gguf, head_dim, context)


def _rope(gguf: GgufFile, head_dim: int, context: int) -> dict[str, Any]:
    """Rope entries of config.json, for transformers 4 and 5."""
    theta = _positive(gguf, "rope.freq_base") or 10000.0
    dim = gguf.count("rope.dimension_count", head_dim)
    original = _positive(gguf, "rope.scaling.original_context_length")
    linear = _positive(gguf, "rope.scale_linear")
    kind = gguf.text(f"{gguf.architecture}.rope.scaling.type") or ("linear" if linear else "none")
    factor = _positive(gguf, "rope.scaling.factor") or linear
    scaling: dict[str, Any] = {}
    if "rope_factors_long.weight" in gguf.tensors:
        long, short = (_read_factors(gguf, f"rope_factors_{k}.weight").tolist() for k in ("long", "short"))
        scaling = {"rope_type": "longrope", "long_factor": long, "short_factor": short}
    elif "rope_freqs.weight" in gguf.tensors:
        scaling = _derive_llama3(gguf, theta, dim)
    elif kind in ("linear", "yarn") and factor not in (None, 0.0, 1.0):
        scaling = {"rope_type": kind, "factor": factor}
        if kind == "yarn":
            scaling["original_max_position_embeddings"] = original or context  # llama.cpp's n_ctx_train
    elif kind not in ("none", "linear", "yarn"):
        raise SourceError(
            f"{gguf.path}: unknown rope scaling {shown(kind)}",
            "supported in GGUF files: none, linear, yarn, longrope; use the Hugging Face checkpoint",
        )
    entries: dict[str, Any] = {
        "rope_theta": theta,
        "rope_scaling": {"type": scaling["rope_type"], **scaling} if scaling else None,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default", **scaling},
    }
    if dim != head_dim:
        entries["partial_rotary_factor"] = entries["rope_parameters"]["partial_rotary_factor"] = dim / head_dim
    if scaling.get("rope_type") == "longrope":
        del entries["rope_scaling"]["rope_type"]  # transformers 4 requires exactly three entries for phi3
        entries["original_max_position_embeddings"] = original or context
        entries["rope_parameters"]["original_max_position_embeddings"] = original or context
    return entries


def _positive(gguf: GgufFile, key: str) -> float | None:
    """A positive number; None if it is absent or 0, which llama.cpp writes for unset values."""
    value = gguf.number(key)
    if value is not None and value < 0:
        raise SourceError(
            f"{gguf.path}: '{gguf.architecture}.{key}' is {value}, not a positive number", "download the file again"
        )
    return value or None


def _read_factors(gguf: GgufFile, name: str) -> Any:
    if name not in gguf.tensors:
        raise SourceError(f"{gguf.path} has no tensor '{name}'", "download the file again")
    extent = gguf.tensors[name]
    if len(extent.shape) != 1 or extent.shape[0] > HEAD_SIZE.most // 2:
        raise SourceError(
            f"{gguf.path}: '{name}' has shape {list(extent.shape)}, expected one factor per frequency",
            "download the file again",
        )
    values = FileWeights({name: extent}, ()).read(name)
    return np.array([float(str(value)) for value in values])


def _derive_llama3(gguf: GgufFile, theta: float, dim: int) -> dict[str, Any]:
    """Derive Llama 3's scaling from the per-frequency divisors that llama.cpp stores instead of its parameters.

    All published models have low_freq_factor 1, high_freq_factor 4 and 8192 original positions; the divisors
    computed from these must match.
    """
    divisors = _read_factors(gguf, "rope_freqs.weight")
    factor, original = float(divisors.max()), 8192
    if not (divisors > 0).all():
        raise SourceError(f"{gguf.path}: 'rope_freqs.weight' is not all positive", "download the file again")
    if (divisors == 1.0).all():
        return {}
    wavelengths = 2 * np.pi * theta ** (np.arange(0, dim, 2) / dim)
    smooth = np.clip((original / wavelengths - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    expected = 1.0 / ((1 - smooth) / factor + smooth)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-3):
        raise SourceError(
            f"{gguf.path}: 'rope_freqs.weight' does not match Llama 3's scaling with its published parameters",
            "use the Hugging Face checkpoint, whose config.json has the parameters",
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original,
    }
