"""A model cut down: some of its layers, numbered anew, with some of their rows and columns or with other values."""

from __future__ import annotations

import re
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgekit.types import ModelSpec, Weights

_LAYER = re.compile(r"^model\.layers\.(\d+)\.")


def keep_layers(spec: ModelSpec, layers: Sequence[int]) -> ModelSpec:
    """The spec of a model with these layers alone, in this order."""
    return replace(
        spec,
        layers=len(layers),
        windows=tuple(spec.windows[i] for i in layers),
        rotary=tuple(spec.rotary[i] for i in layers),
    )


class CutWeights:
    """``Weights`` of a model cut down. Names are those of the smaller model.

    ``rows`` and ``columns`` hold the indices that are kept of a tensor, ``changed`` the tensors with other values.
    All three may be filled while the weights are in use.
    """

    def __init__(self, weights: Weights, layers: Sequence[int]) -> None:
        """``layers`` are those kept of ``weights``, in ascending order."""
        self._weights, self._layers = weights, tuple(layers)
        self.rows: dict[str, NDArray[np.intp]] = {}
        self.columns: dict[str, NDArray[np.intp]] = {}
        self.changed: MutableMapping[str, NDArray[np.float32]] = {}

    def names(self) -> tuple[str, ...]:
        """All tensor names, in model order."""
        place = {layer: i for i, layer in enumerate(self._layers)}
        names = []
        for name in self._weights.names():
            found = _LAYER.match(name)
            if found is None:
                names.append(name)
            elif int(found[1]) in place:
                names.append(f"model.layers.{place[int(found[1])]}.{name[found.end() :]}")
        return tuple(names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        if name in self.changed:
            return self.changed[name].shape
        count, *width = self._weights.shape(self._theirs(name))
        count = len(self.rows[name]) if name in self.rows else count
        return (count, *([len(self.columns[name])] if name in self.columns else width))

    def stored(self, name: str) -> str:
        """How the checkpoint stores it."""
        return self._weights.stored(self._theirs(name))

    def nbytes(self, name: str) -> int:
        """Bytes that what is kept of it occupies in the checkpoint."""
        theirs = self._theirs(name)
        return self._weights.nbytes(theirs) * prod(self.shape(name)) // prod(self._weights.shape(theirs))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop)."""
        if name in self.changed:
            return self.changed[name][start:stop].copy()
        theirs = self._theirs(name)
        if name in self.rows:
            values = self._weights.read(theirs)[self.rows[name][start:stop]]
        else:
            values = self._weights.read(theirs, start, stop)
        return values[:, self.columns[name]] if name in self.columns else values

    def _theirs(self, name: str) -> str:
        found = _LAYER.match(name)
        if found is None:
            return name
        return f"model.layers.{self._layers[int(found[1])]}.{name[found.end() :]}"
