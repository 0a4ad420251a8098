"""Lower a model to static graphs for an NPU: one for chunks of a prompt, one for single tokens, one for the host.

A model too large for one graph is split between layers; the parts run in sequence.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgekit.errors import LowerError
from edgekit.lower.host_inputs import host_graph
from edgekit.lower.passes import lower
from edgekit.lower.pipeline_graphs import prefill_chunk_graph
from edgekit.types.device import NpuScheme, Window

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekit.types.device import Npu, Target

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


@dataclass(frozen=True)
class StaticGraphs:
    """The graphs of a model. In the chains ``prefill`` and ``decode``, parts read earlier outputs by name.

    ``host`` and ``chunk`` run on the CPU; ``chunk``, like ``cache_graph``, is for runtimes with their own loop.
    """

    host: ir.Model
    chunk: ir.Model
    prefill: tuple[ir.Model, ...]
    decode: tuple[ir.Model, ...]


def lower_static(model: ir.Model, target: Target, npu: Npu, scheme: NpuScheme) -> StaticGraphs:
    """Lower copies of a quantized model, one for each width.

    Args:
        model: quantized, not lowered; not modified.
        target: the device.
        npu: its NPU, for widths and the maximum bytes of weights per graph.
        scheme: how it computes.

    Raises:
        LowerError: a lack has no pass, or a layer is too large for one graph.
    """
    prefill, decode = (
        split(lower(model.clone(), target.compiled(scheme, Window(tokens, npu.context))), npu.largest_graph_bytes)
        for tokens in (npu.prefill_tokens, 1)
    )
    host = host_graph(model, npu.context, scheme.masked)
    return StaticGraphs(host, prefill_chunk_graph(npu.prefill_tokens, host), prefill, decode)


def share_bytes(model: ir.Model, written: Mapping[str, ir.Value]) -> None:
    """Point the initializers of ``model`` to the bytes already written under the same names."""
    for name, value in model.graph.initializers.items():
        known = written.get(name)
        tensor = value.const_value
        if known is None or tensor is None or not isinstance(known.const_value, ir.ExternalTensor):
            continue
        if (known.const_value.dtype, known.const_value.shape) == (tensor.dtype, tensor.shape):
            value.const_value = known.const_value


def split(model: ir.Model, largest: int) -> tuple[ir.Model, ...]:
    """Split a lowered model between layers so that no part has more than ``largest`` bytes of weights.

    Raises:
        LowerError: a layer, or the last one with the head, is larger.
    """
    bounds = _bounds(_bytes_by_layer(model), largest)
    if len(bounds) == 2:
        return (model,)
    return tuple(_part(model, start, stop) for start, stop in pairwise(bounds))


def _bytes_by_layer(model: ir.Model) -> list[int]:
    """Bytes of the weights of each layer; the head's belong to the last."""
    sizes: dict[int, int] = defaultdict(int)
    rest = 0
    for name, value in model.graph.initializers.items():
        found, tensor = _LAYER.search(name), value.const_value
        nbytes = 0 if tensor is None else tensor.nbytes
        if found:
            sizes[int(found[1])] += nbytes
        else:
            rest += nbytes
    layers = [sizes[i] for i in range(1 + max(sizes, default=0))]
    layers[-1] += rest
    return layers


def _bounds(layers: list[int], largest: int) -> list[int]:
    """The first layer of each part, followed by the number of layers."""
    bounds, held = [0], 0
    for i, nbytes in enumerate(layers):
        if nbytes > largest:
            raise LowerError(
                f"layer {i} has {nbytes:,} bytes of weights, more than the {largest:,} that fit one graph",
                "build with fewer bits per weight",
            )
        if held + nbytes > largest:
            bounds.append(i)
            held = 0
        held += nbytes
    return [*bounds, len(layers)]


def _part(model: ir.Model, start: int, stop: int) -> ir.Model:
    """Layers [start, stop) with their inputs and outputs; ``hidden.<layer>`` [1,S,H] connects the parts."""
    part = model.clone()
    graph = part.graph
    entry, leave = _residual(graph, start), _residual(graph, stop)
    shape = next(v.shape for v in graph.inputs if v.name == "inputs_embeds")
    layers = {f".{i}." for i in range(start, stop)}
    outputs = [v for v in graph.outputs if any(layer in str(v.name) for layer in layers)]
    logits = next(v for v in graph.outputs if v.name == "logits")
    if leave is None:
        outputs.insert(0, logits)
    else:
        leave.name, leave.type, leave.shape = f"hidden.{stop}", logits.type, shape
        outputs.insert(0, leave)
    if entry is not None:
        given = ir.Value(name=f"hidden.{start}", type=logits.type, shape=shape)
        entry.name = f"hidden.{start}.made"
        ir.convenience.replace_all_uses_with(entry, given)
        graph.inputs.insert(0, given)
    graph.outputs[:] = outputs
    RemoveUnusedNodesPass()(part)
    graph.inputs[:] = [value for value in graph.inputs if value.uses()]
    return part


def _residual(graph: ir.Graph, layer: int) -> ir.Value | None:
    """The residual sum that enters a layer; None for the first layer and after the last."""
    name = f"model.layers.{layer}.input_layernorm/sum"
    return next((node.outputs[0] for node in graph if node.name == name), None)
