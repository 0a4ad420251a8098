"""Log-softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

F = TypeVar("F", np.float32, np.float64)


def log_softmax(logits: NDArray[F]) -> NDArray[F]:
    """log(softmax) over the last axis, in the dtype of ``logits``. Subtracts the maximum first to avoid overflow."""
    shifted: NDArray[F] = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted
