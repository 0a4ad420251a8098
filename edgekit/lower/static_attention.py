"""Symptom: an NPU rejects GroupQueryAttention, falls back to the CPU, or rewrites the whole cache for every token.

Cure: rotation, scores, softmax and sum in standard operators in four dimensions, without repeated keys: query heads
that share a key head are stacked along the sequence. Angles and masks are inputs (see host_inputs). Past keys and
values are inputs too, and only those of new tokens are returned, ``new.{i}.key|value``: the caller keeps the cache.
Exactness: the same formula; differs by the order of sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.lower.host_inputs import COS, SIN, bias_name
from edgekit.lower.patch import Patch, fixed_size, nodes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekit.types import Target

FIXES = frozenset({"attention:fused"})
FLOAT = ir.DataType.FLOAT


def apply(model: ir.Model, _: Target) -> ir.Model:
    """Decompose every node. Inputs: q, k, v [B,S,heads*D], past [B,kv_heads,P,D]."""
    for node in nodes_of(model, "RotaryEmbedding"):
        _rotate_node(Patch(model, node))
    for node in nodes_of(model, "GroupQueryAttention"):
        _attend(Patch(model, node))
    graph = model.graph
    graph.inputs[:] = [value for value in graph.inputs if value.name not in ("attention_mask", "position_ids")]
    for value in graph.outputs:
        if value.name and value.name.startswith("present."):
            past = next(v for v in graph.inputs if v.name == value.name.replace("present.", "past_key_values."))
            value.name = value.name.replace("present.", "new.")
            value.shape = ir.Shape(("batch_size", fixed_size(past, 1), "sequence_length", fixed_size(past, 3)))
    return model


def remains(model: ir.Model, _: Target) -> Iterator[str]:
    """Fused nodes, inputs that only they read, and outputs that return the whole cache."""
    for kind in ("GroupQueryAttention", "RotaryEmbedding"):
        yield from (str(node.name) for node in nodes_of(model, kind))
    yield from (str(v.name) for v in model.graph.inputs if v.name in ("attention_mask", "position_ids"))
    yield from (str(v.name) for v in model.graph.outputs if str(v.name).startswith("present."))


def _attend(patch: Patch) -> None:
    query, key, value, past_key, past_value = (patch.input(i) for i in range(5))
    heads, kv_heads = patch.attribute("num_heads", 0), patch.attribute("kv_num_heads", 0)
    if key is None or value is None or past_key is None:
        raise patch.refuse("its key, value and past must be separate inputs")
    size = fixed_size(past_key, 3)
    query, key = _split(patch, query, "q", heads), _split(patch, key, "k", kv_heads)
    value = _split(patch, value, "v", kv_heads)
    if patch.attribute("do_rotary", 0):
        half = fixed_size(patch.input(7), 1)
        query, key = _rotate(patch, query, "q_rope", half, size), _rotate(patch, key, "k_rope", half, size)
    query = patch.op("Mul", [query, patch.constant(f"scale.{size}", size**-0.5, np.float32)], "q_scaled")
    query = patch.op("Reshape", [query, patch.constant("shape.group", [0, kv_heads, -1, size])], "q_grouped")
    keys = patch.op("Concat", [past_key, key], "keys", axis=2)
    values = patch.op("Concat", [past_value, value], "values", axis=2)
    transposed = patch.op("Transpose", [keys], "keys_transposed", perm=[0, 1, 3, 2])
    scores = patch.op("MatMul", [query, transposed], "scores")
    # The mask is the same for all heads, so it is added while heads have their own axis.
    apart = patch.op("Reshape", [scores, patch.constant("shape.apart", [0, heads, -1, 0])], "scores_apart")
    bias = _input(patch, bias_name(patch.attribute("local_window_size", -1)), "slots")
    shares = patch.op("Softmax", [patch.op("Add", [apart, bias], "masked")], "shares", axis=-1)
    shares = patch.op("Reshape", [shares, patch.constant("shape.stacked", [0, kv_heads, -1, 0])], "shares_stacked")
    mixed = patch.op("MatMul", [shares, values], "mixed")
    mixed = patch.op("Reshape", [mixed, patch.constant("shape.ungroup", [0, heads, -1, size])], "ungrouped")
    mixed = patch.op("Transpose", [mixed], "mixed_transposed", perm=[0, 2, 1, 3])
    joined = patch.op("Reshape", [mixed, patch.constant("shape.join", [0, 0, -1])], "joined")
    patch.replace(joined, key, value)


def _rotate_node(patch: Patch) -> None:
    """Decompose a RotaryEmbedding of [B,S,heads*D], used if attention itself does not rotate."""
    x, heads = patch.input(0), patch.attribute("num_heads", 0)
    if x is None or patch.attribute("interleaved", 0):
        raise patch.refuse("interleaved rotation is not supported")
    half = fixed_size(patch.input(2), 1)
    apart = _split(patch, x, "apart", heads)
    size = fixed_size(next(v for v in patch.graph.inputs if str(v.name).startswith("past_key_values.")), 3)
    rotated = _rotate(patch, apart, "rotated", half, size)
    joined = patch.op("Transpose", [rotated], "back", perm=[0, 2, 1, 3])
    patch.replace(patch.op("Reshape", [joined, patch.constant("shape.join", [0, 0, -1])], "joined"))


def _rotate(patch: Patch, x: ir.Value, name: str, half: int, size: int) -> ir.Value:
    """Rotate the first ``2 * half`` dimensions of every head of [B,heads,S,size]."""
    cos, sin = _input(patch, COS, half), _input(patch, SIN, half)
    sizes = [half, half, *([size - 2 * half] if size > 2 * half else [])]
    parts = patch.op(
        "Split",
        [x, patch.constant(f"sizes.{'.'.join(map(str, sizes))}", sizes)],
        f"{name}.parts",
        outputs=len(sizes),
        axis=-1,
    )
    producer = parts.producer()
    assert producer is not None
    first, second, *unturned = producer.outputs
    left = patch.op(
        "Sub",
        [patch.op("Mul", [first, cos], f"{name}.ac"), patch.op("Mul", [second, sin], f"{name}.bs")],
        f"{name}.left",
    )
    right = patch.op(
        "Add",
        [patch.op("Mul", [second, cos], f"{name}.bc"), patch.op("Mul", [first, sin], f"{name}.as")],
        f"{name}.right",
    )
    return patch.op("Concat", [left, right, *unturned], name, axis=-1)


def _split(patch: Patch, x: ir.Value | None, name: str, heads: int) -> ir.Value:
    """[B,S,heads*D] -> [B,heads,S,D]."""
    apart = patch.op("Reshape", [x, patch.constant(f"shape.heads.{heads}", [0, 0, heads, -1])], f"{name}_split")
    return patch.op("Transpose", [apart], f"{name}_heads", perm=[0, 2, 1, 3])


def _input(patch: Patch, name: str, last: int | str) -> ir.Value:
    """The graph input [1,1,S,last], declared on first use."""
    inputs = patch.graph.inputs
    known = next((value for value in inputs if value.name == name), None)
    if known is None:
        shape = ir.Shape(("batch_size", 1, "sequence_length", last))
        known = ir.Value(name=name, type=ir.TensorType(FLOAT), shape=shape)
        # The cache comes last.
        inputs.insert(next(i for i, v in enumerate(inputs) if str(v.name).startswith("past_key_values.")), known)
    return known
