"""A decoder in NumPy, one layer at a time: to look between layers, leave some out, and change them on the way.

Letters in shapes: n sequences, S tokens, H hidden size, V vocabulary. Weights are read when their layer comes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekit.graph import build_graph
from edgekit.numerics.rms_norm import rms_norm
from edgekit.numerics.softmax import log_softmax
from edgekit.quantize.evaluate import multiply_by_weight, run_until
from edgekit.source import CutWeights, keep_layers
from edgekit.types.tensor_names import EMBEDDING, HEAD, LAST_NORM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from edgekit.types import ModelSpec, Weights

    Floats = NDArray[np.float32]

MEMORY = 256 << 20
"""Most bytes of the attention scores or of the widest hidden value of the sequences that run together."""

TOGETHER = 256
"""Tokens whose logits are in memory at once."""


@dataclass(frozen=True)
class Layers:
    """A decoder whose layers can be run alone."""

    spec: ModelSpec
    weights: Weights

    def embed(self, windows: NDArray[np.int64]) -> Floats:
        """Rows of the token table for windows [n,S]: [n,S,H]."""
        tokens, places = np.unique(windows, return_inverse=True)
        rows = np.concatenate([self.weights.read(EMBEDDING, int(t), int(t) + 1) for t in tokens])
        embedded: Floats = rows[places.reshape(windows.shape)]
        return embedded

    def run(self, layer: int, x: Floats, *, keep: Mapping[str, list[Floats]] | None = None) -> Floats:
        """The residual stream behind a layer, from that before it [n,S,H].

        Args:
            layer: which one.
            x: its input.
            keep: names of matmuls in the layer (``mlp.down_proj``) or of its ``residual`` between attention and
                feed-forward part, with lists to which their inputs and its values are added, as [n,S,K].
        """
        count = self._together(x.shape[1])
        parts = [self._run(layer, x[at : at + count], keep or {}) for at in range(0, len(x), count)]
        return np.concatenate(parts)

    def _run(self, layer: int, x: Floats, keep: Mapping[str, list[Floats]]) -> Floats:
        spec, length = keep_layers(self.spec, (layer,)), x.shape[1]
        if spec.rope_border is None:
            spec = replace(spec, context_length=length)  # rope tables are made for the context
        weights = CutWeights(self.weights, (layer,))
        model = build_graph(spec, weights, opset=21, name="layer")
        feeds: dict[str, NDArray[np.generic]] = {
            "input_ids": np.zeros(x.shape[:2], np.int64),
            "model.embed_tokens": x,
            "attention_mask": np.ones((1, length), np.int64),
            "position_ids": np.arange(length)[None],
        }
        feeds |= {str(v.name): np.empty((1, 0), np.float32) for v in model.graph.inputs if str(v.name) not in feeds}
        found: dict[str, Floats] = {}

        def see(name: str, value: Floats) -> None:
            if name == "model.norm.residual":
                found["after"] = value
            elif name == "model.layers.0.post_attention_layernorm.residual" and "residual" in keep:
                keep["residual"].append(value)

        def observe(name: str, value: Floats) -> Iterable[Floats]:
            part = name.removeprefix("model.layers.0.").removesuffix(".weight")
            if part in keep:
                keep[part].append(value)
            return iter(())

        run_until(model, weights, feeds, observe, "logits", see)  # type: ignore[arg-type]
        return found["after"]

    def _together(self, length: int) -> int:
        """Sequences that run at once."""
        spec = self.spec
        widest = max(spec.intermediate_size, spec.heads * spec.head_dim, spec.heads * length)
        return max(1, MEMORY // (4 * length * widest))

    def normed(self, x: Floats) -> Floats:
        """The input of the head, from the residual stream behind the last layer."""
        return rms_norm(x, self.weights.read(LAST_NORM), self.spec.norm_eps)

    def logits(self, hidden: Floats) -> Floats:
        """Logits [n,V] of inputs of the head [n,H]."""
        return multiply_by_weight(hidden, self.weights, EMBEDDING if self.spec.tied else HEAD)


def divergences(
    teacher: Layers, target: Floats, students: Sequence[Floats], logits: Callable[[Floats], Floats] | None = None
) -> list[float]:
    """Mean KL(teacher || student) in nats per token.

    Args:
        teacher: whose head makes the teacher's logits.
        target: inputs of its head [n,S,H].
        students: inputs of the students' heads, likewise.
        logits: the students' head, by default the teacher's.
    """
    flat = target.reshape(-1, target.shape[-1])
    others = [s.reshape(-1, s.shape[-1]) for s in students]
    totals = np.zeros(len(students))
    for at in range(0, len(flat), TOGETHER):
        reference = log_softmax(teacher.logits(flat[at : at + TOGETHER]))
        chance = np.exp(reference)
        for i, student in enumerate(others):
            found = log_softmax((logits or teacher.logits)(student[at : at + TOGETHER]))
            np.subtract(reference, found, out=found)
            totals[i] += np.einsum("tv,tv->", chance, found)
    return [float(total) / len(flat) for total in totals]
