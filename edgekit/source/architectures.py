"""The architectures, as a table, and config.json -> ModelSpec.

Adding an architecture is adding a row to FAMILIES: its defaults (transformers' own, for keys that a
config.json leaves out), where its biases come from, which layers look through a window or do not rotate,
and whether its projections are stored fused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.errors import SourceError, did_you_mean
from edgekit.source.fields import Fields, shown
from edgekit.source.rope import parse_rope
from edgekit.types import ModelSpec, RopeKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Windows = tuple[int | None, ...]

_LAYER_TYPES = ("full_attention", "sliding_attention", "attention")
"""Of ``layer_types``; the last is an older name of the first."""


def _no_windows(config: Fields, layers: int) -> Windows:
    """Every layer sees everything (llama).

    transformers looks through a window that such a config names while it decodes, and not in the prompt.
    """
    window = config.get("sliding_window")
    if window is not None and config.integer("sliding_window") < config.integer("max_position_embeddings"):
        raise SourceError(
            f"{config.where}: 'sliding_window' is {shown(window)}, and llama has no windows",
            "if the model was trained with windows, name its own model_type; if the entry is a leftover, remove it",
        )
    return (None,) * layers


def _one_window(config: Fields, layers: int) -> Windows:
    """Every layer has the same window; null switches it off (phi3)."""
    return (_window(config),) * layers


def _listed_windows(config: Fields, layers: int) -> Windows:
    """As _one_window, but for the layers that ``layer_types`` names otherwise (mistral; transformers: ministral)."""
    return _typed_windows(config, layers, _window(config), [True] * layers)


def _qwen_windows(config: Fields, layers: int) -> Windows:
    """Layers from max_window_layers on have a window, if use_sliding_window."""
    first = config.integer("max_window_layers")
    return _typed_windows(config, layers, _switched_window(config), [i >= first for i in range(layers)])


def _nope_windows(config: Fields, layers: int) -> Windows:
    """Layers that do not rotate have a window, if use_sliding_window (smollm3)."""
    slides = [not rotates for rotates in _some_rotate(config, layers)]
    return _typed_windows(config, layers, _switched_window(config), slides)


def _window(config: Fields) -> int | None:
    return None if config.explicit("sliding_window") is None else config.integer("sliding_window")


def _switched_window(config: Fields) -> int | None:
    return _window(config) if config.flag("use_sliding_window") else None


def _typed_windows(config: Fields, layers: int, window: int | None, default: list[bool]) -> Windows:
    """The window of the layers that ``layer_types`` calls sliding; without it of those of ``default``."""
    kinds = config.get("layer_types")
    if kinds is None:
        return tuple(window if slides else None for slides in default)
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise config.error("layer_types", kinds, f"a list of {layers} entries, one a layer")
    unknown = next((kind for kind in kinds if kind not in _LAYER_TYPES), None)
    if unknown is not None:
        raise SourceError(
            f"{config.where}: unknown layer type {shown(unknown)}", f"known types: {', '.join(_LAYER_TYPES)}"
        )
    if window is None and "sliding_attention" in kinds:
        raise SourceError(
            f"{config.where}: 'layer_types' names sliding layers, and 'sliding_window' or 'use_sliding_window' has "
            "their window off",
            "correct the one that is wrong: transformers cannot compute such a model either",
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _all_rotate(config: Fields, layers: int) -> tuple[bool, ...]:  # noqa: ARG001
    return (True,) * layers


def _some_rotate(config: Fields, layers: int) -> tuple[bool, ...]:
    """``no_rope_layers`` holds 1 where a layer rotates, 0 where it does not (smollm3's own naming)."""
    flags = config.get("no_rope_layers")
    if flags is None:
        interval = config.integer("no_rope_layer_interval")
        return tuple((i + 1) % interval != 0 for i in range(layers))
    if not isinstance(flags, list) or len(flags) < layers or not all(flag in (0, 1) for flag in flags):
        raise config.error("no_rope_layers", flags, f"a list of {layers} entries of 0 or 1, one a layer")
    return tuple(bool(flag) for flag in flags[:layers])


@dataclass(frozen=True)
class Family:
    """What sets an architecture apart. A bias is a constant or the name of the config entry that decides."""

    model_type: str
    defaults: Mapping[str, Any]
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    fused: bool = False
    partial_rotary: bool = False
    windows: Callable[[Fields, int], Windows] = _no_windows
    rotary: Callable[[Fields, int], tuple[bool, ...]] = _all_rotate
    rope_aliases: Mapping[str, RopeKind] = field(default_factory=dict)


_COMMON: dict[str, Any] = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu"}
_MISTRAL: dict[str, Any] = {
    **_COMMON,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
    "max_position_embeddings": 131072,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            "llama",
            {**_COMMON, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
            qkv_bias="attention_bias",
            output_bias="attention_bias",
            mlp_bias="mlp_bias",
        ),
        Family("mistral", _MISTRAL, windows=_listed_windows),
        Family("ministral", _MISTRAL, windows=_listed_windows),
        Family(
            "qwen2",
            {**_COMMON, "max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28},
            qkv_bias=True,
            windows=_qwen_windows,
        ),
        Family(
            "qwen3",
            {
                **_COMMON,
                "head_dim": 128,
                "max_position_embeddings": 32768,
                "sliding_window": 4096,
                "max_window_layers": 28,
            },
            qkv_bias="attention_bias",
            output_bias="attention_bias",
            qk_norm=True,
            windows=_qwen_windows,
        ),
        Family(
            "smollm3",
            {
                **_COMMON,
                "rope_theta": 2000000.0,
                "num_key_value_heads": 4,
                "max_position_embeddings": 32768,
                "no_rope_layer_interval": 4,
                "tie_word_embeddings": True,
                "bos_token_id": 128000,
                "eos_token_id": 128001,
                "pad_token_id": 128004,
            },
            qkv_bias="attention_bias",
            output_bias="attention_bias",
            mlp_bias="mlp_bias",
            windows=_nope_windows,
            rotary=_some_rotate,
        ),
        Family(
            "phi3",
            {
                **_COMMON,
                "rms_norm_eps": 1e-5,
                "max_position_embeddings": 4096,
                "original_max_position_embeddings": 4096,
                "bos_token_id": 1,
                "eos_token_id": 32000,
                "pad_token_id": 32000,
            },
            fused=True,
            partial_rotary=True,
            windows=_one_window,
            rope_aliases={"su": "longrope", "yarn": "longrope"},
        ),
    )
}

ARCHITECTURES: tuple[str, ...] = tuple(FAMILIES)

# Entries that change the arithmetic of a decoder in ways the graph does not have, and their neutral value.
_FOREIGN: dict[str, object] = {
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": None,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
    "scale_emb": 1.0,
    "scale_depth": 1.0,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "query_pre_attn_scalar": None,
    "clip_qkv": None,
}
_ENCODERS = ("bert", "electra", "mpnet", "nomic", "clip", "xlm", "t5gemma_encoder")
"""In the names of architectures that read texts and write none."""

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size")


def _find_family(values: Mapping[str, Any], where: str) -> Family:
    """The family of a config. Raises SourceError that says what else it is, or lists the known ones."""
    model_type = values.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        _refuse_other_kinds(values, shown(str(model_type)), where)
        near = did_you_mean(shown(model_type), ARCHITECTURES)
        raise SourceError(
            f"{where}: architecture {shown(str(model_type))} is not one the native builder knows "
            f"({', '.join(ARCHITECTURES)})",
            f"{near}--exporter optimum builds any decoder that optimum-onnx can export",
        )
    return family


def _refuse_other_kinds(values: Mapping[str, Any], model_type: str, where: str) -> None:
    """Raise SourceError for what is no decoder of text alone."""
    if "text_config" in values or "vision_config" in values or "audio_config" in values:
        raise SourceError(
            f"{where}: {model_type} is a multimodal model, which holds a language model beside others",
            "use a checkpoint of the language model alone",
        )
    if values.get("is_encoder_decoder") is True:
        raise SourceError(f"{where}: {model_type} has an encoder and a decoder", "use a model with a decoder alone")
    if any(name in model_type for name in _ENCODERS):
        raise SourceError(
            f"{where}: {model_type} is an encoder: it makes vectors of texts and writes none",
            "use a language model, whose class ends in ForCausalLM",
        )


def parse_config(values: Mapping[str, Any], where: str, generation: Mapping[str, Any] | None = None) -> ModelSpec:
    """config.json and generation_config.json -> ModelSpec, whose end tokens are those of both.

    Where neither names one, they are those that transformers assumes for the family; the tokenizer's own come later.

    Raises:
        SourceError: for an unknown architecture, a feature the graph does not have, or a missing or wrong entry.
    """
    family = _find_family(values, where)
    config = Fields(values, where, family.defaults)
    _refuse_foreign(config)
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    layers = config.integer("num_hidden_layers")
    kv_heads = config.integer("num_key_value_heads") if config.explicit("num_key_value_heads") is not None else heads
    if heads % kv_heads:
        raise SourceError(
            f"{where}: {heads} attention heads cannot share {kv_heads} key/value heads",
            "num_attention_heads must be a multiple of num_key_value_heads",
        )
    head_dim = config.integer("head_dim") if config.get("head_dim") else hidden // heads
    rope, context = parse_rope(config, head_dim, partial=family.partial_rotary, aliases=family.rope_aliases)
    vocabulary = config.integer("vocab_size")
    stops = Fields(generation or {}, f"{where} (generation)")
    return ModelSpec(
        architecture=family.model_type,
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocabulary,
        context_length=context,
        norm_eps=config.number("rms_norm_eps"),
        rope=rope,
        tied=config.flag("tie_word_embeddings"),
        windows=family.windows(config, layers),
        rotary=family.rotary(config, layers),
        qkv_bias=_has(config, family.qkv_bias),
        output_bias=_has(config, family.output_bias),
        mlp_bias=_has(config, family.mlp_bias),
        qk_norm=family.qk_norm,
        bos_token_id=_token(config, "bos_token_id", stops, vocabulary),
        eos_token_ids=_end_tokens(config, stops, vocabulary),
        pad_token_id=_token(config, "pad_token_id", stops, vocabulary),
    )


def _has(config: Fields, bias: bool | str) -> bool:
    return config.flag(bias) if isinstance(bias, str) else bias


def _end_tokens(config: Fields, generation: Fields, vocabulary: int) -> tuple[int, ...]:
    """What either file names; the family's where neither says anything. A null in the config means none."""
    own = Fields(config.values, config.where).tokens("eos_token_id")
    said = tuple(dict.fromkeys((*generation.tokens("eos_token_id"), *own)))
    return said or (() if "eos_token_id" in config.values else _own_or_known(config, "eos_token_id", vocabulary))


def _token(config: Fields, key: str, generation: Fields, vocabulary: int) -> int | None:
    said = key in config.values and config.values[key] is not None
    ids = (config.tokens(key) if said else ()) or generation.tokens(key)
    if not ids and key not in config.values:
        ids = _own_or_known(config, key, vocabulary)
    return ids[0] if ids else None


def _own_or_known(config: Fields, key: str, vocabulary: int) -> tuple[int, ...]:
    """The ids of an entry; a default of the family only as far as the vocabulary has it."""
    ids = config.tokens(key)
    return ids if key in config.values else tuple(i for i in ids if i < vocabulary)


def _refuse_foreign(config: Fields) -> None:
    where = config.where
    for key, causal in (("is_causal", True), ("use_bidirectional_attention", False)):
        if config.flag(key, causal) != causal:
            raise SourceError(
                f"{where}: '{key}' is {shown(config.get(key))}: the model attends in both directions, as encoders do",
                "use a causal language model: an encoder writes no text",
            )
    quantization = config.get("quantization_config")
    # What bitsandbytes writes of a model that it was told to leave as it is.
    loads = [quantization.get(f"load_in_{bits}bit") for bits in (4, 8)] if isinstance(quantization, dict) else []
    if quantization and not (False in loads and True not in loads):
        method = quantization.get("quant_method", "bitsandbytes") if loads else quantization
        raise SourceError(
            f"{where}: the checkpoint is already quantized ('quantization_config', method {shown(method)})",
            "give the original F32, F16 or BF16 checkpoint; quantizing twice loses quality",
        )
    if config.get("hidden_act") not in ("silu", "swish"):
        raise SourceError(
            f"{where}: 'hidden_act' is {shown(config.get('hidden_act'))}, and the native builder has silu only",
            "try --exporter optimum",
        )
    for key in _EXPERTS:
        if isinstance(config.get(key), int) and config.get(key) > 0:
            raise SourceError(
                f"{where}: '{key}' is {shown(config.get(key))}: mixtures of experts are not supported",
                "use a dense model of the same family",
            )
    for key, neutral in _FOREIGN.items():
        if config.get(key) not in (None, neutral):
            raise SourceError(
                f"{where}: '{key}' is {shown(config.get(key))}, which the native builder does not compute",
                "try --exporter optimum",
            )
