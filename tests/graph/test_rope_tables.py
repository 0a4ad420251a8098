"""The tables against transformers' rotary embeddings, to the last position of real contexts."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from edgekit.graph.rope import attention_factor, switches, table, table_rows
from edgekit.types import Rope, RopeKind

CONTEXT = 131072
FACTORS = tuple(1.0 + 0.5 * i for i in range(64))
# The numbers of Llama 3.1, Qwen2.5 and Phi-3, and a yarn with every option.
REAL: dict[str, tuple[RopeKind, float, dict[str, Any]]] = {
    "default": ("default", 10000.0, {}),
    "linear": ("linear", 10000.0, {"factor": 8.0}),
    "llama3": (
        "llama3",
        500000.0,
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 8192},
    ),
    "yarn": ("yarn", 1000000.0, {"factor": 4.0, "original_context": 32768}),
    "yarn in full": (
        "yarn",
        10000.0,
        {
            "factor": 40.0,
            "original_context": 4096,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.8,
            "truncate": False,
        },
    ),
    "yarn with its factor": ("yarn", 10000.0, {"factor": 4.0, "original_context": 4096, "attention_factor": 1.3}),
    "longrope": (
        "longrope",
        10000.0,
        {"factor": 32.0, "original_context": 4096, "short_factor": FACTORS[:48], "long_factor": FACTORS[16:]},
    ),
}


def theirs(rope: Rope, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cos and sin [len(positions), dim / 2] of transformers."""
    keys = {
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
        "yarn": ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "attention_factor"),
        "longrope": ("factor", "short_factor", "long_factor"),
    }.get(rope.kind, ())
    parameters = {"rope_type": rope.kind, "rope_theta": rope.theta}
    parameters |= {key: list(v) if isinstance(v := getattr(rope, key), tuple) else v for key in keys}
    if rope.kind in ("llama3", "yarn", "longrope"):
        parameters["original_max_position_embeddings"] = rope.original_context
    config = LlamaConfig(
        hidden_size=rope.dim,
        num_attention_heads=1,
        head_dim=rope.dim,
        max_position_embeddings=CONTEXT,
        rope_parameters=parameters,
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.tensor(positions[None]))
    return tuple(wave[0, :, : rope.dim // 2].numpy() for wave in (cos, sin))


@pytest.mark.parametrize("name", REAL)
def test_tables_are_those_of_transformers(name: str) -> None:
    kind, theta, numbers = REAL[name]
    rope = Rope(theta=theta, dim=96 if kind == "longrope" else 128, kind=kind, **numbers)
    places = {"start": np.arange(64), "middle": np.arange(4000, 4096), "end": np.arange(CONTEXT - 64, CONTEXT)}
    waves = {place: theirs(rope, positions) for place, positions in places.items()}
    for sine in (False, True):
        found = table(rope, CONTEXT, sine=sine)
        assert found.shape == (table_rows(rope, CONTEXT), rope.dim // 2)
        for place, positions in places.items():
            long = switches(rope, CONTEXT) and positions.max() >= rope.original_context
            rows = positions + rope.original_context if long else positions
            # One rounding of a frequency of 1 / 2 turns position 131,071 by 2e-3: nearly all agree to the bit.
            assert np.abs(found[rows] - waves[place][sine]).max() < (5e-5 if place == "end" else 2e-6)


def test_longrope_within_its_original_context_has_one_table() -> None:
    rope = Rope(theta=10000.0, dim=8, kind="longrope", original_context=64, short_factor=(1, 1, 1, 1))
    assert table_rows(rope, 64) == 64
    assert table(rope, 64, sine=True).shape == (64, 4)


def test_attention_factor_is_one_without_scaling() -> None:
    for kind in ("yarn", "longrope", "llama3"):
        assert attention_factor(Rope(theta=10000.0, dim=8, kind=kind, factor=1.0, original_context=64)) == 1.0
