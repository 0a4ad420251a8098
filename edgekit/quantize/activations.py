"""Static quantization of activations: every float value of a static graph becomes 16-bit codes, scale and zero point.

    q = clip(round(x / scale) + zero, 0, 65535),    scale = (high - low) / 65535,    zero = round(-low / scale)

where [low, high] is the value's range on the calibration tokens, extended to include zero. Each value is followed by
QuantizeLinear and DequantizeLinear (QDQ); an NPU's compiler turns the operators between them into integer ones.
Operators that only move data keep the scale of their input, as do the keys and values of the cache, which are codes at
the graph's inputs and outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.types.npu import HIGH, LOW, NEW, PAST

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from edgekit.types import Range

FLOAT, CODES = ir.DataType.FLOAT, ir.DataType.UINT16
LEVELS = 65535

MOVERS = frozenset({"Reshape", "Transpose", "Split", "Identity"})
"""Operators whose outputs are elements of their first input."""

WEIGHT_FORMS = frozenset({"DequantizeLinear", "Cast", "Expand"})
"""Operators between a stored weight and the matmul that reads it."""


def observed(model: ir.Model) -> ir.Model:
    """A copy of a static graph that also outputs every activation's minimum and maximum.

    They are float32 scalars, ``<value>/low`` and ``<value>/high``.
    """
    copy = model.clone()
    graph = copy.graph
    for value in list(_activations(graph)):
        for kind, suffix in (("ReduceMin", LOW), ("ReduceMax", HIGH)):
            name = f"{value.name}{suffix}"
            output = ir.Value(name=name, type=ir.TensorType(FLOAT), shape=ir.Shape([]))
            graph.append(ir.node(kind, [value], {"keepdims": 0}, name=name, outputs=[output]))
            graph.outputs.append(output)
    return copy


def quantize_activations(model: ir.Model, ranges: Sequence[Range]) -> ir.Model:
    """Quantize every activation of a static graph, in place.

    Args:
        model: the model passed to ``observed``, or one with the same names.
        ranges: the observed ranges, by value name.

    Raises:
        KeyError: a value has no range.
    """
    return _Inserter(model, ranges).insert()


class _Inserter:
    def __init__(self, model: ir.Model, ranges: Sequence[Range]) -> None:
        self.model, self.graph = model, model.graph
        self._ranges = {r.name: (min(r.low, 0.0), max(r.high, 0.0)) for r in ranges}
        self._same = dict(_moved(model.graph))
        self._made: dict[str, tuple[ir.Value, ir.Value]] = {}
        self._first = model.graph[0]

    def insert(self) -> ir.Model:
        for node in [n for n in self.graph if n.op_type not in WEIGHT_FORMS]:
            for index, value in enumerate(node.inputs):
                if value is not None and value.const_value is not None and value.const_value.dtype == FLOAT:
                    node.replace_input_with(index, self._constant(value))
        for value in list(_activations(self.graph)):
            self._code(value)
        return self.model

    def _code(self, value: ir.Value) -> None:
        """Insert QDQ nodes after a value; the cache's inputs are codes already."""
        name, producer = str(value.name), value.producer()
        scale, zero = self._parameters(self._root(name), *self._ranges[self._root(name)])
        users = list(value.uses())
        if name.startswith(PAST):
            value.type = ir.TensorType(CODES)
            nodes = [self._node("DequantizeLinear", [value, scale, zero], f"{name}/dq")]
        else:
            codes = self._node("QuantizeLinear", [value, scale, zero], f"{name}/q")
            nodes = [codes, self._node("DequantizeLinear", [codes.outputs[0], scale, zero], f"{name}/dq")]
        for user, index in users:
            user.replace_input_with(index, nodes[-1].outputs[0])
        if producer is None:
            self.graph.insert_before(self._first, nodes)
        else:
            self.graph.insert_after(producer, nodes)
        if value.is_graph_output():
            self._put_out(value, nodes)

    def _put_out(self, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
        """Keep the name of a graph output: codes for the cache, floats for all others."""
        name, cache = str(value.name), str(value.name).startswith(NEW)
        result = nodes[0 if cache else -1].outputs[0]
        value.name, result.name = f"{name}/float", name
        result.type, result.shape = ir.TensorType(CODES if cache else FLOAT), value.shape
        self.graph.outputs[list(self.graph.outputs).index(value)] = result

    def _constant(self, value: ir.Value) -> ir.Value:
        """Quantize a float constant, such as a norm's weight."""
        assert value.const_value is not None
        name, data = str(value.name), value.const_value.numpy()
        known = f"{name}/dq"
        found = next((n.outputs[0] for n in self.graph if n.name == known), None)
        if found is not None:
            return found
        low, high = min(0.0, float(data.min())), max(0.0, float(data.max()))
        scale, zero = self._parameters(name, low, high)
        step, middle = _number(scale), int(_number(zero))
        codes = np.clip(np.rint(data / step) + middle, 0, LEVELS).astype(np.uint16)
        node = self._node("DequantizeLinear", [self._store(f"{name}/codes", codes), scale, zero], known)
        self.graph.insert_before(self._first, node)
        return node.outputs[0]

    def _parameters(self, name: str, low: float, high: float) -> tuple[ir.Value, ir.Value]:
        if name not in self._made:
            scale = np.float32(max((high - low) / LEVELS, 1e-9))
            zero = np.asarray(np.clip(np.rint(-low / scale), 0, LEVELS), np.uint16)
            self._made[name] = (self._store(f"{name}/scale", np.asarray(scale)), self._store(f"{name}/zero", zero))
        return self._made[name]

    def _store(self, name: str, data: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
        tensor = ir.tensor(data, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(data.shape), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def _root(self, name: str) -> str:
        while name in self._same:
            name = self._same[name]
        return name

    @staticmethod
    def _node(kind: str, inputs: Sequence[ir.Value], name: str) -> ir.Node:
        return ir.node(kind, inputs, name=name, outputs=[ir.Value(name=name)])


def _number(value: ir.Value) -> float:
    assert value.const_value is not None
    return float(value.const_value.numpy().item())


def _activations(graph: ir.Graph) -> Iterator[ir.Value]:
    """Values that depend on the inputs, all of which are float in a static graph."""
    constants: set[ir.Value | None] = {None}
    yield from graph.inputs
    for node in graph:
        if all(v in constants or (v is not None and v.const_value is not None) for v in node.inputs):
            constants |= set(node.outputs)
        else:
            yield from (v for v in node.outputs if v.name)


def _moved(graph: ir.Graph) -> Iterable[tuple[str, str]]:
    """Pairs (value, value whose scale it shares): outputs of MOVERS, and the cache with its new keys and values."""
    for node in graph:
        if node.op_type in MOVERS:
            yield from ((str(v.name), str(node.inputs[0] and node.inputs[0].name)) for v in node.outputs)
        elif node.op_type == "Concat" and str(node.inputs[0] and node.inputs[0].name).startswith(PAST):
            past, new = (str(v and v.name) for v in node.inputs)
            yield past, new
            yield str(node.outputs[0].name), new
