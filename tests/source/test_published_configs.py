"""config.json of published models: the spec says what transformers' own configuration classes compute."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from published import LLAMA_31_8B, PHI3_MINI_128K, PUBLISHED, QWEN25_05B
from transformers import AutoConfig

from edgekit.errors import SourceError
from edgekit.source import ARCHITECTURES
from edgekit.source.architectures import parse_config

CONTEXTS = {"Qwen2.5 with yarn": 131072, "linear": 16384}
"""Where scaling reaches further than max_position_embeddings says."""


def auto_config(config: dict[str, Any]) -> Any:
    return AutoConfig.for_model(**copy.deepcopy(config))


@pytest.mark.parametrize("name", PUBLISHED)
def test_dimensions_agree_with_transformers(name: str) -> None:
    spec, auto = parse_config(PUBLISHED[name], "config.json"), auto_config(PUBLISHED[name])
    assert spec.hidden_size == auto.hidden_size
    assert spec.intermediate_size == auto.intermediate_size
    assert spec.layers == auto.num_hidden_layers
    assert spec.heads == auto.num_attention_heads
    assert spec.kv_heads == auto.num_key_value_heads
    assert spec.head_dim == (getattr(auto, "head_dim", None) or auto.hidden_size // auto.num_attention_heads)
    assert spec.vocab_size == auto.vocab_size
    assert spec.context_length == CONTEXTS.get(name, auto.max_position_embeddings)
    assert spec.norm_eps == auto.rms_norm_eps
    assert spec.tied == auto.tie_word_embeddings
    assert spec.bos_token_id == auto.bos_token_id
    assert list(spec.eos_token_ids) == (
        auto.eos_token_id if isinstance(auto.eos_token_id, list) else [auto.eos_token_id]
    )
    assert spec.pad_token_id == auto.pad_token_id


@pytest.mark.parametrize("name", PUBLISHED)
def test_windows_and_rotation_agree_with_transformers(name: str) -> None:
    spec, auto = parse_config(PUBLISHED[name], "config.json"), auto_config(PUBLISHED[name])
    window = getattr(auto, "sliding_window", None)
    kinds = getattr(auto, "layer_types", None)
    if kinds is None:
        expected = [window] * auto.num_hidden_layers
    else:
        expected = [window if kind == "sliding_attention" else None for kind in kinds]
    assert list(spec.windows) == expected
    rotates = getattr(auto, "no_rope_layers", [1] * auto.num_hidden_layers)
    assert list(spec.rotary) == [bool(flag) for flag in rotates]


@pytest.mark.parametrize("name", PUBLISHED)
def test_rope_agrees_with_transformers(name: str) -> None:
    spec, auto = parse_config(PUBLISHED[name], "config.json"), auto_config(PUBLISHED[name])
    rope, told = spec.rope, auto.rope_parameters
    assert rope.kind == told["rope_type"]
    assert rope.theta == told["rope_theta"]
    assert rope.dim == int(spec.head_dim * told.get("partial_rotary_factor", 1.0))
    original = told.get("original_max_position_embeddings", auto.max_position_embeddings)
    assert rope.original_context == original
    default = auto.max_position_embeddings / original if rope.kind == "longrope" else 1.0
    assert rope.factor == told.get("factor", default)
    for key in ("short_factor", "long_factor"):
        assert list(getattr(rope, key)) == told.get(key, [])
    for key in ("low_freq_factor", "high_freq_factor"):
        assert rope.kind != "llama3" or getattr(rope, key) == told[key]


def test_llama_31_in_numbers() -> None:
    spec = parse_config(LLAMA_31_8B, "config.json")
    assert (spec.rope.kind, spec.rope.factor, spec.rope.original_context) == ("llama3", 8.0, 8192)
    assert spec.eos_token_ids == (128001, 128008, 128009)
    assert spec.head_dim == 128


def test_both_dialects_say_the_same(tmp_path: Path) -> None:
    for config in PUBLISHED.values():
        auto_config(config).save_pretrained(tmp_path)
        newer = json.loads((tmp_path / "config.json").read_text())
        assert "rope_parameters" in newer
        assert "rope_scaling" not in newer
        assert parse_config(newer, "config.json") == parse_config(config, "config.json")


def test_biases_and_norms_by_architecture() -> None:
    def flags(name: str) -> tuple[bool, bool, bool, bool]:
        spec = parse_config(PUBLISHED[name], "config.json")
        return spec.qkv_bias, spec.output_bias, spec.mlp_bias, spec.qk_norm

    assert flags("Llama-3.1-8B") == (False, False, False, False)
    assert flags("Qwen2.5-0.5B") == (True, False, False, False)
    assert flags("Qwen3-0.6B") == (False, False, False, True)
    spec = parse_config({**LLAMA_31_8B, "attention_bias": True, "mlp_bias": True}, "config.json")
    assert (spec.qkv_bias, spec.output_bias, spec.mlp_bias) == (True, True, True)


def test_generation_config_decides_where_to_stop() -> None:
    spec = parse_config(QWEN25_05B, "config.json", {"eos_token_id": [151645, 151643], "pad_token_id": 151643})
    assert spec.eos_token_ids == (151645, 151643)
    assert spec.pad_token_id == 151643


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"model_type": "gemma2"}, "architecture 'gemma2'"),
        ({"model_type": None}, "architecture 'None'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' (NTK) is not supported"),
        ({"rope_scaling": {"rope_type": "mrope", "factor": 2.0}}, "unknown rope type 'mrope'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'low_freq_factor' is missing"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'factor' is missing"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}, "rope_scaling": None}, "differ by layer type"),
        ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu'"),
        ({"num_local_experts": 8}, "'num_local_experts' is 8"),
        ({"residual_multiplier": 0.22}, "'residual_multiplier' is 0.22"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantized ('quantization_config', method 'gptq')"),
        ({"hidden_size": "big"}, "'hidden_size' is \"big\""),
        ({"num_hidden_layers": 0}, "'num_hidden_layers' is 0"),
        ({"intermediate_size": None}, "'intermediate_size' is missing"),
        ({"num_key_value_heads": 5}, "'num_attention_heads' (32) is not a multiple of 'num_key_value_heads' (5)"),
        ({"partial_rotary_factor": 0.5}, "'partial_rotary_factor' is 0.5"),
        ({"head_dim": 33}, "an even number up to 33, not 33"),
        ({"tie_word_embeddings": "yes"}, "'tie_word_embeddings' is \"yes\""),
    ],
)
def test_refusals_name_the_culprit(change: dict[str, Any], culprit: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse_config({**LLAMA_31_8B, **change}, "config.json")
    assert culprit in caught.value.message
    assert "config.json" in caught.value.message
    assert caught.value.hint


def test_an_unknown_architecture_is_shown_the_known_ones_and_the_way_through() -> None:
    with pytest.raises(SourceError) as caught:
        parse_config({**LLAMA_31_8B, "model_type": "llamma"}, "config.json")
    assert all(name in caught.value.message for name in ARCHITECTURES)
    assert "did you mean 'llama'" in caught.value.hint
    assert "`exporter=optimum`" in caught.value.hint


@pytest.mark.parametrize("name", ["su", "yarn"])
def test_older_names_of_longrope_in_phi3(name: str) -> None:
    older = {**PHI3_MINI_128K, "rope_scaling": {**PHI3_MINI_128K["rope_scaling"], "type": name}}
    assert parse_config(older, "config.json") == parse_config(PHI3_MINI_128K, "config.json")


def test_longrope_needs_a_factor_for_every_frequency() -> None:
    scaling = {**PHI3_MINI_128K["rope_scaling"], "long_factor": [1.0] * 47}
    with pytest.raises(SourceError, match="'long_factor' has 47 entries"):
        parse_config({**PHI3_MINI_128K, "rope_scaling": scaling}, "config.json")


@pytest.mark.parametrize(
    ("positions", "scaling", "context"),
    [
        (32768, None, 32768),
        (32768, {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        (131072, {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        (131072, {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32768}, 65536),
        (4096, {"rope_type": "yarn", "factor": 2.5}, 10240),
        (163840, {"rope_type": "yarn", "original_max_position_embeddings": 4096}, 163840),
        (4096, {"type": "linear", "factor": 4.0}, 16384),
        (131072, {**LLAMA_31_8B["rope_scaling"]}, 131072),
        (8192, {**LLAMA_31_8B["rope_scaling"]}, 8192),
    ],
)
def test_contexts_are_those_that_vllm_derives(positions: int, scaling: dict[str, Any] | None, context: int) -> None:
    """By the rule of vLLM's _get_and_verify_max_len: linear and yarn are stretched, llama3 and longrope state it."""
    change = {"max_position_embeddings": positions, "rope_scaling": scaling}
    assert parse_config({**LLAMA_31_8B, **change}, "config.json").context_length == context


def test_longrope_states_its_context() -> None:
    scaling = {**PHI3_MINI_128K["rope_scaling"], "factor": 32.0}
    spec = parse_config({**PHI3_MINI_128K, "rope_scaling": scaling}, "config.json")
    assert spec.context_length == PHI3_MINI_128K["max_position_embeddings"]


@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_a_factor_that_gives_no_context(factor: float) -> None:
    scaling = {"rope_type": "linear", "factor": factor}
    with pytest.raises(SourceError, match="factor"):
        parse_config({**LLAMA_31_8B, "rope_scaling": scaling}, "config.json")


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "ministral", "sliding_window": None},
        {"model_type": "qwen2", "sliding_window": 8},
        {"model_type": "qwen3", "sliding_window": 8, "use_sliding_window": False},
        {"model_type": "smollm3", "sliding_window": 8},
    ],
)
def test_sliding_layers_without_a_window(change: dict[str, Any]) -> None:
    kinds = ["full_attention"] * 31 + ["sliding_attention"]
    with pytest.raises(SourceError, match="sliding layers"):
        parse_config({**LLAMA_31_8B, **change, "layer_types": kinds}, "config.json")
    spec = parse_config({**LLAMA_31_8B, **change, "layer_types": ["attention"] * 32}, "config.json")
    assert spec.windows == (None,) * 32


def test_a_window_that_llama_does_not_have() -> None:
    with pytest.raises(SourceError, match="'sliding_window' is 4096, but llama models have no"):
        parse_config({**LLAMA_31_8B, "sliding_window": 4096}, "config.json")
    for leftover in (None, LLAMA_31_8B["max_position_embeddings"]):
        assert parse_config({**LLAMA_31_8B, "sliding_window": leftover}, "config.json").windows == (None,) * 32


def test_qwen_layer_types_must_be_known_and_complete() -> None:
    slides = {**QWEN25_05B, "use_sliding_window": True}
    with pytest.raises(SourceError, match="a list of 24 entries"):
        parse_config({**slides, "layer_types": ["full_attention"]}, "config.json")
    with pytest.raises(SourceError, match="unknown layer type 'chunked_attention'"):
        parse_config({**slides, "layer_types": ["chunked_attention"] * 24}, "config.json")
