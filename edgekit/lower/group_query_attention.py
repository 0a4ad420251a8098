"""Symptom: "no kernel for GroupQueryAttention", a contrib operator of ONNX Runtime.

Cure: rotation (as RotaryEmbedding, which has its own pass), concatenation with the past, and softmax attention in
standard operators, in four dimensions and without repeated keys: query heads that share a key head are stacked along
the sequence. All layers with the same window size share one mask, made from attention_mask and the positions in the
cache, so a batch may be padded on the left, as in transformers.
Exactness: the same formula; differs by the order of sums. The past must not be a buffer longer than its content.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.lower.patch import Patch, fixed_size, nodes_of

if TYPE_CHECKING:
    from edgekit.types import Target

FIXES = frozenset({"op:GroupQueryAttention"})
# The lowest float16: masked scores become 0 in the softmax, and it survives a cast of the graph.
MASKED = -65504.0


def apply(model: ir.Model, _: Target) -> ir.Model:
    """Decompose every node. Inputs: q, k, v [B,S,heads*D], past [B,kv_heads,P,D], lengths, tables, row ids [B,S]."""
    masks: dict[tuple[int, int], ir.Value] = {}
    for node in nodes_of(model, "GroupQueryAttention"):
        patch = Patch(model, node)
        query, key, value = (patch.input(i) for i in range(3))
        heads, kv_heads = patch.attribute("num_heads", 0), patch.attribute("kv_num_heads", 0)
        past = patch.input(3)
        if key is None or past is None:
            raise patch.refuse("its key, value and past must be separate inputs")
        size = fixed_size(past, 3)
        if patch.attribute("do_rotary", 0):
            query = _rotate(patch, query, "q_rope", heads, size)
            key = _rotate(patch, key, "k_rope", kv_heads, size)
        window, group = patch.attribute("local_window_size", -1), heads // kv_heads
        if (window, group) not in masks:
            masks[window, group] = _mask(patch, window, group)

        query = patch.op("Mul", [query, patch.constant(f"scale.{size}", size**-0.5, np.float32)], "q_scaled")
        query = _split(patch, query, "q", heads)
        if group > 1:
            query = patch.op("Reshape", [query, patch.constant("shape.group", [0, kv_heads, -1, size])], "q_grouped")
        present_key = patch.op("Concat", [past, _split(patch, key, "k", kv_heads)], "key", axis=2)
        present_value = patch.op("Concat", [patch.input(4), _split(patch, value, "v", kv_heads)], "value", axis=2)
        transposed = patch.op("Transpose", [present_key], "key_transposed", perm=[0, 1, 3, 2])
        scores = patch.op("MatMul", [query, transposed], "scores")
        scores = patch.op("Add", [scores, masks[window, group]], "masked")
        shares = patch.op("Softmax", [scores], "shares", axis=-1)
        mixed = patch.op("MatMul", [shares, present_value], "mixed")
        if group > 1:
            mixed = patch.op("Reshape", [mixed, patch.constant("shape.ungroup", [0, heads, -1, size])], "ungrouped")
        mixed = patch.op("Transpose", [mixed], "mixed_transposed", perm=[0, 2, 1, 3])
        joined = patch.op("Reshape", [mixed, patch.constant("shape.join", [0, 0, -1])], "joined")
        patch.replace(joined, present_key, present_value)
    return model


def _rotate(patch: Patch, x: ir.Value | None, name: str, heads: int, size: int) -> ir.Value:
    """RotaryEmbedding of [B,S,heads*D] with the node's tables and row ids."""
    cos, sin, rows = (patch.input(i) for i in (7, 8, 9))
    if rows is None:
        raise patch.refuse("it has no position_ids")
    rotated = 2 * fixed_size(cos, 1)
    return patch.op(
        "RotaryEmbedding",
        [x, rows, cos, sin],
        name,
        domain="com.microsoft",
        num_heads=heads,
        rotary_embedding_dim=0 if rotated == size else rotated,
    )


def _split(patch: Patch, x: ir.Value | None, name: str, heads: int) -> ir.Value:
    """[B,S,heads*D] -> [B,heads,S,D]."""
    shape = patch.constant(f"shape.heads.{heads}", [0, 0, heads, -1])
    return patch.op("Transpose", [patch.op("Reshape", [x, shape], f"{name}_split")], f"{name}_heads", perm=[0, 2, 1, 3])


def _mask(patch: Patch, window: int, group: int) -> ir.Value:
    """The mask [B,1,group*S,T]: 0 where a new token may attend, MASKED elsewhere.

    Positions count along the cache, including padding: query i attends to key j if j <= i, j > i - window and
    attention_mask[b,j] is 1 (transformers' masking_utils).
    """
    padding = next((value for value in patch.graph.inputs if value.name == "attention_mask"), None)
    query = patch.input(0)
    if padding is None or query is None:
        raise patch.refuse("the graph has no input attention_mask")
    name = f"/mask.{window}" if window > 0 else "/mask"
    zero, one = patch.constant("zero", 0), patch.constant("one", 1)
    axis = patch.constant("axis.0", [0])
    total = patch.op("Squeeze", [patch.op("Shape", [padding], f"{name}.total1", start=1, end=2), axis], f"{name}.total")
    new = patch.op("Squeeze", [patch.op("Shape", [query], f"{name}.new1", start=1, end=2), axis], f"{name}.new")
    keys = patch.op("Range", [zero, total, one], f"{name}.keys")
    first = patch.op("Sub", [total, new], f"{name}.first")
    queries = patch.op("Range", [first, total, one], f"{name}.queries")
    queries = patch.op("Unsqueeze", [queries, patch.constant("axis.1", [1])], f"{name}.queries.column")
    allowed = patch.op("LessOrEqual", [keys, queries], f"{name}.causal")
    if window > 0:
        oldest = patch.op("Sub", [queries, patch.constant(f"window.{window}", window)], f"{name}.oldest")
        allowed = patch.op("And", [allowed, patch.op("Greater", [keys, oldest], f"{name}.near")], f"{name}.window")
    real = patch.op("Cast", [padding], f"{name}.real", to=ir.DataType.BOOL)
    real = patch.op("Unsqueeze", [real, patch.constant("axes.1.2", [1, 2])], f"{name}.real.wide")
    allowed = patch.op("And", [allowed, real], f"{name}.allowed")
    floats = [patch.constant("unmasked", 0.0, np.float32), patch.constant("masked", MASKED, np.float32)]
    mask = patch.op("Where", [allowed, *floats], f"{name}.bias")
    return patch.op("Concat", [mask] * group, f"{name}.grouped", axis=2) if group > 1 else mask
