"""Logarithms of probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

F = TypeVar("F", np.float32, np.float64)


def log_softmax(logits: NDArray[F]) -> NDArray[F]:
    """log(softmax) over the last axis, in the type of ``logits``. The largest is taken off first: nothing overflows."""
    shifted: NDArray[F] = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted
