"""Symptom: "no kernel for MatMulNBits", a contrib operator of ONNX Runtime.

Cure: blockwise DequantizeLinear (opset 21) of codes stored [K,N], then MatMul. ONNX Runtime fuses that pair back
into MatMulNBits at load, with 4 and 8 bits, signed and unsigned, but not from [N,K]. Symmetric codes become signed, so
that they need no zero points. Padding of the last block is removed.
Exactness: bit-exact weights.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.lower.patch import Patch, initializer, lazy, nodes_of
from edgekit.numerics.nibbles import pack_bits, unpack_bits
from edgekit.types import SHARED_WITH

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.types import Target

FIXES = frozenset({"op:MatMulNBits"})
DTYPES = {
    (4, True): ir.DataType.INT4,
    (4, False): ir.DataType.UINT4,
    (8, True): ir.DataType.INT8,
    (8, False): ir.DataType.UINT8,
}


def apply(model: ir.Model, _: Target) -> ir.Model:
    """Rewrite every node: A [..,K] times codes [N, blocks, bytes], scales [N, blocks], packed zero points or none."""
    for node in nodes_of(model, "MatMulNBits"):
        patch = Patch(model, node)
        bits, block = patch.attribute("bits", 4), patch.attribute("block_size", 0)
        k, n = patch.attribute("K", 0), patch.attribute("N", 0)
        if bits == 2:
            raise patch.refuse("no standard operator reads 2-bit weights")
        if bits not in (4, 8) or patch.input(4) is not None:
            raise patch.refuse(f"{bits} bits with {len(node.inputs)} inputs is not a format that edgekit writes")
        # One stored scale per row means per-channel, whatever the block size.
        blocks = ceil(k / block) if patch.stored(2)[1].size > n else 1
        symmetric = patch.input(3) is None
        dtype = DTYPES[bits, symmetric]
        codes = _columns(patch, 1, columns_name(patch.stored(1)[0]), dtype, (n, k), signed=symmetric)
        inputs = [codes, _scales(patch, n, blocks)]
        if not symmetric:
            inputs.append(_columns(patch, 3, columns_name(patch.stored(3)[0]), dtype, (n, blocks)))
        axis, size = (0, block) if blocks > 1 else (1, 0)
        weight = patch.op("DequantizeLinear", inputs, "weight", axis=axis, block_size=size)
        matmul = patch.op("MatMul", [patch.input(0), weight], "matmul")
        if patch.input(5) is not None:
            matmul = patch.op("Add", [matmul, patch.input(5)], "biased")
        patch.replace(matmul)
    return model


def columns_name(stored: ir.Value) -> str:
    """The name of a table's transposed copy; tables that share their bytes share the name."""
    return f"{stored.metadata_props.get(SHARED_WITH, stored.name)}.columns"


def _columns(
    patch: Patch, index: int, name: str, dtype: ir.DataType, shape: tuple[int, int], *, signed: bool = False
) -> ir.Value:
    """The transpose of an input's packed rows as an initializer [columns, rows], flat if there is one column."""
    known = patch.graph.initializers.get(name)
    if known is not None:
        return known
    _, source = patch.stored(index)
    rows, columns = shape
    bits: int = dtype.bitwidth

    def compute() -> NDArray[np.uint8 | np.int8]:
        codes = unpack_bits(source.numpy().reshape(rows, -1), bits, columns).T
        if signed:
            codes = codes ^ np.uint8(1 << (bits - 1))  # u - 2**(bits-1), in two's complement
        # ONNX packs 4-bit types flat, across rows.
        filled = np.ascontiguousarray(codes) if bits == 8 else pack_bits(codes.ravel(), bits)
        return filled.view(np.int8) if dtype == ir.DataType.INT8 else filled

    transposed = [columns, rows] if columns > 1 else [rows]
    return initializer(patch.graph, lazy(name, dtype, transposed, compute))


def _scales(patch: Patch, n: int, blocks: int) -> ir.Value:
    """The scales [blocks, N] or [N] in float32, stored as float16 or float32."""
    value, source = patch.stored(2)
    name = columns_name(value)
    stored = patch.graph.initializers.get(name)
    if stored is None:
        shape = [blocks, n] if blocks > 1 else [n]

        def compute() -> NDArray[np.generic]:
            return np.ascontiguousarray(source.numpy().reshape(n, blocks).T).reshape(shape)

        stored = initializer(patch.graph, lazy(name, source.dtype, shape, compute))
    return stored if source.dtype == ir.DataType.FLOAT else patch.op("Cast", [stored], "scales", to=ir.DataType.FLOAT)
