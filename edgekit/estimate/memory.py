"""Memory of an ONNX Runtime session, by formulae fitted to measurements of two models."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from edgekit.types.generation import PREFILL_CHUNK
from edgekit.types.layout import Layout
from edgekit.types.tensor_names import EMBEDDING

if TYPE_CHECKING:
    from edgekit.types import ModelSpec, TensorEntry


RUNTIME_BYTES = 85_000_000
"""Resident memory of Python, numpy, ONNX Runtime and the session's structures without the model: 63 MB after the
imports and about 20 MB for a graph of 30 layers, on Linux x86-64."""


ARENA, SCORES = 2, 3
"""Copies of a layer's activations and of its attention scores that a session holds, fitted to two models. ONNX
Runtime's arena grows by doubling, so it holds up to twice what the largest step needs."""


@dataclass(frozen=True)
class Memory:
    """Estimated bytes in RAM while processing a prompt as long as the context."""

    weights: int
    kv: int
    workspace: int
    runtime: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.weights + self.kv + self.workspace + self.runtime


def held_bytes(tensors: tuple[TensorEntry, ...], *, tied: bool) -> int:
    """Bytes of the weights in memory with ONNX Runtime's CPU provider.

    Floating point: 4 per weight, whatever type the file has. On a grid: codes and zero points as stored, plus 8 per
    kernel block (its scale and its sum in float32). A tied table counts twice, since matmuls read a packed copy.
    """
    total = 0
    for tensor in tensors:
        if tensor.grid is None:
            held = table = 4 * prod(tensor.shape)
        else:
            layout = Layout.of(tensor.shape, tensor.grid)
            blocks = layout.rows * layout.blocks
            scale = 2 if tensor.grid.scale == "float16" else 4
            codes = layout.nbytes(tensor.grid) - layout.rows * layout.scale_columns * scale
            held, table = codes + 8 * blocks, codes + 4 * blocks
        total += held + (table if tied and tensor.name == EMBEDDING else 0)
    return total


def workspace_bytes(spec: ModelSpec, context: int) -> int:
    """Bytes that a session needs besides weights and cache while processing the last chunk of a full context.

    With S = min(PREFILL_CHUNK, context) tokens per run: one row of logits, 4 vocab; ARENA times a layer's activations,
    4 S (4 hidden + 3 mlp + (heads + 2 kv_heads) head_dim); SCORES times its attention scores, 4 S heads context; and
    the cos and sin tables, 4 rope_dim per position of the model's context.
    """
    tokens = min(PREFILL_CHUNK, context)
    logits = 4 * spec.vocab_size
    widths = 4 * spec.hidden_size + 3 * spec.intermediate_size + (spec.heads + 2 * spec.kv_heads) * spec.head_dim
    scores = 4 * tokens * spec.heads * context
    rope = 4 * spec.rope.dim * spec.context_length
    return logits + ARENA * 4 * tokens * widths + SCORES * scores + rope
