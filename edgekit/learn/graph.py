"""The float graph of a decoder as a torch module: the operators that graph/ emits, on sequences without a past.

What is trained is so the arithmetic of the graph that ships, for every family that the builder knows. The nodes of one
layer are a ``Segment``: what is recomputed in the backward pass if memory is short, and what FSDP shards.
Letters in shapes: B windows, S tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from edgekit.errors import LearnError
from edgekit.types.tensor_names import EMBEDDING, HEAD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import onnx_ir as ir

    from edgekit.types import Weights

    Op = Callable[[ir.Node, list[Any]], tuple[Tensor | None, ...]]
    Rounding = Callable[[str, Tensor], Tensor]

LAYER = re.compile(r"model\.layers\.(\d+)\.")


class FloatWeight(nn.Module):
    """A weight as it is; ``trained`` or fixed."""

    def __init__(self, value: Tensor, *, trained: bool) -> None:
        super().__init__()
        self.value = nn.Parameter(value, requires_grad=trained)

    def forward(self) -> Tensor:
        """The weight."""
        return self.value


class Decoder(nn.Module):
    """A decoder up to the input of its head; ``table()`` and ``head()`` are the token table and the head [V,H]."""

    def __init__(self, model: ir.Model, weights: dict[str, nn.Module], *, rounding: Rounding | None = None) -> None:
        """Take the nodes of a model.

        Args:
            model: the float graph of graph/.
            weights: a module for each weight; called without arguments it gives the tensor.
            rounding: what the device does to the input of the matmul of a weight, such as 8-bit integers
                (see fake_quant.py).

        Raises:
            LearnError: an operator that graph/ never emits.
        """
        super().__init__()
        self.table = weights[EMBEDDING]
        self.head = weights.get(HEAD, self.table)
        self.recompute = False
        nodes = list(model.graph)
        last = next(n for n in nodes if any(v.name == "logits" for v in n.outputs))
        self._result = str(_value(last.inputs[0]).name)
        needed = _needed(nodes, self._result)
        constants, needed = _fold(needed)
        first = _segments(needed)
        self.once = Segment([n for i, n in zip(first, needed, strict=True) if i < 0], weights, constants, rounding)
        self.layers = nn.ModuleList(
            Segment([n for i, n in zip(first, needed, strict=True) if i == layer], weights, constants, rounding)
            for layer in range(max(first) + 1)
        )
        _wire([self.once, *self.layers], self._result)

    def forward(self, tokens: Tensor) -> Tensor:
        """The input of the head, [B,S,H] float32, for tokens [B,S]."""
        values: dict[str, Tensor] = {
            "model.embed_tokens": F.embedding(tokens, self.table()),
            "position_ids": torch.arange(tokens.shape[1], device=tokens.device)[None],
        }
        for segment in (self.once, *self.layers):
            inputs = [values[name] for name in segment.inputs]
            if self.recompute and torch.is_grad_enabled() and segment is not self.once:
                outputs = checkpoint(segment, *inputs, use_reentrant=False)
            else:
                outputs = segment(*inputs)
            values.update(zip(segment.outputs, outputs, strict=True))
        return values[self._result]


class Segment(nn.Module):
    """Nodes that run together. ``inputs`` and ``outputs`` name the values that cross its border."""

    def __init__(
        self,
        nodes: Sequence[ir.Node],
        weights: dict[str, nn.Module],
        constants: dict[str, Tensor],
        rounding: Rounding | None,
    ) -> None:
        super().__init__()
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self._nodes, self._rounding = list(nodes), rounding
        self._constants: dict[str, str] = {}
        self.weights = nn.ModuleDict()
        for node in self._nodes:
            if node.op_type not in OPS and node.op_type != "MatMul":
                raise LearnError(f"operator {node.op_type} cannot be trained through", "use `exporter=native`")
            for value in node.inputs:
                if value is None:
                    continue
                name = str(value.name)
                if name in weights:
                    self.weights[_key(name)] = weights[name]
                elif name in constants and name not in self._constants:
                    self._constants[name] = f"constant{len(self._constants)}"
                    self.register_buffer(self._constants[name], constants[name], persistent=False)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The values named in ``outputs``, from those in ``inputs``."""
        values: dict[str, Tensor] = dict(zip(self.inputs, inputs, strict=True))
        for node in self._nodes:
            if node.op_type == "MatMul":
                results: tuple[Tensor | None, ...] = (self._matmul(node, values),)
            else:
                results = OPS[node.op_type](node, [self._get(v, values) for v in node.inputs])
            for value, result in zip(node.outputs, results, strict=False):
                if result is not None:
                    values[str(value.name)] = result
        return tuple(values[name] for name in self.outputs)

    def _matmul(self, node: ir.Node, values: dict[str, Tensor]) -> Tensor:
        x, name = values[str(_value(node.inputs[0]).name)], str(_value(node.inputs[1]).name)
        if self._rounding is not None:
            x = self._rounding(name, x)
        return F.linear(x, self.weights[_key(name)]())

    def _get(self, value: ir.Value | None, values: dict[str, Tensor]) -> Tensor | None:
        """A node's input; None for the cache and its lengths, which sequences without a past do not read."""
        name = "" if value is None else str(value.name)
        if name in values:
            return values[name]
        if name in self._constants:
            constant: Tensor = getattr(self, self._constants[name])
            return constant
        if _key(name) in self.weights:
            weight: Tensor = self.weights[_key(name)]()
            return weight
        return None


def float_weights(weights: Weights, *, trained: bool) -> dict[str, nn.Module]:
    """Every weight as it is, float32."""
    return {n: FloatWeight(torch.from_numpy(weights.read(n)), trained=trained) for n in weights.names()}


# --- which nodes, where -------------------------------------------------------------------------


def _key(name: str) -> str:
    """A weight's name as torch takes names of modules."""
    return name.replace(".", "-")


def _value(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def _used(node: ir.Node) -> Iterable[ir.Value]:
    """The inputs that matter without a past: not the cache, its lengths, and the tokens whose rows are looked up."""
    if node.op_type == "GroupQueryAttention":
        inputs = [node.inputs[i] for i in (0, 1, 2, *range(7, len(node.inputs)))]
    else:
        inputs = list(node.inputs)
    return [v for v in inputs if v is not None]


def _needed(nodes: Sequence[ir.Node], result: str) -> list[ir.Node]:
    """The nodes that ``result`` follows from, in order; the table's lookup is the decoder's own."""
    wanted, kept = {result}, []
    for node in reversed(nodes):
        if any(v.name in wanted for v in node.outputs) and node.name != "model.embed_tokens":
            kept.append(node)
            wanted.update(str(v.name) for v in _used(node))
    return kept[::-1]


def _fold(nodes: Sequence[ir.Node]) -> tuple[dict[str, Tensor], list[ir.Node]]:
    """Constants by name, computed once (the tables of the rotary embedding), and the nodes that are left."""
    known: dict[str, Tensor] = {}
    left = []
    for node in nodes:
        for value in _used(node):
            if value.const_value is not None and not _is_weight(str(value.name)):
                known[str(value.name)] = torch.from_numpy(np.array(value.const_value.numpy()))
        if node.op_type in OPS and all(str(v.name) in known for v in _used(node)):
            results = OPS[node.op_type](node, [known[str(v.name)] for v in _used(node)])
            known.update((str(v.name), r) for v, r in zip(node.outputs, results, strict=False) if r is not None)
        else:
            left.append(node)
    return known, left


def _is_weight(name: str) -> bool:
    return name.startswith(("model.", "lm_head.")) and name.endswith((".weight", ".bias"))


def _segments(nodes: Sequence[ir.Node]) -> list[int]:
    """The layer of every node: -1 before the first, and what follows the last layer belongs to it."""
    layers, layer = [], -1
    for node in nodes:
        found = LAYER.match(str(node.name))
        layer = int(found[1]) if found else layer
        layers.append(layer)
    return layers


def _wire(segments: Sequence[Segment], result: str) -> None:
    """Name the values that go from one segment to a later one."""
    made = {"model.embed_tokens": -1, "position_ids": -1}
    for i, segment in enumerate(segments):
        for node in segment._nodes:
            for value in _used(node):
                name = str(value.name)
                if name in made and made[name] != i and name not in segment.inputs:
                    segment.inputs.append(name)
                    maker = made[name]
                    if maker >= 0 and name not in segments[maker].outputs:
                        segments[maker].outputs.append(name)
            made.update((str(v.name), i) for v in node.outputs)
    if result not in segments[-1].outputs:
        segments[-1].outputs.append(result)


# --- operators ----------------------------------------------------------------------------------


def _attribute(node: ir.Node, name: str, default: float) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def _norm(node: ir.Node, inputs: list[Any]) -> tuple[Tensor]:
    x, weight = inputs
    return (F.rms_norm(x, (x.shape[-1],), weight, _attribute(node, "epsilon", 1e-5)),)


def _skip_norm(node: ir.Node, inputs: list[Any]) -> tuple[Tensor | None, ...]:
    total = inputs[0] + inputs[1]
    return (*_norm(node, [total, inputs[2]]), None, None, total)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first 2 * cos.shape[-1] dimensions of heads [B,S,heads,D] (rotate-half pairing)."""
    half = cos.shape[-1]
    c, s = cos[:, :, None, :], sin[:, :, None, :]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * c - b * s, a * s + b * c, rest], dim=-1)


def _rotary_embedding(node: ir.Node, inputs: list[Any]) -> tuple[Tensor]:
    x, rows, cos, sin = inputs
    heads = x.reshape(*x.shape[:2], int(_attribute(node, "num_heads", 0)), -1)
    return (_rotate(heads, cos[rows], sin[rows]).reshape(x.shape),)


def _attention(node: ir.Node, inputs: list[Any]) -> tuple[Tensor, ...]:
    """GroupQueryAttention without a past on [B,S,heads*D]: causal, with the node's window if it has one."""
    batch, length = inputs[0].shape[:2]
    heads, groups = _attribute(node, "num_heads", 0), _attribute(node, "kv_num_heads", 0)
    q, k, v = (x.reshape(batch, length, n, -1) for x, n in zip(inputs[:3], (heads, groups, groups), strict=True))
    if _attribute(node, "do_rotary", 0):
        cos, sin = inputs[7][inputs[9]], inputs[8][inputs[9]]
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    window, mask = int(_attribute(node, "local_window_size", -1)), None
    if 0 < window < length:
        ones = torch.ones(length, length, dtype=torch.bool, device=q.device)
        mask = ones.tril() & ~ones.tril(-window)
    mixed = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask,
        is_causal=mask is None, scale=_attribute(node, "scale", 1.0), enable_gqa=heads != groups,
    )  # fmt: skip
    return (mixed.transpose(1, 2).reshape(batch, length, -1),)


def _reshape(_: ir.Node, inputs: list[Any]) -> tuple[Tensor]:
    x, shape = inputs
    return (x.reshape([x.shape[i] if n == 0 else int(n) for i, n in enumerate(shape)]),)


def _elementwise(function: Callable[..., Tensor]) -> Op:
    return lambda _, inputs: (function(*inputs),)


def _range(_: ir.Node, inputs: list[Any]) -> tuple[Tensor]:
    start, end, step = (i.item() for i in inputs)
    return (torch.arange(start, end, step, dtype=inputs[0].dtype),)


def _unsqueeze(_: ir.Node, inputs: list[Any]) -> tuple[Tensor]:
    x = inputs[0]
    for axis in sorted(int(a) for a in inputs[1]):
        x = x.unsqueeze(axis)
    return (x,)


def _cast(node: ir.Node, inputs: list[Any]) -> tuple[Tensor]:
    import onnx_ir as ir

    kind = ir.DataType(_attribute(node, "to", 1)).numpy()
    return (inputs[0].to(torch.from_numpy(np.empty(0, kind)).dtype),)


OPS: dict[str, Op] = {
    "Add": _elementwise(torch.add),
    "Mul": _elementwise(torch.mul),
    "Sigmoid": _elementwise(torch.sigmoid),
    "Cos": _elementwise(torch.cos),
    "Sin": _elementwise(torch.sin),
    "GreaterOrEqual": _elementwise(torch.ge),
    "ReduceMax": lambda _, inputs: (inputs[0].amax(),),
    "Concat": lambda node, inputs: (torch.cat(inputs, dim=int(_attribute(node, "axis", 0))),),
    "Range": _range,
    "Unsqueeze": _unsqueeze,
    "Cast": _cast,
    "Reshape": _reshape,
    "SimplifiedLayerNormalization": _norm,
    "SkipSimplifiedLayerNormalization": _skip_norm,
    "RotaryEmbedding": _rotary_embedding,
    "GroupQueryAttention": _attention,
}
