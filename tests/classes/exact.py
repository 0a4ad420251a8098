"""A bundle's graphs in NumPy, products of integers in exact arithmetic: what every processor has to compute.

onnx's reference evaluator walks the graph; what it lacks, ONNX Runtime's own operators, stands here by their
documentation (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from edgekit.run.prefill_weights import expand
from edgekit.types import EXPANDED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edgekit.types import Bundle

MS = "com.microsoft"


def exact_logits(bundle: Bundle, tokens: Sequence[int], *, prompts: bool = False, rounded: bool = True) -> NDArray[Any]:
    """Logits [S, V] of a fresh sequence.

    Args:
        bundle: the opened bundle.
        tokens: S of them.
        prompts: on the graph for prompts instead of the decoder's.
        rounded: MatMulNBits at level 4 rounds activations to 8 bits by blocks of its weights, as on x86.
    """
    graph = bundle.path / bundle.manifest.prefill.graph if prompts else bundle.graph
    model = onnx.load(graph, load_external_data=False)
    made = dict(expand(_data(bundle), bundle.manifest.prefill.expansions, 1)) if prompts else {}
    for tensor in model.graph.initializer:
        _fill(tensor, graph.parent, made)
    _MatMulNBits.rounded = rounded
    ids = np.array([tokens], np.int64)
    spec = bundle.manifest.spec
    feeds = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(len(tokens), dtype=np.int64)[None],
    }
    empty = np.zeros((1, spec.kv_heads, 0, spec.head_dim), np.float32)
    inputs = {i.name for i in model.graph.input}
    feeds |= {name: empty for name in inputs if name.startswith("past_key_values.")}
    evaluator = ReferenceEvaluator(model, new_ops=OPERATORS)
    return evaluator.run(["logits"], {name: value for name, value in feeds.items() if name in inputs})[0][0]


def _data(bundle: Bundle) -> Path:
    return bundle.graph.with_name(f"{bundle.graph.name}_data")


def _fill(tensor: onnx.TensorProto, folder: Path, made: dict[str, NDArray[Any]]) -> None:
    """Put an initializer's bytes into the model: those made at load, or those of the data file."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return
    place = {entry.key: entry.value for entry in tensor.external_data}
    if place["location"] == EXPANDED:
        tensor.CopyFrom(numpy_helper.from_array(made[tensor.name], tensor.name))
        return
    with (folder / place["location"]).open("rb") as file:
        file.seek(int(place.get("offset", 0)))
        tensor.raw_data = file.read(int(place["length"])) if "length" in place else file.read()
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]


def _codes(packed: NDArray[np.uint8], bits: int) -> NDArray[np.int64]:
    """Codes along the last axis, the first in the low bits."""
    parts = [(packed >> place) & (2**bits - 1) for place in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(*packed.shape[:-1], -1).astype(np.int64)


class _MatMulNBits(OpRun):
    op_domain, rounded = MS, True

    def _run(self, x, codes, scales, zeros=None, *_, K=0, N=0, bits=4, block_size=32, accuracy_level=0, **__):
        blocks = -(-K // block_size)
        q = _codes(codes.reshape(N, blocks, -1), bits)
        middle = 2 ** (bits - 1)
        z = np.full((N, blocks), middle) if zeros is None else _codes(zeros.reshape(N, -1), bits)[:, :blocks]
        w = q - z[..., None]
        padded = np.zeros((*x.shape[:-1], blocks * block_size))
        padded[..., :K] = x
        padded = padded.reshape(*x.shape[:-1], blocks, block_size)
        steps = np.ones((*x.shape[:-1], blocks, 1))
        if accuracy_level == 4 and self.rounded:
            largest = np.abs(padded).max(axis=-1, keepdims=True).astype(np.float32)
            steps = (largest / np.float32(127)).astype(np.float64)
            padded = np.rint(padded * np.divide(1, steps, out=np.zeros_like(steps), where=steps > 0))
        sums = np.einsum("...bk,nbk->...nb", padded, w.astype(np.float64))
        y = (sums * scales.reshape(N, blocks).astype(np.float64) * steps[..., 0][..., None, :]).sum(axis=-1)
        return (y.astype(x.dtype),)


class _MatMulIntegerToFloat(OpRun):
    op_domain = MS

    def _run(self, a, b, a_scale, b_scale, a_zero=None, b_zero=None, bias=None, **_):
        a = a.astype(np.int64) - (0 if a_zero is None else a_zero.astype(np.int64))
        b = b.astype(np.int64) - (0 if b_zero is None else b_zero.astype(np.int64))
        y = (a @ b).astype(np.float64) * a_scale * b_scale
        return ((y if bias is None else y + bias).astype(np.float32),)


class _GatherBlockQuantized(OpRun):
    op_domain = MS

    def _run(self, table, indices, scales, zeros=None, bits=4, block_size=128, gather_axis=0, quantize_axis=1, **_):
        assert (gather_axis, quantize_axis) == (0, 1)
        q = _codes(table, bits)[indices]
        z = 2 ** (bits - 1) if zeros is None else np.repeat(_codes(zeros, bits)[indices], block_size, axis=-1)
        s = np.repeat(scales.astype(np.float32)[indices], block_size, axis=-1)[..., : q.shape[-1]]
        z = z if np.isscalar(z) else z[..., : q.shape[-1]]
        return (((q - z) * s).astype(scales.dtype),)


def _norm(x: NDArray[Any], weight: NDArray[Any], epsilon: float) -> NDArray[Any]:
    wide = x.astype(np.float64)
    return (wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + epsilon) * weight).astype(x.dtype)


class _SimplifiedLayerNormalization(OpRun):
    op_domain = ""

    def _run(self, x, weight, axis=-1, epsilon=1e-5, stash_type=1, **_):
        return (_norm(x, weight, epsilon),)


class _SkipSimplifiedLayerNormalization(OpRun):
    op_domain = MS

    def _run(self, x, skip, weight, *_, epsilon=1e-5, **__):
        total = x + skip
        nothing = np.zeros(0, np.float32)
        return (_norm(total, weight, epsilon), nothing, nothing, total)[: len(self.onnx_node.output)]


class _FusedMatMul(OpRun):
    op_domain = MS

    def _run(self, a, b, alpha=1.0, transA=0, transB=0, **_):
        a, b = (np.swapaxes(v, -1, -2) if t else v for v, t in ((a, transA), (b, transB)))
        return ((alpha * (a @ b)).astype(a.dtype),)


class _GroupQueryAttention(OpRun):
    op_domain = MS

    def _run(self, query, key, value, past_key, past_value, last, total, cos=None, sin=None, positions=None, *_, **a):
        heads, groups = a["num_heads"], a["kv_num_heads"]
        size = past_key.shape[-1]
        if key is None or key.size == 0:
            query, key, value = np.split(query, np.cumsum([heads * size, groups * size]), axis=-1)
        q, k, v = (_heads(x, size) for x in (query, key, value))
        if a.get("do_rotary"):
            at = np.arange(q.shape[2]) if positions is None else positions[0]
            q, k = (_rotate(x, cos[at], sin[at]) for x in (q, k))
        k, v = np.concatenate([past_key, k], axis=2), np.concatenate([past_value, v], axis=2)
        present = k.astype(np.float32), v.astype(np.float32)
        k, v = (np.repeat(x.astype(np.float64), heads // groups, axis=1) for x in (k, v))
        scores = q.astype(np.float64) @ np.swapaxes(k, -1, -2) * (a.get("scale") or size**-0.5)
        rows, columns = np.arange(k.shape[2] - q.shape[2], k.shape[2])[:, None], np.arange(k.shape[2])[None]
        window = a.get("local_window_size", -1)
        seen = (columns <= rows) & ((rows - columns < window) | (window < 0))
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out = np.swapaxes(weights @ v, 1, 2)
        return (out.reshape(*out.shape[:2], -1).astype(np.float32), *present)


def _heads(x: NDArray[Any], size: int) -> NDArray[Any]:
    return np.swapaxes(x.reshape(*x.shape[:2], -1, size), 1, 2)


def _rotate(x: NDArray[Any], cos: NDArray[Any], sin: NDArray[Any]) -> NDArray[Any]:
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1).astype(np.float32)


def _named(operator: type[OpRun]) -> type[OpRun]:
    """The evaluator finds operators by the names of their classes."""
    return type(operator.__name__.removeprefix("_"), (operator,), {"op_domain": operator.op_domain})


OPERATORS = [
    _named(operator)
    for operator in (
        _MatMulNBits,
        _MatMulIntegerToFloat,
        _GatherBlockQuantized,
        _SimplifiedLayerNormalization,
        _SkipSimplifiedLayerNormalization,
        _FusedMatMul,
        _GroupQueryAttention,
    )
]
