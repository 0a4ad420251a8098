"""Predict from a model's configuration what a bundle will need: bytes on disk, in memory, and per decoded token.

The graph is built, quantized and lowered as in ``build``, with weights of which only the shapes are known, so the bytes
on disk are those that a build writes. Memory is an estimate by the formulae of ``estimate.memory``: within 9 % of the
peak of a process for SmolLM2-135M in both dialects and an untied model of 600 million parameters, at every precision
and 512 to 4096 tokens (benchmarks/footprint.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.estimate.memory import RUNTIME_BYTES, Memory, held_bytes, workspace_bytes
from edgekit.estimate.needs import decode_bytes, kv_bytes_per_position, weight_bytes
from edgekit.types import Prefill
from edgekit.types.tensor_names import EMBEDDING, HEAD

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.bundle import BundleSize
    from edgekit.types import Checkpoint, ModelSpec, Recipe, Target, TensorEntry


TOKENIZER_BYTES = 32
"""Bytes per vocabulary entry of a tokenizer.json without white space (SmolLM2: 31.8), for missing tokenizers."""


@dataclass(frozen=True)
class Plan:
    """The bundle that a build would write: its tensors (as in the manifest, without errors) and the bytes of its files.

    ``beside_known`` is False if the tokenizer's files are missing and ``size.beside`` is an estimate. ``expanded``
    counts bytes of weights that the runtime dequantizes to float32 in each run: the quantized head, if the dialect has
    no MatMulNBits (ONNX Runtime 1.32 fuses the other matmuls at load). ``prefill`` is the prompt graph, None without
    one; its bytes are in ``size.graph``.
    """

    spec: ModelSpec
    tensors: tuple[TensorEntry, ...]
    size: BundleSize
    beside_known: bool
    expanded: int
    prefill: Prefill | None = None


@dataclass(frozen=True)
class Footprint:
    """What a model needs at one precision in one dialect, in bytes.

    ``file`` is the whole bundle without edgekit.json; ``file_known`` is False if its tokenizer is an estimate.
    ``token`` is the least that decoding a token at the end of the context reads.
    """

    file: int
    file_known: bool
    tensors: int
    memory: Memory
    token: int


def plan_bundle(checkpoint: Checkpoint, recipe: Recipe, target: Target) -> Plan:
    """Plan the bundle that ``build`` would write, without reading weights.

    Args:
        checkpoint: the model (``source.open_config_only``).
        recipe: how the weights are quantized.
        target: decides the dialect of the graph.

    Raises:
        QuantizeError: the recipe's grids do not fit the model's shapes.
        LowerError: the target cannot run the model.
    """
    from edgekit.bundle import predict_size
    from edgekit.graph import build_graph
    from edgekit.lower import lower
    from edgekit.quantize import quantize

    spec, name = checkpoint.spec, checkpoint.provenance.id.rsplit("/", 1)[-1]
    graph = build_graph(spec, checkpoint.weights, opset=target.opset, name=name)
    small = quantize(graph, checkpoint.weights, recipe, accuracy_level=target.accuracy_level)
    lowered = lower(small.model, target)
    tensors = small.entries()
    size = predict_size(lowered, checkpoint.files, spec, target, recipe.precision)
    prompts, prefill = _plan_prefill(lowered, recipe)
    size = replace(size, graph=size.graph + prompts)
    known = size.beside > 0
    if not known:
        size = replace(size, beside=TOKENIZER_BYTES * spec.vocab_size)
    head = next(t for t in tensors if t.name == (EMBEDDING if spec.tied else HEAD))
    expanded = 4 * prod(head.shape) if head.grid and "op:MatMulNBits" in target.lacks else 0
    return Plan(spec, tensors, size, known, expanded, prefill)


def _plan_prefill(laid_out: ir.Model, recipe: Recipe) -> tuple[int, Prefill | None]:
    """Bytes of the prompt graph of a model whose size was predicted, and what the manifest says of it."""
    from edgekit.bundle import GRAPH_NAMES
    from edgekit.bundle.external import predict_bytes
    from edgekit.lower import prefill_graph

    if not recipe.w8a8_prefill:
        return 0, None
    prompts, expansions = prefill_graph(laid_out)
    prefill = Prefill(GRAPH_NAMES[recipe.precision].replace(".onnx", "_prefill.onnx"), expansions)
    return predict_bytes(prompts, Path(prefill.graph))[0], prefill


def predict_footprint(plan: Plan, context: int, *, shared_kv: bool) -> Footprint:
    """Predict what a planned bundle needs at a context length.

    Args:
        plan: the bundle.
        context: tokens in the KV cache.
        shared_kv: the KV cache is updated in place; otherwise past and present are two copies.
    """
    spec = plan.spec
    # The runtime holds floats as float32.
    read = [t if t.grid else replace(t, bytes=4 * prod(t.shape)) for t in plan.tensors]
    memory = Memory(
        weights=held_bytes(plan.tensors, tied=spec.tied),
        kv=kv_bytes_per_position(spec) * context * (1 if shared_kv else 2),
        workspace=workspace_bytes(spec, context) + plan.expanded,
        runtime=RUNTIME_BYTES,
    )
    return Footprint(
        file=plan.size.graph + plan.size.data + plan.size.beside,
        file_known=plan.beside_known,
        tensors=sum(t.bytes for t in plan.tensors),
        memory=memory,
        token=int(decode_bytes(weight_bytes(read, tied=spec.tied), spec, context - 1, 1)),
    )


def npu_token_bytes(plan: Plan, slots: int) -> int:
    """The least bytes that a compiled graph reads per token on an NPU.

    These are the weights as in the file, floats in half precision, and every slot of the fixed-size 16-bit KV cache.

    Args:
        plan: the bundle.
        slots: slots of the KV cache.
    """
    read = [t if t.grid else replace(t, bytes=2 * prod(t.shape)) for t in plan.tensors]
    return weight_bytes(read, tied=plan.spec.tied) + kv_bytes_per_position(plan.spec) // 2 * slots
