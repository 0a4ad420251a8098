"""The tensors of a ModelSpec, by canonical name and shape, and matching a checkpoint's tensors to them.

Shapes come from the spec, so a config that contradicts its tensors is found before any weight is read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import SourceError
from edgekit.source.reasons import explain_missing, is_buffer, refuse_unexpected
from edgekit.source.tensors import UNREAD, Extent, FileWeights
from edgekit.types.tensor_names import EMBEDDING, HEAD

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgekit.types import ModelSpec

Shapes = dict[str, tuple[int, ...]]

_BASE = "model."
"""Prefix of the base model's tensors in a model with a head."""

_COMPARED = 1 << 22
"""Weights of head and embedding compared at a time."""


def tensor_shapes(spec: ModelSpec) -> Shapes:
    """All canonical tensors of a model with their shapes, in model order."""
    hidden, inner, head = spec.hidden_size, spec.intermediate_size, spec.head_dim
    q, kv = spec.heads * head, spec.kv_heads * head
    shapes: Shapes = {EMBEDDING: (spec.vocab_size, hidden)}
    for i in range(spec.layers):
        layer = f"model.layers.{i}."
        shapes[layer + "input_layernorm.weight"] = (hidden,)
        for name, rows, columns, bias in (
            ("self_attn.q_proj", q, hidden, spec.qkv_bias),
            ("self_attn.k_proj", kv, hidden, spec.qkv_bias),
            ("self_attn.v_proj", kv, hidden, spec.qkv_bias),
            ("self_attn.o_proj", hidden, q, spec.output_bias),
            ("mlp.gate_proj", inner, hidden, spec.mlp_bias),
            ("mlp.up_proj", inner, hidden, spec.mlp_bias),
            ("mlp.down_proj", hidden, inner, spec.mlp_bias),
        ):
            if name == "mlp.gate_proj":
                if spec.qk_norm:
                    shapes[layer + "self_attn.q_norm.weight"] = (head,)
                    shapes[layer + "self_attn.k_norm.weight"] = (head,)
                shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
            shapes[f"{layer}{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{layer}{name}.bias"] = (rows,)
    shapes["model.norm.weight"] = (hidden,)
    if not spec.tied:
        shapes[HEAD] = (spec.vocab_size, hidden)
    return shapes


FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
"""Tensors of fused families, and those whose rows they hold, in the order of transformers' Phi3Attention and Phi3MLP;
llama.cpp keeps it."""


def stored_tensors(spec: ModelSpec, *, fused: bool) -> dict[str, tuple[str, ...]]:
    """Tensors as transformers stores a family's, and the canonical ones whose rows each holds, in model order."""
    stored: dict[str, tuple[str, ...]] = {}
    for name in tensor_shapes(spec):
        layer, dot, part = name.partition(".self_attn." if ".self_attn." in name else ".mlp.")
        part = f"{dot.strip('.')}.{part}".removesuffix(".weight")
        whole = next((w for w, parts in FUSED.items() if fused and part in parts), None)
        if whole is None:
            stored[name] = (name,)
        else:
            stored[f"{layer}.{whole}.weight"] = tuple(f"{layer}.{p}.weight" for p in FUSED[whole])
    return stored


def split_fused(spec: ModelSpec, found: Mapping[str, Extent]) -> dict[str, Extent]:
    """Show phi3's ``qkv_proj`` and ``gate_up_proj`` as the q, k, v, gate and up rows they hold."""
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    sizes = {"self_attn.q_proj": q, "self_attn.k_proj": kv, "self_attn.v_proj": kv}
    parts = {whole: tuple((p, sizes.get(p, spec.intermediate_size)) for p in names) for whole, names in FUSED.items()}
    split: dict[str, Extent] = {}
    for name, extent in found.items():
        fused = next((part for part in parts if name.endswith(part + ".weight")), None)
        if fused is None:
            split[name] = extent
            continue
        _expect(name, extent, (sum(rows for _, rows in parts[fused]), spec.hidden_size))
        at = 0
        for part, rows in parts[fused]:
            split[name.replace(fused, part)] = extent.rows(at, at + rows)
            at += rows
    return split


def match_tensors(
    spec: ModelSpec, found: Mapping[str, Extent], files: tuple[Path, ...], where: str
) -> tuple[ModelSpec, FileWeights]:
    """Match a checkpoint's tensors to the spec and check their shapes. Names and ties are resolved as in transformers.

    No weights are read, unless a tied model stores both embedding and head: these are compared.

    Returns the weights, and the spec with the actual number of embedding rows (a padded embedding has more than
    ``vocab_size``) and with ``tied`` as found.

    Raises:
        SourceError: a tensor is missing, duplicated, unexpected, or has the wrong shape or type.
    """
    found = _canonical_names(spec, found)
    if spec.tied and EMBEDDING not in found and HEAD in found:
        found = {EMBEDDING if name == HEAD else name: extent for name, extent in found.items()}
    embedding = found.get(EMBEDDING)
    if embedding is not None and len(embedding.shape) == 2 and embedding.shape[0] > spec.vocab_size:
        spec = replace(spec, vocab_size=embedding.shape[0])
    if spec.tied and embedding is not None and HEAD in found and _differ(found[HEAD], embedding):
        # transformers 5 keeps a head that differs from the embedding, even if the config ties it.
        spec = replace(spec, tied=False)
    shapes = tensor_shapes(spec)
    for name, shape in shapes.items():
        if name not in found:
            raise explain_missing(name, found, spec, where)
        _expect(name, found[name], shape)
    others = {name: extent for name, extent in found.items() if name not in shapes and name != HEAD}
    for name, extent in others.items():
        refuse_unexpected(name, extent, shapes, spec, where)
    aside = tuple(name for name in others if not is_buffer(name))
    return spec, FileWeights({name: found[name] for name in shapes}, files, aside)


def _canonical_names(spec: ModelSpec, found: Mapping[str, Extent]) -> dict[str, Extent]:
    """Tensors by canonical name: the prefix ``model.`` is added or removed as in transformers."""
    known = tensor_shapes(replace(spec, tied=False))
    named: dict[str, Extent] = {}
    for stored, extent in found.items():
        short = stored.removeprefix(_BASE)
        name = short if stored != short and short in known else _BASE + stored if _BASE + stored in known else stored
        if name in named:
            raise SourceError(
                f"{extent.file} holds '{name}' twice, with and without the prefix '{_BASE}'",
                "save the model again with save_pretrained",
            )
        named[name] = extent
    return named


def _expect(name: str, extent: Extent, shape: tuple[int, ...]) -> None:
    if extent.stored in UNREAD:
        raise SourceError(
            f"{extent.file}: tensor '{name}' is stored as {extent.stored}",
            "use an F64, F32, F16 or BF16 checkpoint",
        )
    if extent.shape != shape:
        raise SourceError(
            f"{extent.file}: tensor '{name}' has shape {list(extent.shape)}, but the config requires {list(shape)}",
            "config.json and the weights belong to different models; download both again",
        )


def _differ(head: Extent, embedding: Extent) -> bool:
    """Whether a stored head differs from the embedding. Reads both in chunks until they differ."""
    if head.shape != embedding.shape or len(head.shape) != 2 or {head.stored, embedding.stored} & UNREAD:
        return True
    weights = FileWeights({HEAD: head, EMBEDDING: embedding}, ())
    rows = max(1, _COMPARED // head.columns)
    return any(
        not np.array_equal(weights.read(HEAD, at, at + rows), weights.read(EMBEDDING, at, at + rows))
        for at in range(0, head.shape[0], rows)
    )
