"""What a bundle will take, from a model's configuration alone: bytes on disk, in memory, and per decoded token.

The graph is drawn, quantized and lowered as ``build`` does it, with weights of which only the shapes are known, so the
bytes on disk are those that a build writes. Memory is an estimate, by the formulae of ``estimate.memory``: within
9 % of the peak of a process for SmolLM2-135M in both dialects and an untied model of 600 million parameters, at every
precision and 512 to 4096 tokens (benchmarks/footprint.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from edgekit.estimate.memory import RUNTIME_BYTES, Memory, held_bytes, workspace_bytes
from edgekit.estimate.needs import decode_bytes, kv_bytes_per_position, weight_bytes
from edgekit.types.tensor_names import EMBEDDING, HEAD

if TYPE_CHECKING:
    from edgekit.bundle import BundleSize
    from edgekit.types import Checkpoint, ModelSpec, Recipe, Target, TensorEntry


TOKENIZER_BYTES = 32
"""Of a tokenizer.json without white space; SmolLM2's takes 31.8. For models whose tokenizer is not here."""


@dataclass(frozen=True)
class Plan:
    """The bundle that a build would write: its tensors (as in the manifest, without errors) and the bytes of its files.

    ``beside_known`` is False where the tokenizer's files are not here and ``size.beside`` is an estimate. ``expanded``
    counts bytes of weights that the runtime puts into floating point each time it runs: the quantized head, where the
    dialect has no MatMulNBits (ONNX Runtime 1.32 fuses the other matmuls at load).
    """

    spec: ModelSpec
    tensors: tuple[TensorEntry, ...]
    size: BundleSize
    beside_known: bool
    expanded: int


@dataclass(frozen=True)
class Footprint:
    """What a model takes at one precision in one dialect. Bytes.

    ``file`` is the whole bundle without edgekit.json, as a build writes it; ``file_known`` is False where the
    tokenizer in it is an estimate. ``token`` is what a decoded token at the end of the context must at least read.
    """

    file: int
    file_known: bool
    tensors: int
    memory: Memory
    token: int


def plan_bundle(checkpoint: Checkpoint, recipe: Recipe, target: Target) -> Plan:
    """Draw the bundle that ``build`` would write; no weight is read.

    Args:
        checkpoint: the model (``source.open_config_only``).
        recipe: how the weights become small.
        target: which dialect the graph is written in.

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
    known = size.beside > 0
    if not known:
        size = replace(size, beside=TOKENIZER_BYTES * spec.vocab_size)
    head = next(t for t in tensors if t.name == (EMBEDDING if spec.tied else HEAD))
    expanded = 4 * prod(head.shape) if head.grid and "op:MatMulNBits" in target.lacks else 0
    return Plan(spec, tensors, size, known, expanded)


def predict_footprint(plan: Plan, context: int, *, shared_kv: bool) -> Footprint:
    """What a planned bundle takes at a context.

    Args:
        plan: the bundle.
        context: tokens that keys and values are held for.
        shared_kv: they are written in place; otherwise past and present are two copies.
    """
    spec = plan.spec
    # The runtime reads floating point as it holds it.
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
    """Bytes that a token reads on an NPU: what a compiled graph must at least read.

    Weights as the file has them, floats in half precision, and every slot of a cache of 16-bit numbers: its length is
    fixed, whatever is in it.

    Args:
        plan: the bundle.
        slots: of the cache.
    """
    read = [t if t.grid else replace(t, bytes=2 * prod(t.shape)) for t in plan.tensors]
    return weight_bytes(read, tied=plan.spec.tied) + kv_bytes_per_position(plan.spec) // 2 * slots
