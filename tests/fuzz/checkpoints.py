"""A checkpoint's folder: its JSON files, the index of its shards, and what stands in a file's place."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from tests.fuzz.case import Case, Step, write
from tests.fuzz.values import damaged_text, json_steps, odd_files, read

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COMMANDS = (
    ("inspect", "model"),
    ("inspect", "model", "--tensors", "--json"),
    ("fit", "model", "--target", "cpu"),
    ("build", "model", "-o", "out/bundle", "--offline"),
)
_INDEX = "model/model.safetensors.index.json"
_FILES = ("config.json", "generation_config.json", "tokenizer_config.json")
_NUMBERS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "max_position_embeddings", "sliding_window", "max_window_layers", "rms_norm_eps"),
    *("rope_theta", "partial_rotary_factor", "bos_token_id", "eos_token_id", "pad_token_id", "no_rope_layer_interval"),
)
_VALUES = (-1, 0, 1, 2, 3, 63, 255, 256, 1024, 2**20, 2**31, 2**40, 2**63, 1e-300, 1e300, 0.5, "1", None, True, [], [1])
_ROPES = (
    {"rope_type": "yarn", "factor": 1e300},
    {"rope_type": "yarn", "factor": 4.0, "beta_fast": 1e-300},
    {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1e300] * 8},
    {"rope_type": "longrope", "short_factor": [1] * 100_000, "long_factor": [True] * 8},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
    {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
     "original_max_position_embeddings": 2**40},
    {"rope_type": "linear", "factor": 2**70},
    {"full_attention": {"rope_type": "default"}},
    {"rope_type": {"a": 1}},
)  # fmt: skip


def cases(seed: Callable[[str], Path]) -> st.SearchStrategy[Case]:
    """Every value of every JSON file of a folder, its index, links and pipes, by every command that opens it."""
    folder = seed("model")
    config = read(folder, "config.json")
    tensors = ("model.norm.weight", "model.embed_tokens.weight")

    def number(key: str, value: object, architecture: str) -> tuple:
        changed = {**config, "model_type": architecture, key: value}
        return f"{architecture} {key} {str(value)[:20]}", (write("model/config.json", json.dumps(changed)),), False

    def rope(value: object, key: str) -> tuple:
        return f"{key} {str(value)[:30]}", (write("model/config.json", json.dumps({**config, key: value})),), False

    def index(value: object) -> tuple:
        return f"index {str(value)[:40]}", (write(_INDEX, json.dumps(value)),), True

    maps = (
        {}, [], {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 1}},
        {"weight_map": dict.fromkeys(tensors, "model.safetensors")},
        {"weight_map": {f"t{n}": f"m{n}.safetensors" for n in range(100_000)}},
        *({"weight_map": {"a": name}} for name in ("../x", "/dev/zero", "a\0b", "x" * 300, "", ".", "config.json")),
    )  # fmt: skip
    links = [
        (f"{name} leads out", (write("victim.txt", (folder / name).read_text()),
                               Step("link", f"model/{name}", "../victim.txt")), True)
        for name in (*_FILES, "tokenizer.json")
    ]  # fmt: skip
    changes = [
        *(json_steps(f"model/{name}", read(folder, name), typed=False) for name in _FILES),
        *(damaged_text(f"model/{name}", (folder / name).read_text()) for name in _FILES),
        *(odd_files(f"model/{name}").map(lambda change: (*change[:2], False)) for name in (*_FILES, "tokenizer.json")),
        *(odd_files(f"model/{name}").map(lambda change: (*change[:2], False)) for name in
          ("model.safetensors", "special_tokens_map.json", "chat_template.jinja", "model.safetensors.index.json")),
        st.builds(number, st.sampled_from(_NUMBERS), st.sampled_from(_VALUES),
                  st.sampled_from(("llama", "mistral", "qwen2", "smollm3", "phi3"))),
        st.builds(rope, st.sampled_from(_ROPES), st.sampled_from(("rope_scaling", "rope_parameters"))),
        st.sampled_from(maps).map(index),
        st.sampled_from(links),
    ]  # fmt: skip

    def case(command: tuple[str, ...], change: tuple) -> Case:
        how, steps, refused = change
        looks = command[0] == "fit" and any("safetensors" in step.path for step in steps)
        impossible = refused and not looks and "generation" not in how
        return Case(f"checkpoint: {command[0]}: {how}", command, ("model",), steps, refused=impossible)

    return st.builds(case, st.sampled_from(COMMANDS), st.one_of(changes))
