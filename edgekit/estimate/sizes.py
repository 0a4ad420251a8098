"""A model's bytes by part: embedding, attention, mlp, graph, tokenizer ... Standard library only."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from edgekit.types import FileEntry, Manifest, SizePart, TensorEntry

if TYPE_CHECKING:
    from collections.abc import Iterable

PARTS = ("embedding", "head", "attention", "mlp", "norms", "graph", "npu", "tokenizer", "other")
"""The parts of a model, in display order."""


def part_of(name: str) -> str:
    """The part a tensor belongs to, by its canonical name."""
    if "embed_tokens" in name:
        return "embedding"
    if name.startswith("lm_head"):
        return "head"
    if "norm" in name:
        return "norms"
    if ".self_attn." in name:
        return "attention"
    return "mlp" if ".mlp." in name else "other"


def tensor_parts(tensors: Iterable[TensorEntry]) -> tuple[SizePart, ...]:
    """Sizes by part of some tensors; a tied head is not counted, since its bytes are the embedding's."""
    return _sum(SizePart(part_of(t.name), 1, prod(t.shape), t.bytes) for t in tensors if not t.shared_with)


def bundle_parts(manifest: Manifest) -> tuple[SizePart, ...]:
    """Sizes by part of a bundle, which add up to ``manifest.bytes``.

    ``graph`` is the ONNX file and its external data without the weights: operators, constants, padding. ``npu`` is
    everything for an NPU, including the source graphs it was compiled from.
    """
    graph = graph_bytes(manifest)
    tokenizer = sum(f.bytes for f in manifest.files if f.path.startswith(("tokenizer", "chat_template")))
    npu = sum(f.bytes for f in manifest.files if _is_for_npu(f, manifest))
    extra = (
        SizePart("graph", 0, 0, graph - sum(t.bytes for t in manifest.tensors)),
        SizePart("npu", 0, 0, npu),
        SizePart("tokenizer", 0, 0, tokenizer),
        SizePart("other", 0, 0, manifest.bytes - graph - npu - tokenizer),
    )
    return _sum([*tensor_parts(manifest.tensors), *extra])


def graph_bytes(manifest: Manifest) -> int:
    """Bytes of the ONNX file and its external data."""
    return sum(f.bytes for f in manifest.files if _is_graph(f, manifest))


def _is_graph(file: FileEntry, manifest: Manifest) -> bool:
    return file.path.startswith(manifest.graph)


def _is_for_npu(file: FileEntry, manifest: Manifest) -> bool:
    sources = {graph.source for build in manifest.npus for graph in build.graphs}
    folders = tuple(f"{build.folder}/" for build in manifest.npus)
    return file.path.startswith(folders) or file.path.removesuffix("_data") in sources


def _sum(pieces: Iterable[SizePart]) -> tuple[SizePart, ...]:
    """One SizePart per part that has bytes, in the order of PARTS."""
    pieces = list(pieces)
    grouped = {part: [p for p in pieces if p.part == part] for part in PARTS}
    return tuple(
        SizePart(part, sum(p.tensors for p in some), sum(p.parameters for p in some), sum(p.bytes for p in some))
        for part, some in grouped.items()
        if sum(p.bytes for p in some)
    )
