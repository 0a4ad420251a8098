"""A second graph for prompts: the same weights at 8 bits per channel, the same inputs and outputs, batch 1.

A prompt is limited by arithmetic, a decoded token by bandwidth. Matmuls of 4-bit weights unpack them for every few
tokens; matmuls of 8-bit integers with one scale per token and per channel are three to four times as fast (8-bit dot
products, AVX-VNNI or ARM's DOT). Their weights are not stored: ``run`` expands them from the codes in the file when it
opens the bundle (see ``Int8Repack``).

    scale[t] = max |x[t]| / 127,  q[t] = round(x[t] / scale[t]) + 128  (uint8),
    y[t,n] = scale[t] * channel[n] * sum_k (q[t,k] - 128) * w[k,n]

The sums are exact on every class of processor, see ``run/prefill_weights.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.lower.patch import Patch, initializer, nodes_of
from edgekit.types import EXPANDED, Int8Repack, Region

if TYPE_CHECKING:
    from collections.abc import Iterator

FLOAT, INT8, UINT8 = ir.DataType.FLOAT, ir.DataType.INT8, ir.DataType.UINT8


def prefill_graph(model: ir.Model) -> tuple[ir.Model, tuple[Int8Repack, ...]]:
    """The prompt graph of a written model, and how to expand its weights from the written file.

    The head keeps its grid, since it is multiplied with only one token. Weights that are not expanded stay in the same
    file.

    Args:
        model: lowered and written, so its large initializers are external.

    Returns:
        A new model and the expansions of its matmuls; empty if the model has no MatMulNBits.
    """
    model = model.clone()
    matmuls = [n for n in nodes_of(model, "MatMulNBits") if not any(o.is_graph_output() for o in n.outputs)]
    if not matmuls:
        return model, ()
    rewriting = _Rewriting(model)
    for node in matmuls:
        rewriting.expand(node)
    used = {value for node in model.graph for value in node.inputs}
    for value in [v for v in model.graph.initializers.values() if v not in used]:
        model.graph.initializers.pop(str(value.name))
    return model, tuple(rewriting.expansions)


class _Rewriting:
    """The state while the matmuls of a graph are replaced in graph order."""

    def __init__(self, model: ir.Model) -> None:
        self.expansions: list[Int8Repack] = []
        self._model = model
        self._middles = _middles(model)
        self._rounded: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._scaled: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        """For each matmul's result: the value before scaling, and the scales of the tokens."""

    def expand(self, node: ir.Node) -> None:
        """Replace a MatMulNBits by integer matmuls."""
        patch, x = Patch(self._model, node), node.inputs[0]
        assert x is not None
        if x not in self._rounded:
            self._rounded[x] = self._round(patch, x)
        whole, split = _expansion(patch), _only_split(node)
        if split is None:
            patch.replace(self._matmul(patch, whole, *self._rounded[x]))
            return
        # Matmuls were joined for the decoder. For prompts, separate ones are large enough and avoid the Split's copy.
        rows = split.inputs[1]
        assert rows is not None and rows.const_value is not None
        start = 0
        for part, count in zip(split.outputs, rows.const_value.numpy().tolist(), strict=True):
            piece = _take_rows(whole, start, count)
            ir.convenience.replace_all_uses_with(part, self._matmul(patch, piece, *self._rounded[x]))
            start += count
        self._model.graph.remove(split, safe=True)
        patch.replace()

    def _round(self, patch: Patch, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Round ``x`` [1,S,K] to uint8 around 128; also return the scales [1,S,1] of its tokens."""
        before = self._unscale(x)
        size = patch.op("Abs", [x], "size")
        largest = patch.op("ReduceMax", [size, patch.constant("axis.last", [-1])], "largest", keepdims=1)
        scale = patch.op("Mul", [largest, patch.constant("step", 1 / 127, np.float32)], "token_scale")
        flat = patch.op("Reshape", [scale, patch.constant("shape.flat", [-1])], "token_scale.flat")
        rounded = patch.op("QuantizeLinear", [x, flat, self._middles], "rounded", axis=1)
        return rounded, scale if before is None else patch.op("Mul", [scale, before], "token_scale.whole")

    def _unscale(self, x: ir.Value) -> ir.Value | None:
        """Remove and return the token scales of a factor of ``x``, if that is an elementwise product.

        Rounding divides a token by its largest element, so its codes stay the same and the scale can be applied later.
        """
        producer = x.producer()
        if producer is None or producer.op_type != "Mul" or {n.op_type for n, _ in x.uses()} != {"MatMulNBits"}:
            return None
        for i, factor in enumerate(producer.inputs):
            if factor in self._scaled and len(factor.uses()) == 1:
                matmul, scale = self._scaled[factor]
                scaling = next(node for node, _ in matmul.uses())
                producer.replace_input_with(i, matmul)
                self._model.graph.remove(scaling, safe=True)
                return scale
        return None

    def _matmul(self, patch: Patch, expansion: Int8Repack, rounded: ir.Value, scale: ir.Value) -> ir.Value:
        self.expansions.append(expansion)
        weight, channel = (initializer(patch.graph, tensor) for tensor in _expanded(expansion))
        one, middle = patch.constant("one.float", 1.0, np.float32), patch.constant("middle", 128, np.uint8)
        inputs = [rounded, weight, one, channel, middle]
        name = f"/{expansion.name}"
        matmul = patch.op("MatMulIntegerToFloat", inputs, f"{name}/matmul", domain="com.microsoft")
        scaled = patch.op("Mul", [matmul, scale], f"{name}/scaled")
        self._scaled[scaled] = matmul, scale
        return scaled


def _only_split(node: ir.Node) -> ir.Node | None:
    """The only user of a matmul, if it is a Split along the channels with constant sizes."""
    users = [user for user, _ in node.outputs[0].uses()]
    if len(users) != 1 or users[0].op_type != "Split" or users[0].attributes["axis"].as_int() != -1:
        return None
    sizes = users[0].inputs[1]
    return users[0] if sizes is not None and sizes.const_value is not None else None


def _expansion(patch: Patch) -> Int8Repack:
    codes, scales = _region(patch, 1), _region(patch, 2)
    return Int8Repack(
        name=str(patch.node.name),
        rows=patch.attribute("N", 0),
        columns=patch.attribute("K", 0),
        bits=patch.attribute("bits", 4),
        block_size=patch.attribute("block_size", 0),
        codes=codes,
        scales=scales,
        half_scales=patch.stored(2)[1].dtype == ir.DataType.FLOAT16,
        zeros=None if patch.input(3) is None else _region(patch, 3),
    )


def _take_rows(whole: Int8Repack, start: int, count: int) -> Int8Repack:
    """Some rows of a weight; its codes, scales and zero points are stored row by row."""

    def cut(region: Region) -> Region:
        row = region.bytes // whole.rows
        return Region(region.offset + start * row, count * row)

    return replace(
        whole,
        name=f"{whole.name}.{start}",
        rows=count,
        codes=cut(whole.codes),
        scales=cut(whole.scales),
        zeros=None if whole.zeros is None else cut(whole.zeros),
    )


def _region(patch: Patch, index: int) -> Region:
    tensor = patch.stored(index)[1]
    if not isinstance(tensor, ir.ExternalTensor):
        raise patch.refuse(f"its input {index} is not external data")
    return Region(tensor.offset or 0, tensor.length or tensor.nbytes)


def _middles(model: ir.Model) -> ir.Value:
    """The zero points: 128 for every token, uint8 [S], the same shape as the scales."""
    graph = model.graph
    ids = next(value for value in graph.inputs if value.name == "input_ids")
    middle = initializer(graph, ir.tensor(np.asarray(128, np.uint8), name="middle"))
    count, middles = ir.Value(name="tokens"), ir.Value(name="middles")
    first = graph[0]
    graph.insert_before(first, ir.node("Shape", [ids], {"start": 1, "end": 2}, name="tokens", outputs=[count]))
    graph.insert_before(first, ir.node("Expand", [middle, count], name="middles", outputs=[middles]))
    return middles


def _expanded(expansion: Int8Repack) -> Iterator[ir.ExternalTensor]:
    """The initializers that ``run`` will fill: weight [K,N] int8 and channel scales [N]."""
    shapes = ((expansion.columns, expansion.rows), INT8), ((expansion.rows,), FLOAT)
    for name, (shape, dtype) in zip(expansion.initializers, shapes, strict=True):
        nbytes = int(np.prod(shape)) * dtype.bitwidth // 8
        yield ir.ExternalTensor(EXPANDED, 0, nbytes, dtype, shape=ir.Shape(shape), name=name)
