"""Beyond every border that a config names, in the prompt and while decoding: logits are those of transformers.

Sliding windows, the kinds of layers, the context that a rope was trained for, and the last token of the whole context.
Configs are written as people write them, not as transformers saves them.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from pairs import TINY, Pair, distance, make_pair, spread
from transformers import AutoConfig, AutoModelForCausalLM

from edgekit.source import open_model

FULL, SLIDES = "full_attention", "sliding_attention"
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}

BORDERS: dict[str, dict[str, Any]] = {
    "mistral, one layer slides": {"model_type": "mistral", "sliding_window": 8, "layer_types": [FULL, SLIDES]},
    "mistral, no layer slides": {"model_type": "mistral", "sliding_window": 8, "layer_types": [FULL, FULL]},
    "mistral, types are null": {"model_type": "mistral", "sliding_window": 8, "layer_types": None},
    "mistral, no types": {"model_type": "mistral", "sliding_window": 8},
    "ministral": {"model_type": "ministral", "sliding_window": 8, "layer_types": [SLIDES, FULL]},
    "ministral without types": {"model_type": "ministral", "sliding_window": 8},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "layer_types": [SLIDES, FULL]},
    "qwen3": {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 8, "layer_types": [SLIDES, FULL]},
    "qwen3 by layers": {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "smollm3": {
        "model_type": "smollm3",
        "use_sliding_window": True,
        "sliding_window": 8,
        "layer_types": [SLIDES, FULL],
        "no_rope_layers": [1, 0],
    },
    "smollm3 by layers": {
        "model_type": "smollm3",
        "use_sliding_window": True,
        "sliding_window": 8,
        "no_rope_layer_interval": 2,
    },
    "phi3": {"model_type": "phi3", "sliding_window": 8, "layer_types": [FULL, FULL]},
    "phi3, head size of its own": {"model_type": "phi3", "head_dim": 16, "sliding_window": 8},
    "yarn longer than it says": {"model_type": "qwen2", "max_position_embeddings": 16, "rope_scaling": YARN},
    "yarn without its original": {
        "model_type": "llama",
        "max_position_embeddings": 16,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
    },
    "yarn without a factor": {
        "model_type": "llama",
        "max_position_embeddings": 64,
        "rope_scaling": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 16},
    },
    "linear longer than it says": {
        "model_type": "llama",
        "max_position_embeddings": 16,
        "rope_scaling": {"type": "linear", "factor": 4.0},
    },
    "llama3": {
        "model_type": "llama",
        "max_position_embeddings": 64,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "longrope": {
        "model_type": "phi3",
        "max_position_embeddings": 64,
        "original_max_position_embeddings": 16,
        "rope_scaling": {"type": "longrope", "short_factor": spread(1.0, 16), "long_factor": spread(2.0, 16)},
    },
}


def raw_pair(folder: Path, changes: dict[str, Any]) -> Pair:
    """Both read the config as it is written here, not as transformers saves it."""
    small = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 64, "head_dim": 16}
    config = {**TINY, **small, "rope_theta": 1000.0, **changes}
    make_pair(AutoConfig.for_model(**json.loads(json.dumps(config))), folder)
    (folder / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return Pair(model, open_model(str(folder)))


@pytest.mark.parametrize("name", BORDERS)
def test_beyond_every_border(name: str, tmp_path: Path) -> None:
    pair = raw_pair(tmp_path, BORDERS[name])
    assert pair.checkpoint.spec.context_length == 64
    ids = pair.ids(64)
    reference = pair.reference(ids)
    decoder = pair.decoder("cpu")
    assert distance(decoder.whole(ids), reference) < 1e-4
    for target in ("cpu", "portable"):
        decoder = pair.decoder(target)
        if name != "longrope":
            assert distance(decoder.stepwise(ids), reference) < 1e-4


def test_the_borders_are_felt(tmp_path: Path) -> None:
    """A layer that slides, and a scaled rope, change what is seen beyond them: the comparison above is not idle."""
    for name, other in (
        ("mistral, one layer slides", "mistral, no types"),
        ("mistral, one layer slides", "mistral, no layer slides"),
        ("yarn without its original", "linear longer than it says"),
    ):
        pairs = [raw_pair(tmp_path / n, BORDERS[n]) for n in (name, other)]
        first, second = (pair.decoder("cpu").whole(pair.ids(64)) for pair in pairs)
        assert distance(first[:, -1], second[:, -1]) > 0.01
