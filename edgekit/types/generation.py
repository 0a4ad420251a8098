"""Running a model and sampling from it. Standard library only."""

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
"""Default tokens per run of a prompt. Attention computes scores with all keys, masked or not, so shorter runs waste
less: for 512 tokens, runs of 128 compute 5/8 of the scores. Below 128 the matmuls get slower."""


@dataclass(frozen=True)
class Settings:
    """How to run a bundle. Settings affect speed; logits only by rounding, or by the choice of the prompt graph.

    ``spinning``: idle threads spin instead of sleeping. ``pinned``: each thread except the caller's is pinned to one
    physical core. ``prompt_graph``: ``own`` is the bundle's prompt graph. ``prefill_chunk``: most tokens per run of a
    prompt. ``decode_graph_max_tokens``: runs of up to this many tokens use the decoder's graph, whatever
    ``prompt_graph`` is.

    Raises ValueError if a number is below 1.
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
            raise ValueError(f"must be at least 1: {', '.join(f'{name} {count}' for name, count in counts.items())}")


class Predictor(Protocol):
    """A model that computes logits of whole sequences, used to measure quality."""

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits [S, V] of all positions of a new sequence; resets the cache first."""


class Runner(Predictor, Protocol):
    """An open model with batch size 1 and an internal key/value cache that grows with the tokens fed."""

    @property
    def context_length(self) -> int:
        """Most tokens the cache can hold."""

    @property
    def length(self) -> int:
        """Tokens in the cache now."""

    def reset(self) -> None:
        """Clear the cache."""

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Feed tokens and return the last position's logits [V]. Raises RunError beyond the context."""

    def step(self, token: int) -> NDArray[np.float32]:
        """Feed one token and return its logits [V]. The array is reused by the next call."""

    def close(self) -> None:
        """Release the session and the cache."""


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters. ``temperature`` 0 is greedy. 0 / 1.0 / 0.0 disable top_k / top_p / min_p.

    None means the default: greedy, a random ``seed``, as many new tokens as fit the context.
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
    """A generated token, the text that can be shown with it (possibly ""), and its confidence signals.

    ``logprob``, ``logprob_margin`` (top-1 minus top-2), ``prob_margin`` (the same of probabilities) and ``entropy``
    (nats) are of the unmodified distribution, NaN unless requested.
    """

    token: int
    text: str
    logprob: float = nan
    logprob_margin: float = nan
    prob_margin: float = nan
    entropy: float = nan
