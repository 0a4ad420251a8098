"""Symptom: "no kernel for GatherBlockQuantized", a contrib operator of ONNX Runtime.

Cure: gather the codes, scales and zero points of the tokens and dequantize those few rows, (q - zero) * scale.
An 8-bit embedding whose head was rewritten by ``matmul_nbits`` is gathered from the head's transposed tables ([H,V]),
so that it is stored once; 4-bit ones are stored twice, since Gather does not support 4-bit types.
Exactness: bit-exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.lower.matmul_nbits import columns_name
from edgekit.lower.patch import Patch, nodes_of

if TYPE_CHECKING:
    from edgekit.types import Target

FIXES = frozenset({"op:GatherBlockQuantized"})
FLOAT, UINT8 = ir.DataType.FLOAT, ir.DataType.UINT8


def apply(model: ir.Model, _: Target) -> ir.Model:
    """Rewrite every node: codes [V, H*bits/8] uint8, ids [B,S], scales [V, blocks], packed zero points or none."""
    for node in nodes_of(model, "GatherBlockQuantized"):
        patch = Patch(model, node)
        bits, block = patch.attribute("bits", 4), patch.attribute("block_size", 128)
        table = patch.stored(0)[1]
        if bits == 2:
            raise patch.refuse("no standard operator reads 2-bit weights")
        if table.dtype != UINT8 or bits not in (4, 8) or patch.attribute("gather_axis", 0):
            raise patch.refuse(f"{bits} bits in {table.dtype} is not a format that edgekit writes")
        width = table.shape.numpy()[1] * 8 // bits
        if patch.stored(2)[1].size == table.shape[0]:
            block = width  # per-channel: one stored scale per row

        codes = _rows(patch, 0, bits, "codes")
        values = patch.op("Cast", [codes], "codes.float", to=FLOAT)
        if patch.input(3) is not None:
            zeros = patch.op("Cast", [_rows(patch, 3, bits, "zeros")], "zeros.float", to=FLOAT)
            values = patch.op("Sub", [values, _spread(patch, zeros, width, block, "zeros.wide")], "centred")
        elif _transposed(patch, 0) is None:  # the head's symmetric codes are signed already
            centre = patch.constant(f"centre.{bits}", 2.0 ** (bits - 1), np.float32)
            values = patch.op("Sub", [values, centre], "centred")
        scales = patch.op("Cast", [_rows(patch, 2, 8, "scales")], "scales.float", to=FLOAT)
        patch.replace(patch.op("Mul", [values, _spread(patch, scales, width, block, "scales.wide")], "row"))
    return model


def _transposed(patch: Patch, index: int) -> ir.Value | None:
    """The head's transposed table [n,V] of the same numbers, if there is one that Gather can read."""
    codes = patch.graph.initializers.get(columns_name(patch.stored(0)[0]))
    if codes is None or codes.dtype is None or codes.dtype.bitwidth != 8:
        return None
    return patch.graph.initializers.get(columns_name(patch.stored(index)[0]))


def _rows(patch: Patch, index: int, bits: int, name: str) -> ir.Value:
    """The tokens' rows of a stored table, unpacked: [B,S,n]."""
    ids = patch.input(1)
    if (transposed := _transposed(patch, index)) is not None:
        if transposed.shape is not None and len(transposed.shape) == 1:
            gathered = patch.op("Gather", [transposed, ids], f"{name}.flat")
            return patch.op("Unsqueeze", [gathered, patch.constant("axis.last", [-1])], name)
        gathered = patch.op("Gather", [transposed, ids], f"{name}.transposed", axis=1)
        return patch.op("Transpose", [gathered], name, perm=[1, 2, 0])
    rows = patch.op("Gather", [patch.stored(index)[0], ids], name)
    if bits == 8:
        return rows
    low = patch.op("BitwiseAnd", [rows, patch.constant("nibble", 15, np.uint8)], f"{name}.low")
    high = patch.op("BitShift", [rows, patch.constant("four", 4, np.uint8)], f"{name}.high", direction="RIGHT")
    last = patch.constant("axis.last", [-1])
    pair = [patch.op("Unsqueeze", [half, last], f"{name}.{i}") for i, half in enumerate((low, high))]
    pairs = patch.op("Concat", pair, f"{name}.pairs", axis=-1)
    return patch.op("Reshape", [pairs, patch.constant("shape.join", [0, 0, -1])], f"{name}.codes")


def _spread(patch: Patch, x: ir.Value, width: int, block: int, name: str) -> ir.Value:
    """Repeat one value per block for every weight: [B,S,blocks] -> [B,S,width]."""
    blocks = patch.constant(f"blocks.{width}.{block}", [i // block for i in range(width)])
    return patch.op("Gather", [x, blocks], name, axis=-1)
