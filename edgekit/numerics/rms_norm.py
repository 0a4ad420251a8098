"""Root mean square normalization."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def rms_norm(x: NDArray[np.float32], weight: NDArray[np.float32], epsilon: float) -> NDArray[np.float32]:
    """X / sqrt(mean(x^2) + epsilon) * weight over the last axis (arXiv 1910.07467)."""
    mean = np.mean(np.square(x), axis=-1, keepdims=True)
    normed: NDArray[np.float32] = x / np.sqrt(mean + np.float32(epsilon)) * weight
    return normed
