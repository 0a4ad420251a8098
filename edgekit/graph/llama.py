"""Build the ONNX graph of a LLaMA-family decoder with onnx_ir, from token ids to logits.

Families differ only in the numbers of ModelSpec: biases, norms of queries and keys, windows, layers without rope. The
graph uses ONNX Runtime's fused operators; ``lower`` rewrites it for targets that lack them.
Letters in shapes: B batch, S new tokens, P past tokens, T = P + S, H hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from edgekit.errors import GraphError
from edgekit.graph.rope import attention_factor, inverse_frequencies
from edgekit.types.tensor_names import EMBEDDING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt
    from numpy.typing import NDArray

    from edgekit.types import ModelSpec, Rope, Weights

FLOAT, INT32, INT64 = ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64
DOC = "A decoder of the LLaMA family. Initializers bear the names of the checkpoint's weights."
CONTRIB = frozenset({"FusedMatMul", "GroupQueryAttention", "RotaryEmbedding", "SkipSimplifiedLayerNormalization"})


def build_graph(spec: ModelSpec, weights: Weights, *, opset: int, name: str) -> ir.Model:
    """Build the decoder in FP32. The weights stay lazy: each is read when the graph is written.

    Inputs: ``input_ids [B,S]``, ``attention_mask [B,T]``, ``position_ids [B,S]`` int64 and
    ``past_key_values.{i}.key|value [B,kv_heads,P,head_dim]`` float; P may be 0, and past may be a longer buffer
    when present is bound to the same memory. Outputs: ``logits [B,S,V]`` of every position and
    ``present.{i}.key|value [B,kv_heads,T,head_dim]``, float. Batches are padded on the right.

    Args:
        spec: the decoder's numbers.
        weights: the tensors of the spec, with the names in the docstring of ``Weights``.
        opset: version of the standard operators.
        name: the graph's name.

    Raises:
        GraphError: the shape of a weight contradicts the spec.
    """
    writer = Writer(weights, opset, name)
    input_ids = writer.input("input_ids", INT64, ("batch_size", "sequence_length"))
    step = _step(writer, spec)

    embedding = writer.weight(EMBEDDING, (spec.vocab_size, spec.hidden_size))
    residual = writer.op("Gather", [embedding, input_ids], "model.embed_tokens")
    normed = _norm(writer, spec, residual, "model.layers.0.input_layernorm", spec.hidden_size)
    presents: list[ir.Value] = []
    for i in range(spec.layers):
        layer, following = f"model.layers.{i}", f"model.layers.{i + 1}.input_layernorm"
        attended, *present = _attention(writer, spec, step, normed, i)
        presents += present
        normed, residual = _add_norm(writer, spec, residual, attended, f"{layer}.post_attention_layernorm")
        expanded = _mlp(writer, spec, normed, f"{layer}.mlp")
        normed, residual = _add_norm(
            writer, spec, residual, expanded, following if i + 1 < spec.layers else "model.norm"
        )

    if spec.tied:
        logits = writer.op("FusedMatMul", [normed, embedding], "lm_head", outputs=("logits",), transB=1)
    else:
        head = writer.linear_weight("lm_head", spec.hidden_size, spec.vocab_size)
        logits = writer.op("MatMul", [normed, head], "lm_head", outputs=("logits",))
    writer.output(logits, FLOAT, ("batch_size", "sequence_length", spec.vocab_size))
    for value in presents:
        writer.output(value, FLOAT, ("batch_size", spec.kv_heads, "total_sequence_length", spec.head_dim))
    return writer.model


# --- what every layer reads besides the hidden states -----------------------------------------


@dataclass(frozen=True)
class Step:
    """Values computed once from the inputs and used in every layer: positions of the new tokens and cache lengths.

    ``rows [B,S]`` int64 index the tables ``cos`` and ``sin`` [rows, rope.dim / 2]; ``last [B]`` int32 is the cache
    position of each sequence's last token, ``total`` int32 the longest sequence including new tokens.
    """

    rows: ir.Value
    cos: ir.Value
    sin: ir.Value
    last: ir.Value
    total: ir.Value


def _step(writer: Writer, spec: ModelSpec) -> Step:
    """Declare mask and positions as inputs, and compute what attention needs from them."""
    mask = writer.input("attention_mask", INT64, ("batch_size", "total_sequence_length"))
    positions = writer.input("position_ids", INT64, ("batch_size", "sequence_length"))
    length = writer.op("ReduceSum", [mask, writer.constant("axis.1", [1])], "cache.length", keepdims=0)
    last = writer.op("Sub", [length, writer.constant("one", 1)], "cache.last")
    last = writer.op("Cast", [last], "cache.last.int32", to=INT32)
    total = writer.op("Shape", [mask], "cache.total", start=1, end=2)
    total = writer.op("Cast", [total], "cache.total.int32", to=INT32)

    rows = positions
    if spec.rope_border is not None:
        # As in transformers, the highest position in the batch selects the factors for all of it.
        original = writer.constant("rope.original_context", spec.rope.original_context)
        highest = writer.op("ReduceMax", [positions], "rope.highest", keepdims=0)
        long = writer.op("GreaterOrEqual", [highest, original], "rope.is_long")
        long = writer.op("Cast", [long], "rope.is_long.int64", to=INT64)
        offset = writer.op("Mul", [long, original], "rope.offset")
        rows = writer.op("Add", [positions, offset], "rope.rows")
    cos, sin = rope_tables(writer, spec.rope, spec.context_length)
    return Step(rows, cos, sin, last, total)


def rope_tables(writer: Writer, rope: Rope, context: int) -> tuple[ir.Value, ir.Value]:
    """Cosines and sines of every position's angles times the attention factor, each [rows, rope.dim / 2].

    Only the frequencies are stored: ONNX Runtime folds these nodes into the two tables when it creates a session, in
    float32 like transformers. With longrope, the first ``original_context`` rows use the short factors, and row
    ``original_context + p`` is position p with the long ones.
    """
    rows = context
    if rope.switches(context):
        rows += rope.original_context
        short = _angles(writer, inverse_frequencies(rope), rope.original_context, "rope.short")
        long = _angles(writer, inverse_frequencies(rope, long=True), context, "rope.long")
        angles = writer.op("Concat", [short, long], "rope.angles", axis=0)
    else:
        angles = _angles(writer, inverse_frequencies(rope), context, "rope")
    factor = attention_factor(rope)
    tables = []
    for kind in ("Cos", "Sin"):
        name = f"rope.{kind.lower()}"
        if factor == 1:
            wave = writer.op(kind, [angles], name)
        else:
            wave = writer.op(kind, [angles], f"{name}.plain")
            wave = writer.op("Mul", [wave, writer.constant("rope.factor", factor, np.float32)], name)
        wave.type, wave.shape = ir.TensorType(FLOAT), ir.Shape((rows, rope.dim // 2))
        tables.append(wave)
    return tables[0], tables[1]


def _angles(writer: Writer, frequencies: NDArray[np.float32], rows: int, name: str) -> ir.Value:
    """Position times frequency, [rows, rope.dim / 2]."""
    ends = [writer.constant(f"rope.position.{end}", end, np.float32) for end in (0, rows, 1)]
    positions = writer.op("Range", ends, f"{name}.positions")
    column = writer.op("Unsqueeze", [positions, writer.constant("axis.1", [1])], f"{name}.column")
    return writer.op("Mul", [column, writer.constant(f"{name}.frequencies", frequencies, np.float32)], f"{name}.angles")


# --- the parts of a layer ---------------------------------------------------------------------


def _norm(writer: Writer, spec: ModelSpec, x: ir.Value, name: str, size: int) -> ir.Value:
    """RMS norm over the last axis (``size``), times a weight."""
    weight = writer.weight(f"{name}.weight", (size,))
    return writer.op("SimplifiedLayerNormalization", [x, weight], name, axis=-1, epsilon=spec.norm_eps, stash_type=1)


def _add_norm(writer: Writer, spec: ModelSpec, residual: ir.Value, x: ir.Value, name: str) -> tuple[ir.Value, ir.Value]:
    """Return the norm of ``residual + x``, and the sum itself, which is the next residual."""
    weight = writer.weight(f"{name}.weight", (spec.hidden_size,))
    node = writer.node(
        "SkipSimplifiedLayerNormalization",
        [residual, x, weight],
        name,
        outputs=(name, "", "", f"{name}.residual"),
        epsilon=spec.norm_eps,
    )
    return node.outputs[0], node.outputs[3]


def _attention(writer: Writer, spec: ModelSpec, step: Step, x: ir.Value, i: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Self attention of layer ``i``: [B,S,H] -> [B,S,H] and the present key and value."""
    name = f"model.layers.{i}.self_attn"
    past_shape = ("batch_size", spec.kv_heads, "past_sequence_length", spec.head_dim)
    past_key = writer.input(f"past_key_values.{i}.key", FLOAT, past_shape)
    past_value = writer.input(f"past_key_values.{i}.value", FLOAT, past_shape)
    q_size, kv_size = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    query = writer.linear(x, f"{name}.q_proj", spec.hidden_size, q_size, bias=spec.qkv_bias)
    key = writer.linear(x, f"{name}.k_proj", spec.hidden_size, kv_size, bias=spec.qkv_bias)
    value = writer.linear(x, f"{name}.v_proj", spec.hidden_size, kv_size, bias=spec.qkv_bias)
    if spec.qk_norm:
        query = _head_norm(writer, spec, query, f"{name}.q_norm", spec.heads)
        key = _head_norm(writer, spec, key, f"{name}.k_norm", spec.kv_heads)

    # GroupQueryAttention only rotates if head_dim and the rotated dimensions are multiples of 16.
    fused = spec.rotary[i] and spec.head_dim % 16 == 0 and spec.rope.dim % 16 == 0
    if spec.rotary[i] and not fused:
        query = _rotate(writer, spec, step, query, f"{name}.q_rope")
        key = _rotate(writer, spec, step, key, f"{name}.k_rope")
    node = writer.node(
        "GroupQueryAttention",
        [query, key, value, past_key, past_value, step.last, step.total]
        + ([step.cos, step.sin, step.rows] if fused else []),
        name,
        outputs=(name, f"present.{i}.key", f"present.{i}.value"),
        num_heads=spec.heads,
        kv_num_heads=spec.kv_heads,
        do_rotary=int(fused),
        local_window_size=spec.windows[i] or -1,
        scale=spec.head_dim**-0.5,
    )
    attended = writer.linear(node.outputs[0], f"{name}.o_proj", q_size, spec.hidden_size, bias=spec.output_bias)
    return attended, node.outputs[1], node.outputs[2]


def _head_norm(writer: Writer, spec: ModelSpec, x: ir.Value, name: str, heads: int) -> ir.Value:
    """Norm of each head of [B,S,heads*D], computed as [B,S*heads,D] because some NPUs miscompute norms of rank 4."""
    split = writer.op("Reshape", [x, writer.constant(f"shape.{name}.split", [0, -1, spec.head_dim])], f"{name}.split")
    normed = _norm(writer, spec, split, name, spec.head_dim)
    joined = writer.constant(f"shape.{name}.join", [0, -1, heads * spec.head_dim])
    return writer.op("Reshape", [normed, joined], f"{name}.join")


def _rotate(writer: Writer, spec: ModelSpec, step: Step, x: ir.Value, name: str) -> ir.Value:
    """Rotate the first ``rope.dim`` dimensions of each head of [B,S,heads*D]."""
    heads = spec.heads if name.endswith("q_rope") else spec.kv_heads
    # 0 means the whole head.
    dim = spec.rope.dim if spec.rope.dim < spec.head_dim else 0
    inputs = [x, step.rows, step.cos, step.sin]
    return writer.op("RotaryEmbedding", inputs, name, num_heads=heads, rotary_embedding_dim=dim)


def _mlp(writer: Writer, spec: ModelSpec, x: ir.Value, name: str) -> ir.Value:
    """The gated feed-forward part: down(silu(gate(x)) * up(x))."""
    gate = writer.linear(x, f"{name}.gate_proj", spec.hidden_size, spec.intermediate_size, bias=spec.mlp_bias)
    up = writer.linear(x, f"{name}.up_proj", spec.hidden_size, spec.intermediate_size, bias=spec.mlp_bias)
    sigmoid = writer.op("Sigmoid", [gate], f"{name}.sigmoid")
    silu = writer.op("Mul", [gate, sigmoid], f"{name}.silu")
    product = writer.op("Mul", [silu, up], f"{name}.product")
    return writer.linear(product, f"{name}.down_proj", spec.intermediate_size, spec.hidden_size, bias=spec.mlp_bias)


# --- writing nodes ----------------------------------------------------------------------------


class Writer:
    """Appends nodes to a graph. A node's first output has the node's name, an initializer that of its weight."""

    def __init__(self, weights: Weights, opset: int, name: str) -> None:
        self._weights = weights
        opsets = {"": opset, "com.microsoft": 1}
        version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
        self._graph = ir.Graph([], [], nodes=[], name=name, opset_imports=opsets)
        self.model = ir.Model(self._graph, ir_version=version, producer_name="edgekit", doc_string=DOC)

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """Declare a graph input."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._graph.inputs.append(value)
        return value

    def output(self, value: ir.Value, dtype: ir.DataType, shape: Sequence[int | str]) -> None:
        """Declare a graph output."""
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
        self._graph.outputs.append(value)

    def node(
        self,
        kind: str,
        inputs: Sequence[ir.Value],
        name: str,
        *,
        outputs: Sequence[str] = (),
        **attributes: int | float,
    ) -> ir.Node:
        """Append a node. ``outputs`` names its outputs, "" omits one; by default there is one output."""
        node = ir.node(
            kind,
            inputs,
            attributes,
            domain="com.microsoft" if kind in CONTRIB else "",
            name=name,
            outputs=[ir.Value(name=output) for output in outputs or (name,)],
        )
        self._graph.append(node)
        return node

    def op(
        self,
        kind: str,
        inputs: Sequence[ir.Value],
        name: str,
        *,
        outputs: Sequence[str] = (),
        **attributes: int | float,
    ) -> ir.Value:
        """Append a node and return its first output."""
        return self.node(kind, inputs, name, outputs=outputs, **attributes).outputs[0]

    def linear(self, x: ir.Value, name: str, inputs: int, outputs: int, *, bias: bool = False) -> ir.Value:
        """``x`` [.., inputs] times the transposed weight, plus the bias if there is one."""
        matmul = self.op("MatMul", [x, self.linear_weight(name, inputs, outputs)], name)
        if not bias:
            return matmul
        return self.op("Add", [matmul, self.weight(f"{name}.bias", (outputs,))], f"{name}.add")

    def linear_weight(self, name: str, inputs: int, outputs: int) -> ir.Value:
        """The initializer [inputs, outputs] of a linear layer; the checkpoint's is [outputs, inputs]."""
        name = f"{name}.weight"
        self._check(name, (outputs, inputs))
        return self.lazy(name, (inputs, outputs), lambda: self._weights.read(name).T)

    def weight(self, name: str, shape: tuple[int, ...]) -> ir.Value:
        """The initializer of a weight, as in the checkpoint."""
        self._check(name, shape)
        return self.lazy(name, shape, lambda: self._weights.read(name))

    def lazy(self, name: str, shape: tuple[int, ...], read: Callable[[], NDArray[np.float32]]) -> ir.Value:
        """A float32 initializer that is computed on each access and not cached."""
        tensor = ir.LazyTensor(lambda: ir.tensor(read(), name=name), FLOAT, ir.Shape(shape), name=name, cache=False)
        return self._initializer(tensor)

    def constant(self, name: str, value: npt.ArrayLike, dtype: type[np.generic] = np.int64) -> ir.Value:
        """A small initializer, shared by name."""
        known = self._graph.initializers.get(name)
        return known if known is not None else self._initializer(ir.tensor(np.asarray(value, dtype), name=name))

    def _initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        shape = ir.Shape(tensor.shape.numpy())
        value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def _check(self, name: str, expected: tuple[int, ...]) -> None:
        shape = self._weights.shape(name)
        if shape != expected:
            raise GraphError(
                f"tensor '{name}' has shape {list(shape)}, but the config requires {list(expected)}",
                "config.json and the weights belong to different models; download both again",
            )
