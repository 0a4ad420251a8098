"""Symptom: "no kernel for com.microsoft.RotaryEmbedding", a contrib operator of ONNX Runtime (standard from opset 23).

Cure: gather the rows of the cos and sin tables once for the whole graph, then rotate the two halves of each head by
multiplications, and append the dimensions that do not rotate.
Exactness: the same products and sums; differs by rounding where a kernel uses fused multiply-add.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from edgekit.lower.patch import Patch, nodes_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.types import Target

FIXES = frozenset({"op:RotaryEmbedding"})
END = int(np.iinfo(np.int64).max)


def apply(model: ir.Model, _: Target) -> ir.Model:
    """Decompose every node: x [B,S,heads*D], row ids [B,S], tables [rows, rotated / 2]."""
    gathered: dict[tuple[ir.Value | None, ir.Value | None], ir.Value] = {}
    for node in nodes_of(model, "RotaryEmbedding"):
        patch = Patch(model, node)
        x, rows = patch.input(0), patch.input(1)
        if patch.attribute("interleaved", 0):
            raise patch.refuse("interleaved rotation is not supported")
        for table in (patch.input(2), patch.input(3)):
            if (table, rows) not in gathered:
                assert table is not None
                angles = patch.op("Gather", [table, rows], f"/{table.name}/rows")
                gathered[table, rows] = patch.op(
                    "Unsqueeze", [angles, patch.constant("axis.2", [2])], f"/{table.name}/heads"
                )
        cos, sin = gathered[patch.input(2), rows], gathered[patch.input(3), rows]
        split = [0, 0, patch.attribute("num_heads", 0), -1]
        heads = patch.op("Reshape", [x, patch.constant(f"shape.heads.{split[2]}", split)], "heads")
        rotated = _rotate(patch, heads, cos, sin)
        patch.replace(patch.op("Reshape", [rotated, patch.constant("shape.join", [0, 0, -1])], "join"))
    return model


def _rotate(patch: Patch, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
    """Rotate the first dimensions of x [B,S,heads,D] by the angles of ``cos`` and ``sin``."""
    dim = patch.attribute("rotary_embedding_dim", 0)
    if dim:
        bounds = (0, dim // 2, dim, END)
        first, second, rest = (_slice(patch, x, *span) for span in pairwise(bounds))
    else:
        first = patch.op("Split", [x], "halves", outputs=2, axis=-1, num_outputs=2)
        producer = first.producer()
        assert producer is not None
        second = producer.outputs[1]
    left = patch.op("Sub", [_times(patch, first, cos, "first.cos"), _times(patch, second, sin, "second.sin")], "left")
    right = patch.op("Add", [_times(patch, second, cos, "second.cos"), _times(patch, first, sin, "first.sin")], "right")
    return patch.op("Concat", [left, right, *([rest] if dim else [])], "rotated", axis=-1)


def _times(patch: Patch, x: ir.Value, y: ir.Value, name: str) -> ir.Value:
    return patch.op("Mul", [x, y], name)


def _slice(patch: Patch, x: ir.Value, start: int, stop: int) -> ir.Value:
    """Dimensions [start, stop) of each head."""
    ends = [patch.constant(f"at.{at if at < END else 'end'}", [at]) for at in (start, stop)]
    return patch.op("Slice", [x, *ends, patch.constant("axis.last", [-1])], f"from.{start}")
