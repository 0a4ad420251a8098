"""Symptom: an NPU cannot gather rows of the token table, or the table costs more in its binary than it saves.

Cure: the rows of the token table become the input ``inputs_embeds``. Everything that depends only on tokens and
positions (those rows, the angles, the mask) is computed by a separate graph on the CPU, see ``host_graph``.
Exactness: bit-exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from edgekit.errors import LowerError
from edgekit.lower.patch import Patch, fixed_size, nodes_of
from edgekit.types import SHARED_WITH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekit.types import Target

FIXES = frozenset({"inputs:token-ids"})

EMBEDS, COS, SIN, BIAS = "inputs_embeds", "rope.cos.rows", "rope.sin.rows", "attention_bias"
FLOAT = ir.DataType.FLOAT


def bias_name(window: int) -> str:
    """The name of the mask for layers with a sliding window of ``window`` tokens; -1 is full attention."""
    return BIAS if window < 0 else f"{BIAS}.{window}"


def apply(model: ir.Model, _: Target) -> ir.Model:
    """Replace the gathered rows by a float input [B,S,H]."""
    graph = model.graph
    gather = _gather(model)
    read = [v and v.name for v in gather.inputs]
    shape = ("batch_size", "sequence_length", _hidden_size(model))
    embeds = ir.Value(name=EMBEDS, type=ir.TensorType(FLOAT), shape=ir.Shape(shape))
    ir.convenience.replace_all_uses_with(gather.outputs[0], embeds)
    graph.inputs[graph.inputs.index(gather.inputs[1])] = embeds
    graph.remove(gather, safe=True)
    for value in graph.initializers.values():
        # A head that shared the table's bytes now owns them.
        if value.metadata_props.get(SHARED_WITH) in read:
            del value.metadata_props[SHARED_WITH]
    return model


def remains(model: ir.Model, _: Target) -> Iterator[str]:
    """``input_ids``, if it is still an input or ``inputs_embeds`` is not."""
    inputs = {str(value.name) for value in model.graph.inputs}
    return iter(inputs & {"input_ids"} if EMBEDS in inputs else {"input_ids"})


def host_graph(model: ir.Model, past: int, masked: float) -> ir.Model:
    """The CPU graph that computes a static graph's inputs from ``input_ids [1,S]`` and ``position_ids [1,S]``, int64.

    Outputs, float32: ``inputs_embeds [1,S,H]``; ``rope.cos.rows`` and ``rope.sin.rows [1,1,S,R/2]`` if anything
    rotates; ``attention_bias [1,1,S,past+S]``, and ``attention_bias.<window>`` for each sliding window. The cache has
    ``past`` slots, filled in order; the first position is the number of filled ones. Padding up to the static width
    comes last, so that no token attends to it.

    Args:
        model: the decoder's graph before any pass; not modified.
        past: slots of the cache.
        masked: added to the scores where a token must not attend.

    Raises:
        LowerError: the graph does not gather token rows.
    """
    model = model.clone()
    graph = model.graph
    gather = _gather(model)
    positions = next(value for value in graph.inputs if value.name == "position_ids")
    ids = gather.inputs[1]
    assert ids is not None
    patch = Patch(model, gather)
    outputs: list[tuple[str, ir.Value, int | str]] = [(EMBEDS, gather.outputs[0], _hidden_size(model))]
    for name, (table, rows) in _tables(model).items():
        angles = patch.op("Gather", [table, rows], f"/{name}.gathered")
        angles = patch.op("Unsqueeze", [angles, patch.constant("axis.1", [1])], f"/{name}.heads")
        outputs.append((name, angles, fixed_size(table, 1)))
    outputs += [(bias_name(w), _bias(patch, positions, w, past, masked), "slots") for w in _windows(model)]
    del graph.outputs[:]
    for name, value, last in outputs:
        result = patch.op("Identity", [value], f"/{name}")
        result.type = ir.TensorType(FLOAT)
        result.shape = ir.Shape((1, "sequence_length", last) if name == EMBEDS else (1, 1, "sequence_length", last))
        graph.outputs.append(result)
    patch.append()
    graph.inputs[:] = [ids, positions]
    for value in graph.inputs:
        value.shape = ir.Shape((1, "sequence_length"))
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    return model


def _gather(model: ir.Model) -> ir.Node:
    """The node that reads the token table."""
    found = [
        node
        for node in model.graph
        if node.op_type in ("Gather", "GatherBlockQuantized") and node.inputs[1] in model.graph.inputs
    ]
    if len(found) != 1:
        raise LowerError(
            f"{len(found)} nodes gather rows for input_ids, one is needed", "export a decoder with one token table"
        )
    return found[0]


def _hidden_size(model: ir.Model) -> int:
    """The width of the residual stream: the length of the last norm's weight."""
    norms = [node for node in model.graph if node.op_type.endswith("SimplifiedLayerNormalization")]
    return fixed_size(norms[-1].inputs[2 if norms[-1].op_type.startswith("Skip") else 1], 0)


def _tables(model: ir.Model) -> dict[str, tuple[ir.Value, ir.Value]]:
    """Tables of cosines and sines with the ids of their rows; empty if nothing rotates."""
    for node in model.graph:
        fused = node.op_type == "GroupQueryAttention" and Patch(model, node).attribute("do_rotary", 0)
        if fused or node.op_type == "RotaryEmbedding":
            rows, cos, sin = (node.inputs[i] for i in ((9, 7, 8) if fused else (1, 2, 3)))
            assert rows is not None and cos is not None and sin is not None
            return {COS: (cos, rows), SIN: (sin, rows)}
    return {}


def _windows(model: ir.Model) -> list[int]:
    """The window sizes in use, -1 for full attention."""
    nodes = nodes_of(model, "GroupQueryAttention")
    return list(dict.fromkeys(Patch(model, node).attribute("local_window_size", -1) for node in nodes))


def _bias(patch: Patch, positions: ir.Value, window: int, past: int, masked: float) -> ir.Value:
    """The mask [1,1,S,past+S]: 0 where a token may attend, ``masked`` elsewhere.

    New token i has position p = filled + i. It attends to cache slots j < filled (position j) and new tokens j <= i
    (position filled + j), limited to positions > p - window.
    """
    name = "/" + bias_name(window)
    zero, one = patch.constant("zero", 0), patch.constant("one", 1)
    filled = patch.op("Gather", [positions, patch.constant("index.first", [0])], f"{name}.column", axis=1)
    filled = patch.op("Reshape", [filled, patch.constant("shape.one", [1])], f"{name}.filled")
    count = patch.op("Squeeze", [patch.op("Shape", [positions], f"{name}.shape", start=1, end=2)], f"{name}.count")
    places = patch.op("Add", [patch.op("Range", [zero, count, one], f"{name}.new"), filled], f"{name}.places")
    queries = patch.op("Unsqueeze", [places, patch.constant("axis.1", [1])], f"{name}.queries")
    slots = patch.constant(f"slots.{past}", list(range(past)))
    # Empty slots get a position after the last token, so that none attends to them.
    empty = patch.op("GreaterOrEqual", [slots, filled], f"{name}.empty")
    slots = patch.op("Where", [empty, patch.constant("nowhere", int(np.iinfo(np.int64).max)), slots], f"{name}.slots")
    keys = patch.op("Concat", [slots, places], f"{name}.keys", axis=0)
    seen = patch.op("LessOrEqual", [keys, queries], f"{name}.causal")
    if window > 0:
        oldest = patch.op("Sub", [queries, patch.constant(f"window.{window}", window)], f"{name}.oldest")
        seen = patch.op("And", [seen, patch.op("Greater", [keys, oldest], f"{name}.near")], f"{name}.seen")
    floats = [patch.constant("unmasked", 0.0, np.float32), patch.constant("masked", masked, np.float32)]
    bias = patch.op("Where", [seen, *floats], f"{name}.2d")
    return patch.op("Unsqueeze", [bias, patch.constant("axes.0.1", [0, 1])], f"{name}.4d")
