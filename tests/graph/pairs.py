"""Tiny random models of transformers, saved as checkpoints and built in both dialects."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from edgekit.config.recipe import load_target
from edgekit.graph import build_graph
from edgekit.lower import lower
from edgekit.run.runtime import onnxruntime
from edgekit.source import open_model
from edgekit.testing import tiny_tokenizer
from edgekit.types import Checkpoint, ModelSpec

torch.set_num_threads(1)  # threads cost tiny models more than they give


TINY = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 384,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}


def rope(kind: str, **numbers: Any) -> dict[str, Any]:
    original = {} if kind == "linear" else {"original_max_position_embeddings": 24}
    return {"rope_type": kind, "rope_theta": 1000.0, **original, **numbers}


def spread(start: float, dim: int) -> list[float]:
    return [start + 0.3 * i for i in range(dim // 2)]


CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**TINY),
    "llama odd heads, one kv head, tied": lambda: LlamaConfig(
        **{**TINY, "num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True}
    ),
    "llama explicit head_dim, biases": lambda: LlamaConfig(
        **{**TINY, "num_attention_heads": 3, "num_key_value_heads": 3}, head_dim=40, attention_bias=True, mlp_bias=True
    ),
    "llama linear": lambda: LlamaConfig(**TINY, head_dim=16, rope_parameters=rope("linear", factor=4.0)),
    "llama llama3": lambda: LlamaConfig(
        **TINY,
        head_dim=32,
        rope_parameters=rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0),
    ),
    "llama yarn": lambda: LlamaConfig(**TINY, head_dim=32, rope_parameters=rope("yarn", factor=5.0)),
    "llama yarn in full": lambda: LlamaConfig(
        **TINY,
        head_dim=16,
        rope_parameters=rope(
            "yarn", factor=5.0, beta_fast=8.0, beta_slow=0.5, mscale=1.4, mscale_all_dim=0.7, truncate=False
        ),
    ),
    "llama longrope": lambda: LlamaConfig(
        **TINY,
        head_dim=16,
        rope_parameters=rope("longrope", factor=4.0, short_factor=spread(1.0, 16), long_factor=spread(2.0, 16)),
    ),
    "mistral": lambda: MistralConfig(**TINY, sliding_window=None),
    "mistral window": lambda: MistralConfig(**TINY, head_dim=16, sliding_window=7),
    "qwen2": lambda: Qwen2Config(**TINY),
    "qwen2 windows above": lambda: Qwen2Config(
        **{**TINY, "num_hidden_layers": 3}, use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**TINY, head_dim=16),
    "qwen3 heads of 24": lambda: Qwen3Config(**TINY, head_dim=24),
    "smollm3": lambda: SmolLM3Config(**{**TINY, "hidden_size": 96, "num_hidden_layers": 4}, no_rope_layer_interval=2),
    "smollm3 heads of 8": lambda: SmolLM3Config(**{**TINY, "num_hidden_layers": 4}, no_rope_layer_interval=2),
    "phi3": lambda: Phi3Config(**{**TINY, "num_key_value_heads": 6}, sliding_window=9),
    "phi3 longrope": lambda: Phi3Config(
        **{**TINY, "hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 3},
        original_max_position_embeddings=24,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1000.0,
            "partial_rotary_factor": 0.75,
            "short_factor": spread(1.0, 24),
            "long_factor": spread(2.0, 24),
        },
    ),
}


CONFIGS["phi3 half a head"] = lambda: Phi3Config(
    **{**TINY, "hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 3},
    rope_parameters={"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
)


@dataclass
class Decoder:
    """A session over a built graph; keeps the cache between calls."""

    spec: ModelSpec
    model: ir.Model

    @cached_property
    def session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        data = ir.to_proto(self.model).SerializeToString()
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def start(self, batch: int = 1) -> None:
        empty = np.zeros((batch, self.spec.kv_heads, 0, self.spec.head_dim), np.float32)
        self.past = {f"past_key_values.{i}.{n}": empty for i in range(self.spec.layers) for n in ("key", "value")}

    def feed(self, ids: np.ndarray, mask: np.ndarray | None = None, positions: np.ndarray | None = None) -> np.ndarray:
        """Logits [B,S,V] of ids [B,S]; by default nothing is padded."""
        done = self.past["past_key_values.0.key"].shape[2]
        total = done + ids.shape[1]
        if mask is None:
            mask = np.ones((len(ids), total), np.int64)
        if positions is None:
            positions = np.broadcast_to(np.arange(done, total), ids.shape)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **self.past}
        logits, *present = self.session.run(None, inputs)
        self.past = dict(zip(self.past, present, strict=True))
        return logits

    def whole(self, ids: np.ndarray) -> np.ndarray:
        """Prefill of everything."""
        self.start(len(ids))
        return self.feed(ids)

    def stepwise(self, ids: np.ndarray) -> np.ndarray:
        """A prefill of 5 tokens, a chunk of 4, then token by token."""
        self.start(len(ids))
        ends = [0, 5, 9, *range(10, ids.shape[1] + 1)]
        return np.concatenate([self.feed(ids[:, a:b]) for a, b in pairwise(ends)], axis=1)


@dataclass
class Pair:
    """A model of transformers and what edgekit made of the same checkpoint."""

    torch: PreTrainedModel
    checkpoint: Checkpoint

    def decoder(self, target: str) -> Decoder:
        found = load_target(target)
        spec = self.checkpoint.spec
        model = build_graph(spec, self.checkpoint.weights, opset=found.opset, name="tiny")
        return Decoder(spec, lower(model, found))

    def reference(self, ids: np.ndarray, **inputs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            tensors = {name: torch.tensor(value) for name, value in inputs.items()}
            return self.torch(torch.tensor(ids), use_cache=False, **tensors).logits.numpy()

    def ids(self, length: int, batch: int = 1) -> np.ndarray:
        return np.random.default_rng(1).integers(0, self.torch.config.vocab_size, (batch, length))


def distance(found: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference, relative to the largest logit."""
    return float(np.abs(found - reference).max() / np.abs(reference).max())


def make_pair(config: PreTrainedConfig, folder: Path) -> Pair:
    """The model of a config, with weights that vary enough for logits to differ, saved and opened again."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if "norm" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise if "embed" in name else noise * 1.5 / parameter.shape[1] ** 0.5)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tiny_tokenizer(model.config.vocab_size))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return Pair(model, open_model(str(folder)))
