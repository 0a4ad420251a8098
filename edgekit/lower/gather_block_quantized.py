"""Symptom: "no kernel for GatherBlockQuantized", an operator of ONNX Runtime's own.

Cure: gather the codes, scales and zero points of the tokens and dequantize those few rows, (q - zero) * scale.
An 8-bit embedding whose head was rewritten by ``matmul_nbits`` is gathered from the head's [H,V] codes, so that they
are stored once; 4-bit ones are stored twice, because Gather takes no 4-bit types.
Exactness: bit-exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.lower.matmul_nbits import columns_name
from edgekit.lower.patch import Patch, fixed_size, nodes_of

if TYPE_CHECKING:
    from edgekit.types import Target

FIXES = frozenset({"op:GatherBlockQuantized"})
FLOAT = ir.DataType.FLOAT


def apply(model: ir.Model, _: Target) -> ir.Model:
    """Rewrite every node: codes [V, H*bits/8] uint8, ids [B,S], scales [V, blocks], packed zero points or none."""
    for node in nodes_of(model, "GatherBlockQuantized"):
        patch = Patch(model, node)
        bits, block = patch.attribute("bits", 4), patch.attribute("block_size", 128)
        if (
            (dtype := patch.stored(0).dtype) != ir.DataType.UINT8
            or bits not in (4, 8)
            or patch.attribute("gather_axis", 0)
        ):
            raise patch.refuse(f"{bits} bits in {dtype} is not what edgekit packs")
        width = fixed_size(node.inputs[0], 1) * 8 // bits
        turned = patch.graph.initializers.get(columns_name(node.inputs[0])) if bits == 8 else None
        codes = _rows(patch, 0, bits, "codes") if turned is None else _columns(patch, turned)
        values = patch.op("Cast", [codes], "codes.float", to=FLOAT)
        if patch.input(3) is not None:
            zeros = patch.op("Cast", [_rows(patch, 3, bits, "zeros")], "zeros.float", to=FLOAT)
            values = patch.op("Sub", [values, _spread(patch, zeros, width, block, "zeros.wide")], "centred")
        elif turned is None or turned.dtype == ir.DataType.UINT8:
            centre = patch.constant(f"centre.{bits}", 2.0 ** (bits - 1), np.float32)
            values = patch.op("Sub", [values, centre], "centred")
        scales = patch.op("Gather", [patch.input(2), patch.input(1)], "scales")
        patch.replace(patch.op("Mul", [values, _spread(patch, scales, width, block, "scales.wide")], "row"))
    return model


def _rows(patch: Patch, index: int, bits: int, name: str) -> ir.Value:
    """The tokens' rows of a packed table, one code an element: [B,S,n] uint8."""
    rows = patch.op("Gather", [patch.input(index), patch.input(1)], name)
    if bits == 8:
        return rows
    low = patch.op("BitwiseAnd", [rows, patch.constant("nibble", 15, np.uint8)], f"{name}.low")
    high = patch.op("BitShift", [rows, patch.constant("four", 4, np.uint8)], f"{name}.high", direction="RIGHT")
    last = patch.constant("axis.last", [-1])
    pair = [patch.op("Unsqueeze", [half, last], f"{name}.{i}") for i, half in enumerate((low, high))]
    pairs = patch.op("Concat", pair, f"{name}.pairs", axis=-1)
    return patch.op("Reshape", [pairs, patch.constant("shape.join", [0, 0, -1])], f"{name}.codes")


def _columns(patch: Patch, table: ir.Value) -> ir.Value:
    """The tokens' columns of the head's table [H,V], as rows [B,S,H]."""
    gathered = patch.op("Gather", [table, patch.input(1)], "codes.turned", axis=1)
    return patch.op("Transpose", [gathered], "codes", perm=[1, 2, 0])


def _spread(patch: Patch, x: ir.Value, width: int, block: int, name: str) -> ir.Value:
    """One value a block -> one value a weight: [B,S,blocks] -> [B,S,width]."""
    blocks = patch.constant(f"blocks.{width}.{block}", [i // block for i in range(width)])
    return patch.op("Gather", [x, blocks], name, axis=-1)
