"""Choose the next token from logits. Pure functions with the names, order and semantics of transformers' processors."""

from __future__ import annotations

from math import expm1, isnan, log
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.types import Sampling

    Floats = NDArray[np.float32]


_COLDEST = 1e-6
"""The lowest temperature: effectively greedy for float32 logits, which a smaller divisor would turn to infinity."""


def is_greedy(sampling: Sampling) -> bool:
    """Whether the likeliest token is always chosen, without sampling."""
    return sampling.temperature is None or sampling.temperature <= 0


def penalize(logits: Floats, seen: NDArray[np.bool_], penalty: float) -> Floats:
    """Make the tokens in the mask ``seen`` [V] less likely (penalty > 1) or more (< 1). CTRL, arXiv:1909.05858."""
    penalized = np.where(logits < 0, logits * np.float32(penalty), logits / np.float32(penalty))
    return np.where(seen, penalized, logits)


def keep_top_k(logits: Floats, k: int) -> Floats:
    """Keep the k largest logits and those equal to the k-th; set the others to -inf."""
    k = min(k, logits.size)
    threshold = np.partition(logits, logits.size - k)[logits.size - k]
    return np.where(logits < threshold, np.float32(-np.inf), logits)


def keep_top_p(logits: Floats, p: float) -> Floats:
    """Keep the fewest likeliest tokens whose probabilities sum to at least p; others get -inf. arXiv:1904.09751."""
    likelihood = probabilities(logits)
    # Together these are less likely than 1 - p, so only the others, usually a few hundred, need sorting.
    unlikely = likelihood < (1 - p) / logits.size
    others = np.flatnonzero(~unlikely)
    ascending = others[np.argsort(likelihood[others])]
    tail = likelihood[unlikely].sum() + np.cumsum(likelihood[ascending])
    kept = np.where(unlikely, np.float32(-np.inf), logits)
    kept[ascending[:-1][tail[:-1] <= 1 - p]] = -np.inf
    return kept


def keep_min_p(logits: Floats, p: float) -> Floats:
    """Keep the tokens at least p times as likely as the likeliest; set the others to -inf. arXiv:2407.01082."""
    return np.where(logits < logits.max() + np.float32(np.log(p)), np.float32(-np.inf), logits)


def probabilities(logits: Floats) -> NDArray[np.float64]:
    """Softmax, summed in float64 so that the cumulative sum over a large vocabulary ends at 1."""
    likelihood = np.exp(logits - logits.max()).astype(np.float64)
    return np.asarray(likelihood / likelihood.sum())


def warp(logits: Floats, seen: NDArray[np.bool_], sampling: Sampling) -> Floats:
    """Apply repetition penalty, temperature, top-k, top-p and min-p to logits, each if enabled."""
    if sampling.repetition_penalty != 1.0:
        logits = penalize(logits, seen, sampling.repetition_penalty)
    if not is_greedy(sampling):
        logits = logits / np.float32(max(sampling.temperature or 0.0, _COLDEST))
        if sampling.top_k > 0:
            logits = keep_top_k(logits, sampling.top_k)
        if sampling.top_p < 1.0:
            logits = keep_top_p(logits, sampling.top_p)
        if sampling.min_p > 0:
            logits = keep_min_p(logits, sampling.min_p)
    return logits


def choose(logits: Floats, seen: NDArray[np.bool_], sampling: Sampling, random: np.random.Generator) -> int:
    """Choose the next token.

    Args:
        logits: [V] at the previous position.
        seen: mask [V] of the tokens in the prompt and the answer so far.
        sampling: temperature 0 chooses the largest logit and does not use ``random``.
        random: one number is drawn from it.
    """
    warped = warp(logits, seen, sampling)
    if is_greedy(sampling):
        return int(warped.argmax())
    candidates = np.flatnonzero(warped > -np.inf)
    edges = np.cumsum(probabilities(warped[candidates]))
    drawn = np.searchsorted(edges, random.random() * edges[-1], side="right")
    return int(candidates[min(int(drawn), candidates.size - 1)])


def signals(logits: Floats, token: int, room: Floats | None = None) -> tuple[float, float, float, float]:
    """Compute confidence signals of ``token`` from the unmodified distribution, with one exponential per logit.

    Args:
        logits: [V]; not modified.
        token: the chosen token.
        room: scratch memory [2, V] to reuse for many tokens; allocating it takes a fifth of the time.

    Returns:
        The log-probability of ``token``; the difference of the log-probabilities of top-1 and top-2; the difference of
        their probabilities; the entropy in nats. Accurate to about 1e-5: sums are pairwise, in float32.
    """
    shifted, weights = np.empty((2, logits.size), np.float32) if room is None else room
    np.subtract(logits, logits.max(), out=shifted)
    np.exp(shifted, out=weights)
    total = float(weights.sum())
    # Not np.dot: it would start threads that compete with ONNX Runtime's.
    with np.errstate(invalid="ignore"):
        moment = float(np.multiply(weights, shifted, out=weights).sum())
    if isnan(moment):  # 0 * -inf: tokens that the graph excludes
        moment = float(np.nansum(weights))
    normalizer = log(total)
    chosen = float(shifted[token])
    shifted[shifted.argmax()] = -np.inf
    second = float(shifted.max())
    return chosen - normalizer, -second, -expm1(second) / total, max(0.0, normalizer - moment / total)
