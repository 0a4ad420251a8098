"""Narrower layers: the feed-forward channels and the key-value heads that carry most, with what reads them refitted.

A channel's weight is the energy that it adds to the residual stream on a text: H_kk |column k of the matrix that reads
it|^2, H the second moments of its input (as in Wanda, arXiv 2306.11695). The matrix is then fitted again by least
squares, so that the channels that are left give what all gave: three quarters of SmolLM2-135M's channels, chosen and
fitted on 7,680 tokens, cost 0.37 nats a token on WikiText-2 and 0.20 on GSM8K; without the fit 0.47 and 0.28.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekit.learn.layers import Layers
from edgekit.quantize.gptq import gram
from edgekit.source import CutWeights
from edgekit.types import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Indices = NDArray[np.intp]

RIDGE = 0.01
"""Of the mean second moment, added to each: keeps a refitted matrix near the one that it was."""


def narrow(
    model: Layers,
    ffn: int,
    kv_heads: int,
    windows: NDArray[np.int64],
    *,
    folder: Path | None = None,
    progress: Progress = silent,
) -> Layers:
    """The model with ``ffn`` feed-forward channels and ``kv_heads`` key-value heads with their queries in every layer.

    Args:
        model: its layers are all kept.
        ffn: channels to keep.
        kv_heads: heads of keys and values to keep.
        windows: text [n,S]. What n S tokens need inside of one layer fits in memory.
        folder: where the matrices that are fitted again are kept while the result is in use; None keeps them in memory.
        progress: called with the number of layers done.
    """
    spec, group = model.spec, model.spec.heads // model.spec.kv_heads
    cut = CutWeights(model.weights, range(spec.layers))
    if folder is not None:
        cut.changed = _OnDisk(folder)
    fewer_heads = replace(spec, heads=group * kv_heads, kv_heads=kv_heads)
    x = model.embed(windows)
    for i in range(spec.layers):
        progress("narrowing", i, spec.layers, "layers")
        if kv_heads < spec.kv_heads:
            _narrow_attention(model, cut, i, kv_heads, x)
        x = _narrow_mlp(Layers(fewer_heads, cut), cut, i, ffn, x)
    progress("narrowing", spec.layers, spec.layers, "layers")
    return Layers(replace(fewer_heads, intermediate_size=ffn), cut)


def _narrow_mlp(model: Layers, cut: CutWeights, layer: int, ffn: int, x: Floats) -> Floats:
    """Cut a layer's feed-forward part; returns the residual stream behind it."""
    name = f"model.layers.{layer}.mlp."
    between: dict[str, list[Floats]] = {"residual": [], "mlp.down_proj": []}
    after = model.run(layer, x, keep=between)
    if ffn == model.spec.intermediate_size:
        return after
    residual = np.concatenate(between["residual"])
    fit = _Refit.of(np.concatenate(between["mlp.down_proj"]), cut.read(f"{name}down_proj.weight"))
    kept = fit.heaviest(ffn)
    down = fit.without(kept)
    _keep_rows(cut, (f"{name}gate_proj", f"{name}up_proj"), kept)
    cut.changed[f"{name}down_proj.weight"] = down
    bias = cut.read(f"{name}down_proj.bias") if model.spec.mlp_bias else np.float32(0)
    changed: Floats = residual + (fit.x[:, kept] @ down.T).reshape(residual.shape) + bias
    return changed


def _narrow_attention(model: Layers, cut: CutWeights, layer: int, kv_heads: int, x: Floats) -> None:
    spec, name = model.spec, f"model.layers.{layer}.self_attn."
    between: dict[str, list[Floats]] = {"self_attn.o_proj": []}
    model.run(layer, x, keep=between)
    fit = _Refit.of(np.concatenate(between["self_attn.o_proj"]), model.weights.read(f"{name}o_proj.weight"))
    size = spec.head_dim
    groups = fit.energy.reshape(spec.kv_heads, -1).sum(axis=1)
    kept = np.sort(np.argsort(-groups, kind="stable")[:kv_heads])
    of_keys = (kept[:, None] * size + np.arange(size)).reshape(-1)
    per_group = spec.heads // spec.kv_heads * size
    of_queries = (kept[:, None] * per_group + np.arange(per_group)).reshape(-1)
    _keep_rows(cut, (f"{name}k_proj", f"{name}v_proj"), of_keys)
    _keep_rows(cut, (f"{name}q_proj",), of_queries)
    cut.changed[f"{name}o_proj.weight"] = fit.without(of_queries)


class _OnDisk(MutableMapping[str, "Floats"]):
    """Arrays by name, each in a file of its own, of which only what is read is in memory."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._names = folder, dict[str, None]()

    def __setitem__(self, name: str, value: Floats) -> None:
        np.save(self._folder / f"{name}.npy", value)
        self._names[name] = None

    def __getitem__(self, name: str) -> Floats:
        if name not in self._names:
            raise KeyError(name)
        found: Floats = np.load(self._folder / f"{name}.npy", mmap_mode="r")
        return found

    def __delitem__(self, name: str) -> None:
        del self._names[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _keep_rows(cut: CutWeights, parts: tuple[str, ...], kept: Indices) -> None:
    """Keep these outputs of linear layers, with their biases if they have some."""
    known = set(cut.names())
    for part in parts:
        cut.rows |= {f"{part}.{kind}": kept for kind in ("weight", "bias") if f"{part}.{kind}" in known}


@dataclass(frozen=True)
class _Refit:
    """A linear layer y = x W^T on a text: x [tokens,K], W [N,K], and the moments H [K,K] of x."""

    x: Floats
    weight: Floats
    moments: Floats

    @classmethod
    def of(cls, x: Floats, weight: Floats) -> _Refit:
        x = x.reshape(-1, x.shape[-1])
        return cls(x, weight, gram(x))

    @property
    def energy(self) -> Floats:
        """What each input adds to the output, [K]."""
        energy: Floats = self.moments.diagonal() * np.square(self.weight).sum(axis=0)
        return energy

    def heaviest(self, count: int) -> Indices:
        """The inputs with the most energy, in ascending order."""
        return np.sort(np.argsort(-self.energy, kind="stable")[:count])

    def without(self, kept: Indices) -> Floats:
        """V [N, kept] that gives what all inputs gave: argmin |x V^T - x W^T|^2 + ridge |V - W|^2."""
        near, moments = self.weight[:, kept], self.moments[np.ix_(kept, kept)].astype(np.float64)
        lost = self.weight @ self.moments[:, kept] - near @ moments
        moments[np.diag_indices_from(moments)] += RIDGE * moments.diagonal().mean() + 1e-12
        fitted: Floats = (near + np.linalg.solve(moments, lost.T).T).astype(np.float32)
        return fitted
