"""Which layers of a decoder to leave out.

Three choices are made and the one that costs least on other text is taken: by block influence, by what each layer costs
when it alone is left out, and one after the other (greedy). Which of them is best depends on how many layers go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.learn.layers import Layers, divergences
from edgekit.types import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

TRIED = 8
"""Layers tried in each step of the greedy choice, those that cost least the last time."""


@dataclass(frozen=True)
class DepthChoice:
    """The ``kept`` layers, how they were found, and KL divergences on held-out text of all ``methods`` (nats a token).

    ``influence`` [layers] is 1 - the mean cosine between what enters and leaves a layer (ShortGPT, arXiv 2403.03853).
    """

    kept: tuple[int, ...]
    method: str
    methods: tuple[tuple[str, float], ...]
    influence: tuple[float, ...]


def choose_layers(
    teacher: Layers,
    count: int,
    windows: NDArray[np.int64],
    held_out: NDArray[np.int64],
    *,
    progress: Progress = silent,
) -> DepthChoice:
    """Choose ``count`` layers to keep.

    Args:
        teacher: the model.
        count: layers to keep, 1 or more.
        windows: text [n,S] by which layers are chosen. Their number times S times layers fits in memory as float32.
        held_out: text [m,S] by which the best choice is taken.
        progress: called with the number of layers weighed.
    """
    total = teacher.spec.layers
    everything = tuple(range(total))
    if count >= total:
        return DepthChoice(everything, "all", (), ())
    text = _Text.of(teacher, windows)
    influence, alone = _leave_one_out(teacher, everything, everything, text, progress, (0, total))
    choices = {
        "block influence": _best(influence, count),
        "leave-one-out": _best([alone[i] for i in everything], count),
        "greedy": _greedy(teacher, count, alone, text, progress),
    }
    fresh = _Text.of(teacher, held_out)
    costs = {name: _cost(teacher, kept, fresh) for name, kept in choices.items()}
    method = min(costs, key=lambda name: costs[name])
    return DepthChoice(choices[method], method, tuple(costs.items()), tuple(influence))


@dataclass(frozen=True)
class _Text:
    """Embedded windows [n,S,H], and the inputs of the teacher's head."""

    embedded: Floats
    target: Floats

    @classmethod
    def of(cls, teacher: Layers, windows: NDArray[np.int64]) -> _Text:
        embedded = x = teacher.embed(windows)
        for i in range(teacher.spec.layers):
            x = teacher.run(i, x)
        return cls(embedded, teacher.normed(x))


def _cost(teacher: Layers, kept: Iterable[int], text: _Text) -> float:
    x = text.embedded
    for i in kept:
        x = teacher.run(i, x)
    return divergences(teacher, text.target, [teacher.normed(x)])[0]


def _best(costs: Sequence[float], count: int) -> tuple[int, ...]:
    """The ``count`` layers that cost most to leave out, in their order."""
    return tuple(sorted(sorted(range(len(costs)), key=lambda i: -costs[i])[:count]))


def _greedy(teacher: Layers, count: int, alone: dict[int, float], text: _Text, progress: Progress) -> tuple[int, ...]:
    kept, costs = tuple(sorted(alone)), dict(alone)
    steps = len(kept) - count
    for step in range(steps):
        if step:
            tried = sorted(kept, key=lambda i: costs[i])[:TRIED]
            costs |= _leave_one_out(teacher, kept, tried, text, progress, (step, steps))[1]
        least = min(kept, key=lambda i: costs[i])
        kept = tuple(i for i in kept if i != least)
    return kept


def _leave_one_out(
    teacher: Layers,
    kept: Sequence[int],
    tried: Iterable[int],
    text: _Text,
    progress: Progress,
    place: tuple[int, int],
) -> tuple[list[float], dict[int, float]]:
    """The influence of each layer of ``kept``, and the divergence when each of ``tried`` is left out too.

    All that lack a layer run side by side, so that every weight is read once.
    """
    x, without, influence, wanted = text.embedded, dict[int, "Floats"](), [], set(tried)
    rows = len(x)
    for layer in kept:
        progress("weighing layers", place[0], place[1], "layers")
        after = teacher.run(layer, np.concatenate([x, *without.values()]))
        without = {i: after[rows * (k + 1) : rows * (k + 2)] for k, i in enumerate(without)}
        if layer in wanted:
            without[layer] = x
        influence.append(1 - _cosine(x, after[:rows]))
        x = after[:rows]
    costs = divergences(teacher, text.target, [teacher.normed(s) for s in without.values()])
    return influence, dict(zip(without, costs, strict=True))


def _cosine(a: Floats, b: Floats) -> float:
    """Mean cosine of the rows of a and b."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float((np.einsum("nsh,nsh->ns", a, b) / np.maximum(lengths, 1e-30)).mean())
