"""Move activation outliers into the weights, where blockwise grids handle them better. Exact, and needs no data.

A channel with large activations is divided by s where it is produced and multiplied by s where it is used:

    norm: weight / s          ->  columns of q, k, v or of gate, up: weight * s
    up:   rows / s, bias / s  ->  columns of down: weight * s

s = 2**round(alpha * log2(a / geometric mean of a)), where a is the largest magnitude of the channel over a few random
tokens. Powers of two change no bit of the matmul in floating point. Kernels that round activations to 8 bits in blocks
(accuracy level 4) then lose less of small channels next to a large one, and the weights of important channels get
finer steps (SmoothQuant, arXiv 2211.10438; AWQ, arXiv 2306.00978; both with data).
"""

from __future__ import annotations

import re
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from edgekit.quantize.evaluate import feeds_of, pause_at_matmuls, random_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir
    from numpy.typing import NDArray

    from edgekit.types import Weights

LARGEST = 6
"""s stays within 2**-6 .. 2**6, so that a channel that happened to be small is not blown up."""

OBSERVED = {"q_proj", "gate_proj", "down_proj"}
"""The linear layers whose input is observed; k and v share the input of q, up that of gate."""

_NAME = re.compile(r"^(model\.layers\.\d+\.)(?:self_attn\.|mlp\.)?(\w+)\.(weight|bias)$")


class SmoothedWeights:
    """Weights with the scales folded in; equivalent to the weights it wraps."""

    def __init__(self, weights: Weights, observed: _Observation) -> None:
        self._weights = weights
        self._observed = observed
        self.names, self.shape = weights.names, weights.shape
        self.stored, self.nbytes = weights.stored, weights.nbytes

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop), scaled."""
        rows = self._weights.read(name, start, stop)
        found = _NAME.match(name)
        if found is None:
            return rows
        layer, part, kind = found.groups()
        columns = self._observed.scale(layer, _READ_BY.get(part))
        if columns is not None and kind == "weight":
            rows *= columns
        made = self._observed.scale(layer, _MADE_FOR.get(part))
        if made is not None:
            made = made[start:stop]
            rows /= made[:, None] if rows.ndim == 2 else made
        return rows


# For each layer: the observed layer whose scale multiplies its columns, and the one whose scale divides its outputs.
_READ_BY = {"q_proj": "q", "k_proj": "q", "v_proj": "q", "gate_proj": "gate", "up_proj": "gate", "down_proj": "down"}
_MADE_FOR = {"input_layernorm": "q", "post_attention_layernorm": "gate", "up_proj": "down"}


def smooth(model: ir.Model, weights: Weights, alpha: float) -> SmoothedWeights:
    """Wrap weights with smoothing scales, observed lazily on random tokens.

    Args:
        model: the float graph of ``weights``; every weight is read once.
        weights: the checkpoint's weights.
        alpha: how much of the activations' range to move, 0 (nothing) to 1 (all).
    """
    return SmoothedWeights(weights, _Observation(model, weights, alpha))


class _Observation:
    """The scales of a model, computed on demand: asking for a layer's scale evaluates the model up to that layer.

    So a build quantizes the first layers before reading the last ones, and each layer's bytes are still in the page
    cache. Thread-safe.
    """

    def __init__(self, model: ir.Model, weights: Weights, alpha: float) -> None:
        self._found: dict[tuple[str, str], NDArray[np.float32]] = {}
        self._lock = Lock()
        self._steps = self._walk(model, weights, alpha)
        self._done = False
        self._error: BaseException | None = None

    def scale(self, layer: str, key: str | None) -> NDArray[np.float32] | None:
        """The scale of the channels that ``key`` reads in a layer; None if it was not observed."""
        if key is None:
            return None
        with self._lock:
            while (layer, key) not in self._found and not self._done:
                self._advance()
            return self._found.get((layer, key))

    def _advance(self) -> None:
        if self._error is not None:
            raise self._error
        try:
            next(self._steps)
        except StopIteration:
            self._done = True
        except BaseException as error:
            # A generator that raised looks exhausted: raise again for later callers, who must not lack scales.
            self._error = error
            raise

    def _walk(self, model: ir.Model, weights: Weights, alpha: float) -> Iterator[None]:
        def observe(name: str, x: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
            found = _NAME.match(name)
            if found and found[2] in OBSERVED:
                self._found[found[1], _READ_BY[found[2]]] = _scale(x, alpha)
            return iter(())

        feeds = feeds_of(model, weights, random_tokens(weights))
        yield from pause_at_matmuls(model, weights, feeds, observe, "logits")


def _scale(x: NDArray[np.float32], alpha: float) -> NDArray[np.float32]:
    """The scales, powers of two, for the channels of x [1,S,H]."""
    size = np.log2(np.maximum(np.abs(x).reshape(-1, x.shape[-1]).max(axis=0), np.float32(1e-6)))
    exponent = np.clip(np.rint(alpha * (size - size.mean())), -LARGEST, LARGEST)
    scale: NDArray[np.float32] = np.exp2(exponent).astype(np.float32)
    return scale
