"""A second graph for prompts: the same weights at 8 bits per channel, the same inputs and outputs, batch 1.

A prompt is bound by arithmetic, a decoded token by bytes. Products of 4-bit weights unpack them for every few tokens;
products of 8-bit integers with one scale a token and one a channel run three to four times as fast (8-bit dot products,
AVX-VNNI or ARM's DOT). Their weights are not stored: ``run`` expands them from the codes in the file when it opens
the bundle, as ``Expansion`` says.

    scale[t] = max |x[t]| / 127,  q[t] = round(x[t] / scale[t]) + 128  (uint8),
    y[t,n] = scale[t] * channel[n] * sum_k (q[t,k] - 128) * w[k,n]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.lower.patch import Patch, initializer, nodes_of
from edgekit.types import EXPANDED, Expansion, Region

if TYPE_CHECKING:
    from collections.abc import Iterator

FLOAT, INT8, UINT8 = ir.DataType.FLOAT, ir.DataType.INT8, ir.DataType.UINT8


def prefill_graph(model: ir.Model) -> tuple[ir.Model, tuple[Expansion, ...]]:
    """The prompt's graph of a model that has been written, and how its weights come out of the written file.

    The head keeps its grid: it is multiplied with one token. Weights that are not expanded are the same bytes of the
    same file.

    Args:
        model: lowered and written: its large initializers are external.

    Returns:
        A new model and one expansion for each product; none when the model has no MatMulNBits.
    """
    model = model.clone()
    expansions = []
    rounded: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    middles = None
    for node in nodes_of(model, "MatMulNBits"):
        if any(output.is_graph_output() for output in node.outputs):
            continue
        middles = middles or _middles(model)
        patch, x = Patch(model, node), node.inputs[0]
        assert x is not None
        if x not in rounded:
            rounded[x] = _round(patch, x, middles)
        expansions.append(_expansion(patch))
        _replace(patch, expansions[-1], *rounded[x])
    used = {value for node in model.graph for value in node.inputs}
    for value in [v for v in model.graph.initializers.values() if v not in used]:
        model.graph.initializers.pop(str(value.name))
    return model, tuple(expansions)


def _expansion(patch: Patch) -> Expansion:
    codes, scales = _region(patch, 1), _region(patch, 2)
    return Expansion(
        name=str(patch.node.name),
        rows=patch.attribute("N", 0),
        columns=patch.attribute("K", 0),
        bits=patch.attribute("bits", 4),
        block=patch.attribute("block_size", 0),
        codes=codes,
        scales=scales,
        half_scales=patch.stored(2)[1].dtype == ir.DataType.FLOAT16,
        zeros=None if patch.input(3) is None else _region(patch, 3),
    )


def _region(patch: Patch, index: int) -> Region:
    tensor = patch.stored(index)[1]
    if not isinstance(tensor, ir.ExternalTensor):
        raise patch.refuse(f"its input {index} has not been written")
    return Region(tensor.offset or 0, tensor.length or tensor.nbytes)


def _replace(patch: Patch, expansion: Expansion, rounded: ir.Value, scale: ir.Value) -> None:
    weight, channel = (initializer(patch.graph, tensor) for tensor in _expanded(expansion))
    one, middle = patch.constant("one.float", 1.0, np.float32), patch.constant("middle", 128, np.uint8)
    inputs = [rounded, weight, one, channel, middle]
    product = patch.op("MatMulIntegerToFloat", inputs, "product", domain="com.microsoft")
    patch.replace(patch.op("Mul", [product, scale], "scaled"))


def _middles(model: ir.Model) -> ir.Value:
    """128 for every token, uint8 [S]: the zero points, which have as many elements as the scales."""
    graph = model.graph
    ids = next(value for value in graph.inputs if value.name == "input_ids")
    middle = initializer(graph, ir.tensor(np.asarray(128, np.uint8), name="middle"))
    count, middles = ir.Value(name="tokens"), ir.Value(name="middles")
    first = graph[0]
    graph.insert_before(first, ir.node("Shape", [ids], {"start": 1, "end": 2}, name="tokens", outputs=[count]))
    graph.insert_before(first, ir.node("Expand", [middle, count], name="middles", outputs=[middles]))
    return middles


def _round(patch: Patch, x: ir.Value, middles: ir.Value) -> tuple[ir.Value, ir.Value]:
    """``x`` [1,S,K] as uint8 around 128, and the scales [1,S,1] of its tokens."""
    size = patch.op("Abs", [x], "size")
    largest = patch.op("ReduceMax", [size, patch.constant("axis.last", [-1])], "largest", keepdims=1)
    scale = patch.op("Mul", [largest, patch.constant("step", 1 / 127, np.float32)], "token_scale")
    flat = patch.op("Reshape", [scale, patch.constant("shape.flat", [-1])], "token_scale.flat")
    return patch.op("QuantizeLinear", [x, flat, middles], "rounded", axis=1), scale


def _expanded(expansion: Expansion) -> Iterator[ir.ExternalTensor]:
    """The initializers that ``run`` will fill: weight [K,N] int8 and channel scales [N]."""
    shapes = ((expansion.columns, expansion.rows), INT8), ((expansion.rows,), FLOAT)
    for name, (shape, dtype) in zip(expansion.initializers, shapes, strict=True):
        nbytes = int(np.prod(shape)) * dtype.bitwidth // 8
        yield ir.ExternalTensor(EXPANDED, 0, nbytes, dtype, shape=ir.Shape(shape), name=name)
