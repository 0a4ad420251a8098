"""Tokens in, logits out, and what is sampled from them. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Literal, Protocol

from edgekit import ranges

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


PREFILL_CHUNK = 128
"""Tokens fed in one run. Attention computes the scores of a run with all keys, masked or not, so short runs waste less
of them: of 512 tokens, runs of 128 compute 5/8. Below 128 the matmuls get slower."""


@dataclass(frozen=True)
class Settings:
    """How a bundle is run. They change the speed; the logits only by rounding, or by the graph that prompts take.

    ``spinning``: threads wait for work in a loop instead of asleep. ``pinned``: each thread but the caller's keeps to
    one physical core. ``prompt_graph``: ``own`` is the bundle's graph for prompts. ``prefill_chunk``: most tokens of
    one run of a prompt. ``decode_graph_max_tokens``: up to this many tokens at once run on the decoder's graph,
    whatever ``prompt_graph`` says.

    Raises ValueError where a number is below 1.
    """

    threads: ranges.Threads
    spinning: bool
    pinned: bool
    prompt_graph: Literal["own", "decoder"]
    prefill_chunk: ranges.Chunk
    decode_graph_max_tokens: ranges.Chunk

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("threads", "prefill_chunk", "decode_graph_max_tokens")}
        if min(counts.values()) < 1:
            raise ValueError(f"{', '.join(f'{name} {count}' for name, count in counts.items())}: all count from 1")


class Predictor(Protocol):
    """What quality is measured on: logits of whole sequences."""

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits [S, V] of every position of a fresh sequence; a cache is reset first."""


class Runner(Predictor, Protocol):
    """A model held open. Batch 1. The key/value cache lives inside and grows by what is fed."""

    @property
    def context_length(self) -> int:
        """Most tokens the cache can hold."""

    @property
    def length(self) -> int:
        """Tokens in the cache now."""

    def reset(self) -> None:
        """Forget everything that was fed."""

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Feed tokens; return the last position's logits [V]. Raises RunError past the context."""

    def step(self, token: int) -> NDArray[np.float32]:
        """Feed one token; return its logits [V]. The array is reused by the next call."""

    def close(self) -> None:
        """Release the session and the cache."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. ``temperature`` 0 is greedy. 0 / 1.0 / 0.0 switch top_k / top_p / min_p off.

    None is what nobody asked for: greedy; another ``seed`` each time; as many new tokens as the context holds.
    """

    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Emitted:
    """One generated token: the text that became safe to show with it (possibly ""), and its signals.

    ``logprob``, ``logprob_margin`` (of top-1 over top-2), ``prob_margin`` (the same of their probabilities)
    and ``entropy`` (nats) are of the unmodified distribution, NaN unless they were asked for.
    """

    token: int
    text: str
    logprob: float = nan
    logprob_margin: float = nan
    prob_margin: float = nan
    entropy: float = nan
