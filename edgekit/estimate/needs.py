"""Lower bounds of the bytes and FLOP per token of a model, from its shapes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit.types.tensor_names import EMBEDDING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgekit.types import ModelSpec, TensorEntry


def weight_bytes(tensors: Sequence[TensorEntry], *, tied: bool) -> int:
    """Bytes of weights that a decoded token must read: all of them, but only one row of an untied embedding.

    Args:
        tensors: the tensors of a manifest.
        tied: whether the head is the embedding.
    """
    total = 0
    for tensor in tensors:
        lookup = tensor.name == EMBEDDING and not tied
        total += tensor.bytes // tensor.shape[0] if lookup else tensor.bytes
    return total


def kv_bytes_per_position(spec: ModelSpec) -> int:
    """Bytes of keys and values (fp32) that one position adds over all layers: 2 * layers * kv_heads * head_dim * 4."""
    return 2 * spec.layers * spec.kv_heads * spec.head_dim * 4


def decode_bytes(weights: int, spec: ModelSpec, depth: int, tokens: int) -> float:
    """Bytes that a decoded token must read, averaged over ``tokens`` tokens after ``depth`` positions.

    weights + sum over layers of 2 * kv_heads * head_dim * 4 * positions seen (at most the layer's window).
    """
    per_layer = kv_bytes_per_position(spec) / spec.layers
    seen = depth + np.arange(1, tokens + 1)
    kv = sum(np.minimum(seen, window or seen).mean() * per_layer for window in spec.windows)
    return float(weights + kv)


def matmul_weights(spec: ModelSpec) -> int:
    """Weights of the layers' matmuls, without the head."""
    attention = spec.hidden_size * spec.head_dim * (2 * spec.heads + 2 * spec.kv_heads)
    return spec.layers * (attention + 3 * spec.hidden_size * spec.intermediate_size)


def decode_flop(spec: ModelSpec, depth: int = 0) -> float:
    """FLOP of one decoded token: 2 per weight of the matmuls and the head, 4 * heads * head_dim per position.

    4 = two products (scores, values) with one multiplication and one addition each.
    """
    head = spec.vocab_size * spec.hidden_size
    return 2.0 * (matmul_weights(spec) + head) + _attention_flop(spec, np.array([depth + 1]))


def prefill_flop(spec: ModelSpec, tokens: int) -> float:
    """Least FLOP of a prompt of ``tokens`` tokens: as decode_flop, causal, with the head once.

    Graphs may compute the head for every token, but only the last one's is needed.
    """
    head = 2.0 * spec.vocab_size * spec.hidden_size
    return 2.0 * tokens * matmul_weights(spec) + head + _attention_flop(spec, np.arange(1, tokens + 1))


def _attention_flop(spec: ModelSpec, positions: NDArray[np.int64]) -> float:
    seen = sum(int(np.minimum(positions, window or positions).sum()) for window in spec.windows)
    return 4.0 * spec.heads * spec.head_dim * seen
