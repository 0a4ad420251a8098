"""Rotate the residual stream to remove outlier channels. Exact in floating point, and free at run time.

A LLaMA's residual stream has channels thousands of times as large as the others, so one scale for the whole tensor
leaves no resolution for the small ones. An orthogonal R leaves root mean squares unchanged, so

    token rows:      E R
    layer inputs:    norm weight g -> 1,  W -> W diag(g) R          (q, k, v, gate, up, head)
    layer outputs:   W -> R^T W,  b -> R^T b                        (o, down)

is the same function (the first rotation of QuaRot, arXiv 2404.00456). R is a Kronecker product of small orthogonal
matrices: Hadamard matrices for the powers of two, a cosine transform for the remaining factor of the width.
"""

from __future__ import annotations

import re
from functools import cache
from math import prod
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from edgekit.types.tensor_names import EMBEDDING, HEAD, LAST_NORM

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.types import Weights


LARGEST = 64
"""Rows of the largest factor: wider transforms use several."""

_READS = re.compile(r"^(model\.layers\.\d+\.)(self_attn\.[qkv]_proj|mlp\.(?:gate|up)_proj)\.weight$")
_ADDS = re.compile(r"^model\.layers\.\d+\.(self_attn\.o_proj|mlp\.down_proj)\.(weight|bias)$")
_NORM = re.compile(r"(^model\.norm|_layernorm)\.weight$")


@cache
def factors(width: int) -> tuple[NDArray[np.float32], ...]:
    """Small orthogonal matrices whose Kronecker product has ``width`` rows."""
    found, rest = [], width
    while rest % 2 == 0:
        size = 2
        while size < LARGEST and rest % (2 * size) == 0:
            size *= 2
        found.append(_hadamard(size))
        rest //= size
    return (*found, _cosine(rest)) if rest > 1 or not found else tuple(found)


def rotate_rows(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute ``x @ R`` for the last axis of x [..., width], factor by factor."""
    shape, matrices = x.shape, factors(x.shape[-1])
    for i, matrix in enumerate(matrices):
        before, after = prod(m.shape[0] for m in matrices[:i]), prod(m.shape[0] for m in matrices[i + 1 :])
        x = np.matmul(matrix.T, x.reshape(-1, before, matrix.shape[0], after))
    return np.ascontiguousarray(x.reshape(shape), np.float32)


class RotatedWeights:
    """The weights of the rotated model, with an untied head; equivalent to the weights it wraps."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._tied = HEAD not in weights.names()
        self._lock = Lock()
        self._held: tuple[str, NDArray[np.float32]] = "", np.empty(0, np.float32)

    def names(self) -> tuple[str, ...]:
        """All tensor names, in model order."""
        return (*self._weights.names(), HEAD) if self._tied else self._weights.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._weights.shape(self._stored(name))

    def stored(self, name: str) -> str:
        """How the checkpoint stores it."""
        return self._weights.stored(self._stored(name))

    def nbytes(self, name: str) -> int:
        """Bytes it occupies in the checkpoint."""
        return self._weights.nbytes(self._stored(name))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop), rotated."""
        if _NORM.search(name):
            return np.ones_like(self._weights.read(name, start, stop))
        if _ADDS.match(name):
            # A rotated row depends on all rows, so the whole matrix is rotated once, and the last matrix cached.
            with self._lock:
                if self._held[0] != name:
                    self._held = name, np.ascontiguousarray(rotate_rows(self._weights.read(name).T).T)
                return self._held[1][start:stop].copy()
        rows = self._weights.read(self._stored(name), start, stop)
        norm = self._norm_before(name)
        if norm:
            rows *= self._weights.read(norm)
        return rotate_rows(rows) if norm or name == EMBEDDING else rows

    def _stored(self, name: str) -> str:
        return EMBEDDING if self._tied and name == HEAD else name

    @staticmethod
    def _norm_before(name: str) -> str:
        """The norm whose weight goes into a linear layer."""
        found = _READS.match(name)
        if found:
            return found[1] + ("input" if found[2].startswith("self_attn") else "post_attention") + "_layernorm.weight"
        return LAST_NORM if name == HEAD else ""


def _hadamard(size: int) -> NDArray[np.float32]:
    """Sylvester's Hadamard matrix, orthonormal; ``size`` is a power of two."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.asarray(matrix / np.sqrt(size), np.float32)


def _cosine(size: int) -> NDArray[np.float32]:
    """The orthonormal discrete cosine transform, type II."""
    rows, columns = np.arange(size)[:, None], np.arange(size)[None]
    matrix = np.cos(np.pi * (columns + 0.5) * rows / size) * np.sqrt(2 / size)
    matrix[0] /= np.sqrt(2)
    return np.asarray(matrix, np.float32)
