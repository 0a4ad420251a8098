"""A student against its teacher on text that neither run nor cut saw, beside what it is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit import measure
from edgekit.graph import build_graph
from edgekit.learn.heal import OPSET
from edgekit.quantize import reference_logits
from edgekit.types.learning import StudentScore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edgekit.learn.layers import Layers
    from edgekit.types import Progress


class Predictor:
    """A model in NumPy, for ``measure``: its weights are read once for each window."""

    def __init__(self, model: Layers) -> None:
        self._model, self.vocab_size = model, model.spec.vocab_size
        self._graph = build_graph(model.spec, model.weights, opset=OPSET, name="model")

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits [S,V] of every position."""
        found: NDArray[np.float32] = reference_logits(self._graph, self._model.weights, tokens)
        return found


def score(
    models: Mapping[str, Layers], teacher: Layers, windows: NDArray[np.int64], progress: Progress
) -> tuple[StudentScore, ...]:
    """Score models of one vocabulary.

    Args:
        models: by the name that is shown.
        teacher: what they are compared with.
        windows: tokens [n,S], two or more.
        progress: told the windows.
    """
    made = measure.make_reference(Predictor(teacher), windows, progress=progress)
    scores = []
    for name, model in models.items():
        found = measure.compare(Predictor(model), made, progress=progress)
        scores.append(
            StudentScore(
                name,
                measure.bootstrap(found.kld, _mean),
                measure.bootstrap(found.agree, _mean),
                measure.bootstrap(found.nll, _perplexity),
                measure.bootstrap(found.reference_nll, _perplexity),
            )
        )
    return tuple(scores)


def _mean(pool: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(pool.mean(axis=-1))


def _perplexity(pool: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.exp(pool.mean(axis=-1)))
