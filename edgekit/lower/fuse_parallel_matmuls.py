"""Symptom: each matmul of 4-bit weights rounds its input to 8 bits and synchronizes threads, even if inputs are shared.

Decoding SmolLM2-135M on two cores spends a quarter of its matmul time on this.
Cure: matmuls that read the same input on the same grid become one, with their rows concatenated in the file. Query, key
and value go into GroupQueryAttention packed; other results are split.
Exactness: bit-exact.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.lower.patch import FOLDED, Patch, initializer, lazy, nodes_of
from edgekit.types import JOINED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from edgekit.types import Target

FIXES = frozenset({"MatMulNBits:narrow"})


def apply(model: ir.Model, _: Target) -> ir.Model:
    """Join all matmuls that read the same input on the same grid."""
    for nodes in _groups(model):
        if len(nodes) > 1:
            _join(model, nodes)
    return model


def remains(model: ir.Model, _: Target) -> Iterator[str]:
    """All but the first of each group of matmuls that could be joined."""
    for nodes in _groups(model):
        yield from (str(node.name) for node in nodes[1:])


def _groups(model: ir.Model) -> list[list[ir.Node]]:
    """Matmuls grouped by ``_likeness``."""
    groups: dict[tuple[object, ...], list[ir.Node]] = defaultdict(list)
    for node in nodes_of(model, "MatMulNBits"):
        if not any(output.is_graph_output() for output in node.outputs):
            groups[_likeness(model, node)].append(node)
    return list(groups.values())


def _likeness(model: ir.Model, node: ir.Node) -> tuple[object, ...]:
    """The key that matmuls must share to be joined: input, grid, and the storage of scales and zero points."""
    patch = Patch(model, node)
    stored = [patch.stored(i)[1] for i in (2, 3) if patch.input(i) is not None]
    grid = (patch.attribute(a, 0) for a in ("K", "bits", "block_size", "accuracy_level"))
    return (node.inputs[0], *grid, len(node.inputs), *((t.dtype, t.shape[1:]) for t in stored))


def _join(model: ir.Model, nodes: Sequence[ir.Node]) -> None:
    graph, first, name = model.graph, nodes[0], _name(nodes)
    rows = [node.attributes["N"].as_int() for node in nodes]
    inputs = [first.inputs[0], *(_join_input(model, nodes, rows, i) for i in range(1, len(first.inputs)))]
    attributes = {a: first.attributes[a].as_int() for a in ("K", "bits", "block_size", "accuracy_level")}
    matmul = ir.node(
        "MatMulNBits",
        inputs,
        attributes | {"N": sum(rows)},
        domain="com.microsoft",
        name=name,
        outputs=[ir.Value(name=name)],
    )
    graph.insert_before(first, matmul)
    attention = _sole_attention(nodes)
    if attention is not None:
        # Packed: one input with query, key and value.
        for i, value in enumerate((matmul.outputs[0], None, None)):
            attention.replace_input_with(i, value)
    else:
        sizes = Patch(model, first).constant(f"sizes.{'.'.join(map(str, rows))}", rows)
        parts = [ir.Value(name=f"{node.name}.part") for node in nodes]
        split = ir.node("Split", [matmul.outputs[0], sizes], {"axis": -1}, name=f"{name}.split", outputs=parts)
        graph.insert_before(first, split)
        for node, part in zip(nodes, parts, strict=True):
            ir.convenience.replace_all_uses_with(node.outputs[0], part)
    graph.remove(nodes, safe=True)


def _sole_attention(nodes: Sequence[ir.Node]) -> ir.Node | None:
    """The GroupQueryAttention that reads these nodes as query, key and value, if it is their only user."""
    uses = [use for node in nodes for use in node.outputs[0].uses()]
    users = {use.node for use in uses}
    if len(users) != 1 or [use.idx for use in uses] != [0, 1, 2]:
        return None
    user = users.pop()
    return user if user.op_type == "GroupQueryAttention" else None


def _join_input(model: ir.Model, nodes: Sequence[ir.Node], rows: Sequence[int], index: int) -> ir.Value | None:
    """Join the codes, scales or zero points of all nodes into one initializer, with the nodes that expand it."""
    if nodes[0].inputs[index] is None:
        return None
    stored = [Patch(model, node).stored(index) for node in nodes]
    values, tensors = zip(*stored, strict=True)
    kind = str(values[0].name).rpartition(".")[2]
    name = f"{_name(nodes)}.{kind}"
    shape = [sum(rows), *tensors[0].shape.numpy()[1:]]

    def compute() -> NDArray[np.generic]:
        return np.concatenate([tensor.numpy() for tensor in tensors])

    joined = lazy(name, tensors[0].dtype, shape, compute)
    joined.metadata_props[JOINED] = " ".join(f"{v.name}:{n}" for v, n in zip(values, rows, strict=True))
    value = initializer(model.graph, joined)
    made = _fold_again(model, nodes[0], nodes[0].inputs[index], value, sum(rows))
    for old in values:
        model.graph.initializers.pop(str(old.name), None)
    return made


def _fold_again(model: ir.Model, before: ir.Node, old: ir.Value | None, value: ir.Value, rows: int) -> ir.Value:
    """Repeat the Cast and Expand nodes between the old initializer and its matmul for the new one."""
    chain = []
    while old is not None and (producer := old.producer()) is not None and producer.op_type in FOLDED:
        chain.append(producer)
        old = producer.inputs[0]
    for producer in reversed(chain):
        inputs: list[ir.Value | None] = [value]
        if producer.op_type == "Expand":
            shape = producer.inputs[1]
            assert shape is not None and shape.const_value is not None
            times = int(shape.const_value.numpy()[1])
            inputs.append(initializer(model.graph, ir.tensor(np.asarray([rows, times]), name=f"{value.name}.shape")))
        name = f"{value.name}.{producer.op_type.lower()}"
        node = ir.node(producer.op_type, inputs, dict(producer.attributes), name=name, outputs=[ir.Value(name=name)])
        model.graph.insert_before(before, node)
        value = node.outputs[0]
    return value


def _name(nodes: Sequence[ir.Node]) -> str:
    """The joined name, such as ``model.layers.0.self_attn.q_proj+k_proj+v_proj``."""
    names = [str(node.name) for node in nodes]
    return "+".join([names[0], *(n.rpartition(".")[2] for n in names[1:])])
