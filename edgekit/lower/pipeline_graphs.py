"""Two small graphs around the static ones, for runtimes with their own generation loop: onnxruntime-genai.

Such a runtime passes a prompt of any length, keeps the cache, and expects one row of logits. ``prefill_chunk_graph``
selects the next chunk of the prompt and pads it to the static width; ``cache_graph`` writes the new keys and values to
the cache, selects the last token's logits, and computes where the next chunk starts. Both run on the CPU, for prompts
and single tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from edgekit.lower.patch import fixed_size, initializer

if TYPE_CHECKING:
    from collections.abc import Sequence

INT64 = ir.TensorType(ir.DataType.INT64)

PROMPT_IDS, PROMPT_POSITIONS, LAST_LOGITS = "prompt_ids", "prompt_positions", "logits.last"
START, COUNT, PLACE, NEXT = "chunk.start", "chunk.count", "chunk.place", "chunk.next"


def prefill_chunk_graph(width: int, like: ir.Model) -> ir.Model:
    """The graph that selects the next chunk of a prompt, as input of the host's graph.

    Inputs, int64: ``prompt_ids`` and ``prompt_positions`` [1,n], the whole prompt in every run; ``chunk.start`` [1], 0
    by default. A prompt of one token is a chunk of one, any other is split into chunks of ``width``.

    Outputs, int64: ``input_ids`` and ``position_ids`` [1,1] or [1,width], padded with zeros and the last token's
    position (a higher one may select other angles, or have none); [1] each: ``chunk.count`` of real tokens,
    ``chunk.place`` of the first one, ``chunk.next`` where the next chunk starts, 0 after the last.

    Args:
        width: tokens of the prefill graph.
        like: a model with the opset and IR version to use.
    """
    ids, positions, start = (_input(name, shape) for name, shape in _PROMPT)
    tape = Tape()
    graph = ir.Graph([ids, positions], [], nodes=[], opset_imports={"": like.opset_imports[""]}, name="prefill_chunk")
    zero, one, axis, wide = (_constant(graph, f"c.{i}", [i]) for i in (0, 1, -1, width))
    start.const_value = ir.tensor(np.zeros(1, np.int64), name=START)
    graph.inputs.append(start)
    graph.register_initializer(start)

    total = tape.op("Shape", [ids], {"start": 1, "end": 2})
    across = tape.op("Where", [tape.op("Equal", [total, one]), one, wide])
    stop = tape.op("Min", [tape.op("Add", [start, across]), total])
    count = tape.op("Sub", [stop, start])
    missing = tape.op("Sub", [across, count])
    fill = tape.op("Concat", [zero, zero, zero, missing], {"axis": 0})
    filled = tape.op("Pad", [tape.op("Slice", [ids, start, stop, axis]), fill])
    after = tape.op("Add", [start, one])
    place = tape.op("Squeeze", [tape.op("Slice", [positions, start, after, axis]), zero])
    scalars = [tape.op("Squeeze", [value]) for value in (zero, across, one)]
    steps = tape.op("Min", [tape.op("Range", scalars), tape.op("Sub", [count, one])])
    places = tape.op("Unsqueeze", [tape.op("Add", [steps, place]), zero])
    follow = tape.op("Where", [tape.op("Less", [stop, total]), stop, zero])
    made = {"input_ids": filled, "position_ids": places, COUNT: count, PLACE: place, NEXT: follow}
    for name, value in made.items():
        graph.outputs.append(_output(tape, value, name, INT64, (1, "width") if name.endswith("_ids") else (1,)))
    graph.extend(tape.nodes)
    return ir.Model(graph, ir_version=like.ir_version, producer_name="edgekit")


def cache_graph(chain: Sequence[ir.Model]) -> ir.Model:
    """The graph that updates the cache from a static chain's outputs.

    Inputs: ``past_key_values.{i}.key|value`` [1,kv_heads,slots,D]; ``new.{i}.key|value`` [1,kv_heads,S,D];
    ``logits`` [1,S,V]; ``chunk.count``, ``chunk.place`` and ``chunk.next`` of the chunk they come from.

    Outputs: ``present.{i}.key|value``, the past with the real tokens' new rows (if it is bound to the past's memory,
    ScatterND writes only those rows); ``logits.last`` [1,1,V] of the last real token; ``chunk.start`` for the next run
    of ``prefill_chunk_graph``.

    Args:
        chain: the parts of one role, for the types and sizes of their inputs and outputs.
    """
    pasts = [v for part in chain for v in part.graph.inputs if str(v.name).startswith("past_key_values.")]
    logits_type = next(v.type for part in chain for v in part.graph.outputs if v.name == "logits")
    vocab = fixed_size(next(v for part in chain for v in part.graph.outputs if v.name == "logits"), 2)
    logits = ir.Value(name="logits", type=logits_type, shape=ir.Shape((1, "width", vocab)))
    count, place, follow = (_input(name, (1,)) for name in (COUNT, PLACE, NEXT))
    opsets = {"": chain[0].opset_imports[""]}
    graph = ir.Graph([logits, count, place, follow], [], nodes=[], opset_imports=opsets, name="cache")
    tape = Tape()
    zero, one, two = (_constant(graph, f"c.{i}", [i]) for i in (0, 1, 2))
    last = tape.op("Gather", [logits, tape.op("Sub", [count, one])], {"axis": 1})
    graph.outputs.append(_output(tape, last, LAST_LOGITS, logits_type, (1, 1, vocab)))
    graph.outputs.append(_output(tape, follow, START, INT64, (1,)))

    # Rows [0, head, place + j]: the same for every layer.
    heads = fixed_size(pasts[0], 1)
    scalars = [tape.op("Squeeze", [value]) for value in (zero, count, one)]
    slots = tape.op("Add", [tape.op("Range", scalars), place])
    whole = tape.op("Concat", [one, _constant(graph, "heads", [heads]), count, one], {"axis": 0})
    head = tape.op("Unsqueeze", [_constant(graph, "head", np.arange(heads)), _constant(graph, "behind", [1, 2])])
    slot = tape.op("Unsqueeze", [slots, _constant(graph, "last", [-1])])
    indices = tape.op("Concat", [tape.op("Expand", [v, whole]) for v in (zero, head, slot)], {"axis": -1})
    for past in pasts:
        name, size = str(past.name), fixed_size(past, 3)
        into = ir.Value(name=name, type=past.type, shape=past.shape)
        new = ir.Value(
            name=name.replace("past_key_values.", "new."), type=past.type, shape=ir.Shape((1, heads, "width", size))
        )
        graph.inputs.extend([into, new])
        real = tape.op("Slice", [new, zero, count, two])
        present = tape.op("ScatterND", [into, indices, real])
        present.name, present.type, present.shape = name.replace("past_key_values.", "present."), past.type, past.shape
        graph.outputs.append(present)
    graph.extend(tape.nodes)
    return ir.Model(graph, ir_version=chain[0].ir_version, producer_name="edgekit")


_PROMPT: tuple[tuple[str, tuple[int | str, ...]], ...] = (
    (PROMPT_IDS, (1, "prompt_length")),
    (PROMPT_POSITIONS, (1, "prompt_length")),
    (START, (1,)),
)


def _input(name: str, shape: tuple[int | str, ...]) -> ir.Value:
    return ir.Value(name=name, type=INT64, shape=ir.Shape(shape))


def _output(
    tape: Tape, value: ir.Value, name: str, kind: ir.TypeProtocol | None, shape: tuple[int | str, ...]
) -> ir.Value:
    result = tape.op("Identity", [value])
    result.name, result.type, result.shape = name, kind, ir.Shape(shape)
    return result


def _constant(graph: ir.Graph, name: str, value: object) -> ir.Value:
    return initializer(graph, ir.tensor(np.asarray(value, np.int64), name=name))
