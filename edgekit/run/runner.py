"""A bundle held open: tokens in, logits out, the key/value cache inside. Implements ``types.Runner``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import RunError
from edgekit.run.bound import BoundGraph
from edgekit.run.cache import AppendCache, Cache, InPlaceCache, find_slots
from edgekit.run.lookup import EXACT, LENGTHS, ROUNDING, Pace
from edgekit.run.session import Session, SessionInfo, open_prompt_session, open_session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgekit.types import Bundle

CHUNK = 128
"""Tokens fed in one run. Attention computes the scores of a run with all keys, masked or not, so short runs waste less
of them: of 512 tokens, runs of 128 compute 5/8. Below 128 the products get slower."""

FEW = 4
"""Up to this many tokens are no prompt: the decoder's graph, which unpacks 4-bit weights, is as fast for them."""


def load_runner(
    bundle: Bundle, *, threads: int | None = None, context: int | None = None, small_memory: bool = False
) -> OnnxRunner:
    """Open a bundle for running.

    Args:
        bundle: the opened bundle.
        threads: intra-op threads; the physical cores this process may use by default.
        context: most tokens the cache may hold; what the model and the target allow by default.
        small_memory: prompts run on the decoder's graph even where the bundle has one of their own: slower, without
            the 8-bit weights in memory.

    Raises:
        RunError: the session cannot be made, or ``context`` is more than the model was made for.
    """
    manifest = bundle.manifest
    limit = manifest.spec.context_length
    if manifest.target.max_context is not None:
        limit = min(limit, manifest.target.max_context)
    if context is not None and not 1 <= context <= limit:
        raise RunError(f"context={context}: {bundle.path} holds 1 to {limit} tokens", hint=f"ask for {limit} or less")
    prompts = None
    with ThreadPoolExecutor(1) as beside:
        if manifest.prefill is not None and not small_memory:
            prompts = beside.submit(open_prompt_session, bundle, threads)
        session = open_session(bundle, threads)
    return OnnxRunner(
        session,
        context=context or limit,
        shared_kv=manifest.target.shared_kv,
        prompts=None if prompts is None else prompts.result(),
        rounding=ROUNDING.get(manifest.accuracy_level, EXACT),
    )


class OnnxRunner:
    """A Runner over ONNX Runtime sessions: one for tokens, and maybe another for prompts, with one cache."""

    def __init__(
        self,
        session: Session,
        *,
        context: int,
        shared_kv: bool,
        prompts: Session | None = None,
        rounding: float = EXACT,
    ) -> None:
        slots = find_slots(session.handle.get_inputs())
        self.info: SessionInfo = session.info
        self._context = context
        self._cache: Cache = InPlaceCache(slots, context) if shared_kv else AppendCache(slots, context)
        self._tokens = BoundGraph(session, context, CHUNK)
        self._prompts = self._tokens if prompts is None else BoundGraph(prompts, context, CHUNK)
        self._vocab = self._tokens.vocab_size
        self._last = np.empty((1, self._vocab), self._tokens.dtype)
        self._several: NDArray[Any] | None = None
        self.pace = Pace(rounding)

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._vocab

    @property
    def context_length(self) -> int:
        """Most tokens the cache can hold."""
        return self._context

    @property
    def length(self) -> int:
        """Tokens in the cache now."""
        return self._cache.length

    @property
    def cache_nbytes(self) -> int:
        """Bytes the cache occupies now."""
        return self._cache.nbytes

    def reset(self) -> None:
        """Forget everything that was fed."""
        self.rewind(0)

    def rewind(self, length: int) -> None:
        """Forget the tokens from position ``length`` on; their keys and values are written over."""
        if not 0 <= length <= self.length:
            raise RunError(f"cannot go back to position {length}: {self.length} tokens are held")
        self._cache.rewind(length)

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Feed tokens, in one or several calls; return the last position's logits [V] as a new array.

        Raises:
            RunError: no tokens, a token outside the vocabulary, or more than the context holds.
        """
        ids = self._accept(tokens)
        graph = self._prompts if len(ids) > FEW else self._tokens
        rows = self._last if graph.last_only else np.empty((min(CHUNK, len(ids)), self._vocab), graph.dtype)
        for start in range(0, len(ids), CHUNK):
            chunk = ids[start : start + CHUNK]
            graph.feed(chunk, self._cache, rows[: len(chunk)])
        graph.release()
        last: NDArray[np.float32] = rows[min(len(chunk), len(rows)) - 1].astype(np.float32)
        return last

    def step(self, token: int) -> NDArray[np.float32]:
        """Feed one token; return its logits [V]. The array is reused by the next call.

        Raises:
            RunError: the context is full.
        """
        if self._cache.length >= self._context:
            raise self._too_long(1)
        self._tokens.feed_one(token, self._cache, self._last)
        logits: NDArray[np.float32] = self._last[0].astype(np.float32, copy=False)
        return logits

    def verify(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Feed a draft, up to 16 tokens, on the graph of the steps; return all their logits [S, V].

        The array is reused by the next call. The numbers are not a step's to the bit: see lookup.py.

        Raises:
            RunError: as prefill.
        """
        ids = self._accept(tokens)
        if self._several is None:
            self._several = np.empty((1 + max(LENGTHS), self._vocab), self._tokens.dtype)
        rows = self._several[: len(ids)]
        self._tokens.feed(ids, self._cache, rows)
        return rows.astype(np.float32, copy=False)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits [S, V] of every position of a fresh sequence; the cache is reset first.

        Raises:
            RunError: as prefill.
        """
        self.reset()
        ids = self._accept(tokens)
        rows = np.empty((len(ids), self._vocab), self._prompts.dtype)
        for start in range(0, len(ids), CHUNK):
            self._prompts.feed(ids[start : start + CHUNK], self._cache, rows[start : start + CHUNK])
        self._prompts.release()
        return rows.astype(np.float32, copy=False)

    def close(self) -> None:
        """Release the sessions and the cache."""
        self._cache.clear()
        self._tokens.close()
        self._prompts.close()

    def _accept(self, tokens: Sequence[int]) -> NDArray[np.int64]:
        ids = np.asarray(tokens, np.int64)
        if ids.size == 0:
            raise RunError("no tokens to feed", hint="give a prompt of at least one token")
        if self.length + ids.size > self._context:
            raise self._too_long(ids.size)
        if ids.min() < 0 or ids.max() >= self._vocab:
            culprit = ids.min() if ids.min() < 0 else ids.max()
            raise RunError(
                f"token {culprit} is outside the vocabulary of {self._vocab}",
                hint="encode the text with the bundle's own tokenizer",
            )
        return ids

    def _too_long(self, count: int) -> RunError:
        return RunError(
            f"{self.length} tokens held and {count} new ones make {self.length + count}, "
            f"more than the context of {self._context}",
            hint="shorten the prompt or start a new conversation",
        )
