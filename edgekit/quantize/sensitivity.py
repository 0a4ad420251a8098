"""Measure how much the model's output changes when a single weight is quantized.

The model reads a few random tokens, or a piece of the text that it is calibrated on. For every candidate weight, a
variant of the model with only that weight quantized runs alongside; the sensitivity is the mean KL divergence of the
variant's next-token distribution from the model's. These divergences nearly add up to that of the fully quantized
model, and random tokens are enough to find the tensors that produce massive activations.
"""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from edgekit.numerics.softmax import log_softmax
from edgekit.quantize.evaluate import feeds_of, multiply, random_tokens, run_until
from edgekit.quantize.pack import unpack
from edgekit.quantize.tensor import Fit, cores, quantize_weight
from edgekit.types import Grid, Progress, Weights, silent

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir
    from numpy.typing import NDArray

TOKENS, TEXT_TOKENS = 32, 128
"""Random tokens to read, or tokens of text. The second half of the positions is averaged over."""

TOGETHER = 8
"""Variants whose logits are in memory at once."""

MEMORY = 256 << 20
"""Maximum bytes of one hidden value of all variants; more candidates are measured in several passes."""


def measure_sensitivity(
    model: ir.Model,
    weights: Weights,
    candidates: dict[str, Grid],
    fit: Fit,
    *,
    text: NDArray[np.int64] | None = None,
    progress: Progress = silent,
) -> dict[str, float]:
    """The mean KL divergence in nats for each candidate when only that weight is quantized.

    Args:
        model: the float graph.
        weights: its weights; each is read once per pass, and each candidate once more.
        candidates: names of linear weights, with the grid to try for each.
        fit: the quantization method.
        text: windows of tokens [n, S], of which the beginning of the middle one is read; None: random tokens.
        progress: called with the number of tensors measured.
    """
    names = tuple(candidates)
    widest = max((weights.shape(n)[0] for n in names), default=1)
    read = _tokens(weights, text)
    group = max(1, MEMORY // (4 * len(read) * widest))
    gains: dict[str, float] = {}
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(names), group):
            part = {n: candidates[n] for n in names[start : start + group]}
            gains.update(_measure(model, weights, part, fit, read, pool, progress, (start, len(names))))
    return gains


def _tokens(weights: Weights, text: NDArray[np.int64] | None) -> list[int]:
    if text is None:
        return random_tokens(weights, TOKENS)
    tokens: list[int] = text[len(text) // 2, :TEXT_TOKENS].tolist()
    return tokens


def _measure(
    model: ir.Model,
    weights: Weights,
    candidates: dict[str, Grid],
    fit: Fit,
    read: list[int],
    pool: Executor,
    progress: Progress,
    place: tuple[int, int],
) -> dict[str, float]:
    order: list[str] = []
    before, total = place

    def variants(name: str, _: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        if name in candidates:
            grid = candidates[name]
            packed = quantize_weight(weights, name, grid, fit, pool)
            order.append(name)
            progress("measuring sensitivity", before + len(order) // 2, total, "tensors")
            yield unpack(packed, weights.shape(name), grid).T

    hidden, head = run_until(model, weights, feeds_of(model, weights, read), variants, "logits")
    table = head.inputs[1]
    assert table is not None
    assert table.const_value is not None
    columns = table.const_value.numpy()
    if head.op_type == "FusedMatMul":
        columns = columns.T
    reference = log_softmax(multiply(hidden[:1, len(read) // 2 :], columns))
    probability = np.exp(reference)
    gains: dict[str, float] = {}
    for i in range(0, len(order), TOGETHER):
        changed = log_softmax(multiply(hidden[i + 1 : i + 1 + TOGETHER, len(read) // 2 :], columns))
        divergence = np.sum(probability * (reference - changed), axis=-1).mean(axis=-1)
        gains.update(zip(order[i : i + TOGETHER], map(float, divergence), strict=True))
        progress("measuring sensitivity", before + (len(order) + i) // 2, total, "tensors")
    return gains
