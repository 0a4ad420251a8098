"""Compare logits with reference logits of the same tokens: top-1, KL divergence, cosine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import MeasureError
from edgekit.numerics.softmax import log_softmax
from edgekit.types.npu import Agreement

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROWS = 64
"""Positions computed at once in float64."""


def agree(reference: NDArray[np.float32], logits: NDArray[np.float32]) -> Agreement:
    """Compare logits [S, V], S at least 1.

    ``kld`` is the mean of KL(softmax(reference) || softmax(logits)) in nats, over the whole vocabulary.

    Raises:
        MeasureError: NaN or infinity in ``logits``.
    """
    if not np.isfinite(logits).all():
        raise MeasureError("the logits contain NaN or infinity", "rebuild with float16 activations, or with more bits")
    same, kld, cosine = 0, 0.0, 0.0
    for start in range(0, len(reference), _ROWS):
        p, q = (a[start : start + _ROWS].astype(np.float64) for a in (reference, logits))
        same += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())
        cosine += float(((p * q).sum(axis=1) / np.linalg.norm(p, axis=1) / np.linalg.norm(q, axis=1)).sum())
        log_p, log_q = log_softmax(p), log_softmax(q)
        kld += float((np.exp(log_p) * (log_p - log_q)).sum())
    count = len(reference)
    return Agreement(same / count, max(0.0, kld / count), cosine / count)
