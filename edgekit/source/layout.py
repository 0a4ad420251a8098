"""Which tensors a ModelSpec has, by canonical name and shape, and their match with a checkpoint's.

Shapes come from the spec, so that a config which contradicts its tensors is found before a byte of them is read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import SourceError
from edgekit.source.tensors import Extent, FileWeights

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgekit.types import ModelSpec

Shapes = dict[str, tuple[int, ...]]

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


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


def split_fused(spec: ModelSpec, found: Mapping[str, Extent]) -> dict[str, Extent]:
    """Show phi3's ``qkv_proj`` and ``gate_up_proj`` as the q, k, v, gate and up rows they hold.

    The order of rows is that of transformers' Phi3Attention and Phi3MLP; llama.cpp keeps it.
    """
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    parts = {
        "self_attn.qkv_proj": (("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)),
        "mlp.gate_up_proj": (("mlp.gate_proj", spec.intermediate_size), ("mlp.up_proj", spec.intermediate_size)),
    }
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
    """Bind a checkpoint's tensors to the spec's, all shapes checked, nothing but a few rows read.

    Returns the spec with the embedding's real number of rows (a padded embedding has more than
    ``vocab_size`` says) and whether the head is really tied, and the weights.

    Raises:
        SourceError: for a tensor that is missing, has another shape, or does not belong to the model.
    """
    embedding = found.get(EMBEDDING)
    if embedding is not None and len(embedding.shape) == 2 and embedding.shape[0] > spec.vocab_size:
        spec = replace(spec, vocab_size=embedding.shape[0])
    if spec.tied and HEAD in found and _differ(found[HEAD], found.get(EMBEDDING)):
        # transformers 5 keeps a head that differs from the embedding, whatever the config says.
        spec = replace(spec, tied=False)
    shapes = tensor_shapes(spec)
    for name, shape in shapes.items():
        if name not in found:
            raise _missing(name, where)
        _expect(name, found[name], shape)
    for name, extent in found.items():
        if name not in shapes and name != HEAD and not name.endswith("rotary_emb.inv_freq"):
            raise SourceError(
                f"{extent.file}: tensor '{name}' has no place in a {spec.architecture} model with this config",
                f"{where} says which biases and norms there are; correct it, or try --exporter optimum",
            )
    return spec, FileWeights({name: found[name] for name in shapes}, files)


def _missing(name: str, where: str) -> SourceError:
    if name == HEAD:
        return SourceError(
            f"the checkpoint has no '{HEAD}', and {where} does not tie it to the embedding",
            f"set tie_word_embeddings to true in {where} if the model shares them; otherwise download it again",
        )
    return SourceError(
        f"the checkpoint has no tensor '{name}', which {where} calls for",
        "a shard is missing, or the config belongs to another model",
    )


def _expect(name: str, extent: Extent, shape: tuple[int, ...]) -> None:
    if extent.shape != shape:
        raise SourceError(
            f"{extent.file}: tensor '{name}' is {list(extent.shape)}, and the config asks for {list(shape)}",
            "config.json and the weights are not of the same model; download both again",
        )


def _differ(head: Extent, embedding: Extent | None) -> bool:
    """Whether a stored head is another matrix than the embedding: a look at the first rows."""
    if embedding is None or head.shape != embedding.shape:
        return True
    rows = min(16, head.shape[0])
    weights = FileWeights({HEAD: head, EMBEDDING: embedding}, ())
    return not np.array_equal(weights.read(HEAD, 0, rows), weights.read(EMBEDDING, 0, rows))
