"""Evaluate the float graph in NumPy, node by node, for many slightly different variants of the model at once.

Axis 0 of every hidden value is the variant: row 0 is the model itself, row k the model with one weight changed. A
variant starts at the node of its weight; rows missing from a value are variants that still equal row 0. So weights are
read once, in graph order, and each is dropped after its node.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import ThreadpoolController

from edgekit.errors import QuantizeError
from edgekit.numerics.rms_norm import rms_norm
from edgekit.quantize.tensor import cores
from edgekit.types.tensor_names import EMBEDDING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    import onnx_ir as ir
    from numpy.typing import NDArray

    from edgekit.types import Weights

    Array = NDArray[Any]
    Op = Callable[[ir.Node, list[Array]], tuple[Array | None, ...]]


BAND = 1 << 19
"""Weights that a core processes at once, so that they stay in its cache between reading and multiplying."""

BANDS = 4
"""The minimum number of bands of a matrix; fixed, so that results do not depend on the number of cores."""


def run_until(
    model: ir.Model,
    weights: Weights,
    feeds: Mapping[str, Array],
    variants: Callable[[str, Array], Iterator[Array]],
    stop: str,
    see: Callable[[str, Array], None] = lambda *_: None,
) -> tuple[Array, ir.Node]:
    """Evaluate all nodes before the one that produces the output ``stop``; takes the arguments of ``pause_at_matmuls``.

    Returns:
        The first input of the node that produces ``stop``, [variants, S, H], and that node.

    Raises:
        QuantizeError: an operator that graph/ never emits.
    """
    steps = pause_at_matmuls(model, weights, feeds, variants, stop, see)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: tuple[Array, ir.Node] = end.value
            return result


def pause_at_matmuls(
    model: ir.Model,
    weights: Weights,
    feeds: Mapping[str, Array],
    variants: Callable[[str, Array], Iterator[Array]],
    stop: str,
    see: Callable[[str, Array], None] = lambda *_: None,
) -> Generator[None, None, tuple[Array, ir.Node]]:
    """Like ``run_until``, but pauses before each matmul, after its input was passed to ``variants``.

    Args:
        model: the float graph of graph/.
        weights: source of the matmuls' matrices, read in bands.
        feeds: graph inputs and precomputed values by name; nodes of the latter are not evaluated.
        variants: called with a matmul's weight name and its input [variants,S,K]; yields changed weights [K,N], each
            of which adds a row.
        stop: a graph output, the logits.
        see: called with the name of every value and the value.

    Raises:
        QuantizeError: an operator that graph/ never emits.
    """
    values: dict[str, Array] = dict(feeds)
    uses = Counter(str(v.name) for node in model.graph for v in node.inputs if v is not None)
    rows = max((len(x) for name, x in feeds.items() if x.ndim == 3), default=1)
    for node in model.graph:
        if any(output.name == stop for output in node.outputs):
            return _widen(_get(node.inputs[0], values), rows), node
        if all(output.name in values for output in node.outputs):
            continue
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and weight.const_value is not None:
            x = _widen(_get(node.inputs[0], values), rows)
            extra = [x[:1] @ changed for changed in variants(str(weight.name), x)]
            yield
            matmul = multiply_by_weight(x, weights, str(weight.name))
            outputs: tuple[Array | None, ...] = (np.concatenate([matmul, *extra]) if extra else matmul,)
            rows += len(extra)
        else:
            outputs = _compute(node, [_get(v, values) for v in node.inputs])
        for value, result in zip(node.outputs, outputs, strict=False):
            if result is not None and value.name:
                values[value.name] = result
                see(value.name, result)
        for used in node.inputs:
            if used is not None:
                uses[str(used.name)] -= 1
                if not uses[str(used.name)]:
                    values.pop(str(used.name), None)
    raise QuantizeError(f"the graph has no output '{stop}'", "use `exporter=native`")


def reference_logits(model: ir.Model, weights: Weights, tokens: Sequence[int]) -> Array:
    """Compute the float model's logits [S, V] for a sequence, in float32; every weight is read once and none is kept.

    Args:
        model: the float graph of graph/, with an untied or tied head.
        weights: the model's weights.
        tokens: S token ids.

    Raises:
        QuantizeError: an operator that graph/ never emits.
    """
    hidden, head = run_until(model, weights, feeds_of(model, weights, tokens), lambda *_: iter(()), "logits")
    table = head.inputs[1]
    assert table is not None
    logits: Array = multiply_by_weight(hidden, weights, str(table.name))[0]
    return logits


def random_tokens(weights: Weights, count: int = 32) -> list[int]:
    """``count`` random tokens, for what needs no data; always the same."""
    tokens: list[int] = np.random.default_rng(0).integers(0, weights.shape(EMBEDDING)[0], count).tolist()
    return tokens


def feeds_of(model: ir.Model, weights: Weights, tokens: Sequence[int]) -> dict[str, Array]:
    """Feeds for tokens and an empty past. Only reads their embeddings."""
    return feeds_of_windows(model, weights, np.asarray([list(tokens)]))


def feeds_of_windows(model: ir.Model, weights: Weights, windows: NDArray[np.int64]) -> dict[str, Array]:
    """Feeds for windows of tokens [n, S], side by side, and empty pasts. Only reads the embeddings of their tokens."""
    count = windows.shape[1]
    tokens, places = np.unique(windows, return_inverse=True)
    rows = np.concatenate([weights.read(EMBEDDING, int(t), int(t) + 1) for t in tokens])
    feeds: dict[str, Array] = {
        "input_ids": windows,
        "model.embed_tokens": rows[places.reshape(windows.shape)],
        "attention_mask": np.ones((1, count), np.int64),
        "position_ids": np.arange(count)[None],
    }
    empty = (str(v.name) for v in model.graph.inputs if str(v.name) not in feeds)
    return {**feeds, **{name: np.empty((1, 0), np.float32) for name in empty}}


def multiply(x: Array, weight: Array) -> Array:
    """Multiply [variants,S,K] by [K,N] in one matmul; NumPy would compute one per variant."""
    return (x.reshape(-1, x.shape[-1]) @ weight).reshape(*x.shape[:-1], weight.shape[1])


def multiply_by_weight(x: Array, weights: Weights, name: str) -> Array:
    """Multiply [variants,S,K] by the transposed weight ``name`` [N,K], with a band of it on each core."""
    count, columns = weights.shape(name)
    step = ceil(count / max(BANDS, count * columns // BAND))
    flat = x.reshape(-1, columns).T
    out = np.empty((flat.shape[1], count), np.float32)

    def work(start: int) -> None:
        rows = slice(start, start + step)
        out[:, rows] = (weights.read(name, rows.start, rows.stop) @ flat).T

    # BLAS's own threads would spin between matmuls: a third of a build's CPU time.
    with single_blas(), ThreadPoolExecutor(cores()) as pool:
        for _ in pool.map(work, range(0, count, step)):
            pass
    return out.reshape(*x.shape[:-1], count)


def single_blas() -> AbstractContextManager[object]:
    """BLAS runs on one thread while this lasts: the threads are ours."""
    manager: AbstractContextManager[object] = _blas().limit(limits=1, user_api="blas")
    return manager


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _get(value: ir.Value | None, values: dict[str, Array]) -> Array:
    if value is None:
        return np.empty(0)
    if value.const_value is not None:
        return value.const_value.numpy()
    return values[str(value.name)]


def _widen(x: Array, rows: int) -> Array:
    """Extend an array to ``rows`` rows with copies of row 0, which missing variants still equal."""
    if len(x) == rows:
        return x
    return np.concatenate([x, np.broadcast_to(x[:1], (rows - len(x), *x.shape[1:]))])


def _level(*arrays: Array) -> list[Array]:
    """Extend arrays of rank 3 or more to the rows of the longest."""
    rows = max((len(a) for a in arrays if a.ndim >= 3), default=1)
    return [_widen(a, rows) if a.ndim >= 3 and len(a) > 1 else a for a in arrays]


def _compute(node: ir.Node, inputs: list[Array]) -> tuple[Array | None, ...]:
    """A node's outputs. Windows are taken one after the other, so that what lies between is small."""
    op = _op(node)
    rows = {len(x) for x in inputs if x.ndim == 3}
    if node.op_type not in BY_WINDOW or len(rows) != 1 or rows == {1}:
        return op(node, inputs)
    (count,) = rows
    made: list[Array | None] = []
    for row in range(count):
        results = op(node, [x[row : row + 1] if x.ndim == 3 else x for x in inputs])
        made = made or [None if r is None else np.empty((count, *r.shape[1:]), r.dtype) for r in results]
        for whole, result in zip(made, results, strict=True):
            if whole is not None:
                whole[row : row + 1] = result
    return tuple(made)


def _op(node: ir.Node) -> Op:
    if node.op_type not in OPS:
        raise QuantizeError(
            f"operator {node.op_type} is not supported by the sensitivity measurement of a budget",
            "use `exporter=native`, or a recipe with [[override]] tables instead of a budget",
        )
    return OPS[node.op_type]


def _attribute(node: ir.Node, name: str, default: float) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def _norm(node: ir.Node, inputs: list[Array]) -> tuple[Array]:
    return (rms_norm(inputs[0], inputs[1], _attribute(node, "epsilon", 1e-5)),)


def _skip_norm(node: ir.Node, inputs: list[Array]) -> tuple[Array | None, ...]:
    a, b = _level(inputs[0], inputs[1])
    total = a + b
    return (*_norm(node, [total, inputs[2]]), None, None, total)


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate the first 2 * cos.shape[-1] dimensions of heads [r,S,heads,D] (rotate-half pairing)."""
    half = cos.shape[-1]
    c, s = cos[:, :, None, :], sin[:, :, None, :]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([a * c - b * s, a * s + b * c, rest], axis=-1)


def _rotary_embedding(node: ir.Node, inputs: list[Array]) -> tuple[Array]:
    x, rows, cos, sin = inputs
    heads = x.reshape(*x.shape[:2], _attribute(node, "num_heads", 0), -1)
    return (_rotate(heads, cos[rows], sin[rows]).reshape(x.shape),)


def _attention(node: ir.Node, inputs: list[Array]) -> tuple[Array, ...]:
    """GroupQueryAttention without a past on inputs [r,S,heads*D]: causal, with the node's window if it has one."""
    rows, length = max(map(len, inputs[:3])), inputs[0].shape[1]
    q, k, v = (_widen(x, rows) for x in inputs[:3])
    heads, groups = _attribute(node, "num_heads", 0), _attribute(node, "kv_num_heads", 0)
    q, k, v = (x.reshape(rows, length, n, -1) for x, n in ((q, heads), (k, groups), (v, groups)))
    if _attribute(node, "do_rotary", 0):
        cos, sin = inputs[7][inputs[9]], inputs[8][inputs[9]]
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    seen = np.tril(np.ones((length, length), bool))
    window = _attribute(node, "local_window_size", -1)
    if window > 0:
        seen &= ~np.tril(np.ones((length, length), bool), -window)
    q = q.transpose(0, 2, 1, 3).reshape(rows, groups, heads // groups, length, -1)
    k, v = k.transpose(0, 2, 3, 1)[:, :, None], v.transpose(0, 2, 1, 3)[:, :, None]
    scores = (q @ k) * np.float32(_attribute(node, "scale", 1.0))
    scores = np.where(seen, scores, np.float32(-np.inf))
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    mixed = (scores @ v).reshape(rows, heads, length, -1)
    return (mixed.transpose(0, 2, 1, 3).reshape(rows, length, -1),)


def _elementwise(function: Callable[..., Array]) -> Op:
    return lambda _, inputs: (function(*_level(*inputs)),)


def _cast(node: ir.Node, inputs: list[Array]) -> tuple[Array]:
    import onnx_ir as ir

    return (inputs[0].astype(ir.DataType(_attribute(node, "to", 1)).numpy()),)


def _reshape(_: ir.Node, inputs: list[Array]) -> tuple[Array]:
    x, shape = inputs
    return (x.reshape([x.shape[i] if n == 0 else int(n) for i, n in enumerate(shape)]),)


def _reduce(function: Callable[..., Array]) -> Op:
    def apply(node: ir.Node, inputs: list[Array]) -> tuple[Array]:
        axes = tuple(int(a) for a in inputs[1]) if len(inputs) > 1 and inputs[1].size else None
        return (np.asarray(function(inputs[0], axis=axes, keepdims=bool(_attribute(node, "keepdims", 1)))),)

    return apply


def _shape(node: ir.Node, inputs: list[Array]) -> tuple[Array]:
    dims = inputs[0].shape[_attribute(node, "start", 0) : _attribute(node, "end", len(inputs[0].shape))]
    return (np.asarray(dims, np.int64),)


OPS: dict[str, Op] = {
    "Add": _elementwise(np.add),
    "Sub": _elementwise(np.subtract),
    "Mul": _elementwise(np.multiply),
    "Sigmoid": _elementwise(lambda x: np.float32(1) / (np.float32(1) + np.exp(-x))),
    "Cos": _elementwise(np.cos),
    "Sin": _elementwise(np.sin),
    "GreaterOrEqual": _elementwise(np.greater_equal),
    "Concat": lambda node, inputs: (np.concatenate(inputs, axis=_attribute(node, "axis", 0)),),
    "Range": lambda _, inputs: (np.arange(*(i.item() for i in inputs)).astype(inputs[0].dtype),),
    "Unsqueeze": lambda _, inputs: (np.expand_dims(inputs[0], tuple(int(a) for a in inputs[1])),),
    "Cast": _cast,
    "Gather": lambda node, inputs: (np.take(inputs[0], inputs[1], axis=_attribute(node, "axis", 0)),),
    "Reshape": _reshape,
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "Shape": _shape,
    "SimplifiedLayerNormalization": _norm,
    "SkipSimplifiedLayerNormalization": _skip_norm,
    "RotaryEmbedding": _rotary_embedding,
    "GroupQueryAttention": _attention,
}

BY_WINDOW = frozenset(
    {"Add", "Mul", "Sigmoid", "GroupQueryAttention", "RotaryEmbedding"}
    | {"SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"}
)
"""Operators whose three-dimensional inputs and outputs are a row a window."""
