"""The table of architectures, and config.json -> ModelSpec.

To add an architecture, add a row to FAMILIES: its defaults (those of transformers, for keys missing from
config.json), where it has biases, which layers have a sliding window or no rope, and whether its projections
are stored fused.
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
"""Values of ``layer_types``; the last is an older name of the first."""


def _no_windows(config: Fields, layers: int) -> Windows:
    """Full attention in every layer (llama).

    If such a config has a window, transformers applies it while decoding but not to the prompt, so it is refused.
    """
    window = config.get("sliding_window")
    if window is not None and config.integer("sliding_window") < config.integer("max_position_embeddings"):
        raise SourceError(
            f"{config.where}: 'sliding_window' is {shown(window)}, but llama models have no sliding window",
            "set the right model_type if the model was trained with windows; otherwise remove the entry",
        )
    return (None,) * layers


def _one_window(config: Fields, layers: int) -> Windows:
    """The same window in every layer; null means none (phi3)."""
    return (_window(config),) * layers


def _listed_windows(config: Fields, layers: int) -> Windows:
    """Like _one_window, except for layers that ``layer_types`` lists otherwise (mistral, ministral)."""
    return _typed_windows(config, layers, _window(config), [True] * layers)


def _qwen_windows(config: Fields, layers: int) -> Windows:
    """A window in the layers from max_window_layers on, if use_sliding_window is set (qwen)."""
    first = config.integer("max_window_layers")
    return _typed_windows(config, layers, _switched_window(config), [i >= first for i in range(layers)])


def _nope_windows(config: Fields, layers: int) -> Windows:
    """A window in the layers without rope, if use_sliding_window is set (smollm3)."""
    slides = [not rotates for rotates in _some_rotate(config, layers)]
    return _typed_windows(config, layers, _switched_window(config), slides)


def _window(config: Fields) -> int | None:
    return None if config.explicit("sliding_window") is None else config.integer("sliding_window")


def _switched_window(config: Fields) -> int | None:
    return _window(config) if config.flag("use_sliding_window") else None


def _typed_windows(config: Fields, layers: int, window: int | None, default: list[bool]) -> Windows:
    """The window for layers that ``layer_types`` calls sliding, or without that entry for those in ``default``."""
    kinds = config.get("layer_types")
    if kinds is None:
        return tuple(window if slides else None for slides in default)
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise config.error("layer_types", kinds, f"a list of {layers} entries, one per layer")
    unknown = next((kind for kind in kinds if kind not in _LAYER_TYPES), None)
    if unknown is not None:
        raise SourceError(
            f"{config.where}: unknown layer type {shown(unknown)}", f"known types: {', '.join(_LAYER_TYPES)}"
        )
    if window is None and "sliding_attention" in kinds:
        raise SourceError(
            f"{config.where}: 'layer_types' has sliding layers, but 'sliding_window' or 'use_sliding_window' turns "
            "their window off",
            "correct the wrong entry; transformers cannot run such a model either",
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _all_rotate(config: Fields, layers: int) -> tuple[bool, ...]:  # noqa: ARG001
    return (True,) * layers


def _some_rotate(config: Fields, layers: int) -> tuple[bool, ...]:
    """Read ``no_rope_layers``: despite its name, 1 for layers with rope and 0 for those without (smollm3)."""
    flags = config.get("no_rope_layers")
    if flags is None:
        interval = config.integer("no_rope_layer_interval")
        return tuple((i + 1) % interval != 0 for i in range(layers))
    if not isinstance(flags, list) or len(flags) < layers or not all(flag in (0, 1) for flag in flags):
        raise config.error("no_rope_layers", flags, f"a list of {layers} entries of 0 or 1, one per layer")
    return tuple(bool(flag) for flag in flags[:layers])


@dataclass(frozen=True)
class Family:
    """The properties of an architecture. A bias is a constant or the name of the config entry that sets it."""

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

# Config entries for arithmetic that the graph does not implement, with their neutral values.
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
"""Parts of the names of encoder architectures."""

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size")


def _find_family(values: Mapping[str, Any], where: str) -> Family:
    """The family of a config. Raises SourceError for an unknown architecture or another kind of model."""
    model_type = values.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        _refuse_other_kinds(values, shown(str(model_type)), where)
        near = did_you_mean(shown(model_type), ARCHITECTURES)
        raise SourceError(
            f"{where}: the native builder does not support architecture {shown(str(model_type))}; supported: "
            f"{', '.join(ARCHITECTURES)}",
            f"{near}`exporter=optimum` builds any decoder that optimum-onnx can export",
        )
    return family


def _refuse_other_kinds(values: Mapping[str, Any], model_type: str, where: str) -> None:
    """Raise SourceError for anything but a text-only decoder."""
    if "text_config" in values or "vision_config" in values or "audio_config" in values:
        raise SourceError(
            f"{where}: {model_type} is a multimodal model, not a plain language model",
            "use a checkpoint of the language model alone",
        )
    if values.get("is_encoder_decoder") is True:
        raise SourceError(f"{where}: {model_type} is an encoder-decoder model", "use a decoder-only model")
    if any(name in model_type for name in _ENCODERS):
        raise SourceError(
            f"{where}: {model_type} is an encoder and generates no text",
            "use a causal language model, whose class ends in ForCausalLM",
        )


def parse_config(values: Mapping[str, Any], where: str, generation: Mapping[str, Any] | None = None) -> ModelSpec:
    """Parse config.json and generation_config.json to a ModelSpec with the end tokens of both.

    If neither names an end token, the family's defaults in transformers are used; the tokenizer's own is added later.

    Raises:
        SourceError: an unknown architecture, a feature the graph does not implement, or a missing or wrong entry.
    """
    family = _find_family(values, where)
    config = Fields(values, where, family.defaults)
    _refuse_foreign(config)
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    layers = config.integer("num_hidden_layers")
    kv_heads = config.integer("num_key_value_heads") if config.explicit("num_key_value_heads") is not None else heads
    if heads % kv_heads:
        raise SourceError(
            f"{where}: 'num_attention_heads' ({heads}) is not a multiple of 'num_key_value_heads' ({kv_heads})",
            "correct the wrong entry",
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
    """The end tokens of both files, or the family's if neither has any. A null in the config means none."""
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
    """The ids of an entry; ids that are only a default must be in the vocabulary."""
    ids = config.tokens(key)
    return ids if key in config.values else tuple(i for i in ids if i < vocabulary)


def _refuse_foreign(config: Fields) -> None:
    where = config.where
    for key, causal in (("is_causal", True), ("use_bidirectional_attention", False)):
        if config.flag(key, causal) != causal:
            raise SourceError(
                f"{where}: '{key}' is {shown(config.get(key))}; bidirectional attention is not supported",
                "use a causal language model",
            )
    quantization = config.get("quantization_config")
    # What bitsandbytes writes of a model that it was told to leave as it is.
    loads = [quantization.get(f"load_in_{bits}bit") for bits in (4, 8)] if isinstance(quantization, dict) else []
    if quantization and not (False in loads and True not in loads):
        method = quantization.get("quant_method", "bitsandbytes") if loads else quantization
        raise SourceError(
            f"{where}: the checkpoint is already quantized ('quantization_config', method {shown(method)})",
            "use the original F32, F16 or BF16 checkpoint; quantizing twice loses quality",
        )
    if config.get("hidden_act") not in ("silu", "swish"):
        raise SourceError(
            f"{where}: 'hidden_act' is {shown(config.get('hidden_act'))}; the native builder supports only silu",
            "try `exporter=optimum`",
        )
    for key in _EXPERTS:
        if isinstance(config.get(key), int) and config.get(key) > 0:
            raise SourceError(
                f"{where}: '{key}' is {shown(config.get(key))}; mixture-of-experts models are not supported",
                "use a dense model of the same family",
            )
    for key, neutral in _FOREIGN.items():
        if config.get(key) not in (None, neutral):
            raise SourceError(
                f"{where}: '{key}' is {shown(config.get(key))}, which the native builder does not support",
                "try `exporter=optimum`",
            )
