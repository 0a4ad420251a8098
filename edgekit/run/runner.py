"""A runner for a bundle, with its key/value cache: tokens in, logits out. Implements ``types.Runner``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import RunError
from edgekit.host.arithmetic import NOTHING
from edgekit.run.cache import AppendCache, Cache, InPlaceCache, find_slots
from edgekit.run.exactness import (
    PROMPT_MATMULS,
    decoder_matmuls,
    describe_arithmetic,
    find_arithmetic,
    folding_entry,
    require_exact,
)
from edgekit.run.io_binding import BoundGraph
from edgekit.run.session import Session, SessionInfo, open_prompt_session, open_session
from edgekit.run.settings import choose_settings
from edgekit.run.speculative import EXACT, LENGTHS, ROUNDING, DraftPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgekit.host.arithmetic import Arithmetic
    from edgekit.types import Bundle, Settings


def load_runner(
    bundle: Bundle,
    *,
    threads: int | None = None,
    context: int | None = None,
    small_memory: bool = False,
    settings: Settings | None = None,
    graph: bytes | None = None,
) -> OnnxRunner:
    """Open a bundle for running.

    Args:
        bundle: the opened bundle.
        threads: intra-op threads; overrides ``settings``.
        context: maximum tokens in the cache; by default what the model and the target allow.
        small_memory: run prompts on the decoder's graph even if the bundle has a prompt graph, grow the cache in small
            steps, and free memory after each run: slower for prompts, half the memory.
        graph: an ONNX file with the same weights to use instead of the bundle's decoder graph, as from
            reading.graph_at_level.
        settings: by default those that `edgekit bench --tune` found on this class of machine, else default_settings().

    Raises:
        RunError: the session cannot be created, or ``context`` is longer than the bundle allows.
    """
    manifest = bundle.manifest
    limit = manifest.context_length
    if context is not None and not 1 <= context <= limit:
        raise RunError(
            f"context={context} is not between 1 and {limit}, the limit of {bundle.path}",
            hint=f"pass at most `context={limit}`",
        )
    settings = choose_settings(manifest, settings=settings, threads=threads, small_memory=small_memory)
    kernels = (*manifest.kernels, folding_entry(manifest.accuracy_level))
    exact = find_arithmetic(decoder_matmuls(manifest), kernels)
    require_exact(exact)
    prompts = None
    exact_prompts = find_arithmetic(PROMPT_MATMULS, kernels) if settings.prompt_graph == "own" else exact
    if not exact_prompts.exact:
        settings = replace(settings, prompt_graph="decoder")
    with ThreadPoolExecutor(1) as beside:
        if settings.prompt_graph == "own":
            prompts = beside.submit(open_prompt_session, bundle, settings, exact_prompts)
        session = open_session(bundle, settings, small_memory=small_memory, arithmetic=exact, graph=graph)
    return OnnxRunner(
        session,
        settings=settings,
        context=context or limit,
        shared_kv=manifest.cpu_target.shared_kv,
        small_memory=small_memory,
        prompts=None if prompts is None else prompts.result(),
        prompt_arithmetic=exact_prompts,
        rounding=ROUNDING.get(manifest.accuracy_level, EXACT),
        rope_border=manifest.spec.rope_border,
    )


class OnnxRunner:
    """A Runner over ONNX Runtime sessions: one for decoding, optionally another for prompts, with a shared cache.

    Attributes:
        info: the session of the decoder's graph.
        settings: the settings in use.
        prompt_arithmetic: how exact the prompt graph's matmuls are. If no session entries make them exact, ``settings``
            runs prompts on the decoder's graph.
        pace: statistics of drafts so far; see speculative.py.
    """

    def __init__(
        self,
        session: Session,
        *,
        settings: Settings,
        context: int,
        shared_kv: bool,
        small_memory: bool = False,
        prompts: Session | None = None,
        prompt_arithmetic: Arithmetic = NOTHING,
        rounding: float = EXACT,
        rope_border: int | None = None,
    ) -> None:
        """Args: as load_runner makes them; ``rope_border``: see ModelSpec."""
        slots = find_slots(session.handle.get_inputs())
        self.info: SessionInfo = session.info
        self.settings = settings
        self.prompt_arithmetic = prompt_arithmetic
        self._chunk = min(settings.prefill_chunk, context)
        self._context = context
        self._cache: Cache = (
            InPlaceCache(slots, context, tight=small_memory) if shared_kv else AppendCache(slots, context)
        )
        self._tokens = BoundGraph(session, context, self._chunk)
        self._prompts = self._tokens if prompts is None else BoundGraph(prompts, context, self._chunk)
        self._vocab = self._tokens.vocab_size
        self._last = np.empty((1, self._vocab), self._tokens.dtype)
        self._several: NDArray[Any] | None = None
        self._rope_border = context if rope_border is None else rope_border
        self._long = False
        self._held: list[int] = []
        self.pace = DraftPolicy(rounding)

    @property
    def arithmetic(self) -> str:
        """A description of how exact the integer matmuls are."""
        return describe_arithmetic(self.info.arithmetic, self.prompt_arithmetic)

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._vocab

    @property
    def context_length(self) -> int:
        """The maximum number of tokens in the cache."""
        return self._context

    @property
    def length(self) -> int:
        """Tokens in the cache now."""
        return self._cache.length

    @property
    def room(self) -> int:
        """Most tokens of one call: to the rope's border, and from there to the end of the context."""
        end = self._rope_border if self.length < self._rope_border else self._context
        return end - self.length

    @property
    def cache_nbytes(self) -> int:
        """Bytes that the cache occupies now."""
        return self._cache.nbytes

    def reset(self) -> None:
        """Empty the cache."""
        self.rewind(0)

    def rewind(self, length: int) -> None:
        """Forget the tokens from position ``length`` on; their keys and values will be overwritten."""
        if not 0 <= length <= self.length:
            raise RunError(
                f"cannot rewind to position {length}: the cache holds {self.length} tokens",
                f"pass a position from 0 to {self.length}",
            )
        self._cache.rewind(length)

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Feed tokens and return the last position's logits [V] as a new array.

        Raises:
            RunError: no tokens, a token outside the vocabulary, or more tokens than the context holds.
        """
        return self._read(self._accept(tokens))

    def step(self, token: int) -> NDArray[np.float32]:
        """Feed one token and return its logits [V]. The next call reuses the array.

        Raises:
            RunError: the context is full.
        """
        if self._cache.length >= self._context:
            raise self._too_long(1)
        self._hold([token])
        self._tokens.feed_one(token, self._cache, self._last)
        logits: NDArray[np.float32] = self._last[0].astype(np.float32, copy=False)
        return logits

    def verify(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Feed a draft of up to 16 tokens to the decoder's graph and return all their logits [S, V].

        The next call reuses the array. The logits are not bit-identical to those of ``step``: see speculative.py.

        Raises:
            RunError: as in ``prefill``.
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
            RunError: as in ``prefill``.
        """
        self.reset()
        ids = self._accept(tokens)
        rows = np.empty((len(ids), self._vocab), self._prompts.dtype)
        for start in range(0, len(ids), self._chunk):
            self._feed(self._prompts, ids[start : start + self._chunk], rows[start:])
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
            raise RunError("the prompt has no tokens", hint="pass a prompt of at least one token")
        if self.length + ids.size > self._context:
            raise self._too_long(ids.size)
        if ids.min() < 0 or ids.max() >= self._vocab:
            culprit = ids.min() if ids.min() < 0 else ids.max()
            raise RunError(
                f"token {culprit} is outside the vocabulary of {self._vocab}",
                hint="encode the text with the bundle's own tokenizer",
            )
        self._hold(ids.tolist())
        return ids

    def _hold(self, ids: list[int]) -> None:
        """Note the tokens that are fed next. Where they cross the rope's border, the keys before them are made again.

        As transformers' Phi3ForCausalLM.prepare_inputs_for_generation does: all keys have the factors that a sequence
        of this length has, as if it were one prompt.
        """
        held, self._held[self.length :] = self._held[: self.length], ids
        long = len(held) + len(ids) > self._rope_border
        if long != self._long:
            self._cache.rewind(0)
            self._long = long
            if held:
                self._read(np.asarray(held, np.int64))

    def _read(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Feed a prompt; the last position's logits [V] as a new array."""
        graph = self._prompts if len(ids) > self.settings.decode_graph_max_tokens else self._tokens
        rows = self._last if graph.last_only else np.empty((min(self._chunk, len(ids)) + 1, self._vocab), graph.dtype)
        for start in range(0, len(ids), self._chunk):
            chunk = ids[start : start + self._chunk]
            self._feed(graph, chunk, rows)
        graph.release()
        last: NDArray[np.float32] = rows[min(len(chunk), len(rows)) - 1].astype(np.float32)
        return last

    def _feed(self, graph: BoundGraph, ids: NDArray[np.int64], rows: NDArray[Any]) -> None:
        """Run over a part of a prompt. The highest position of a run decides on the rope's factors."""
        short = self._long and self.length + len(ids) <= self._rope_border
        graph.feed(ids, self._cache, rows[: len(ids) + short], filler=self._rope_border if short else None)

    def _too_long(self, count: int) -> RunError:
        return RunError(
            f"{self.length} tokens in the cache and {count} new ones make {self.length + count}, "
            f"more than the context of {self._context}",
            hint="shorten the prompt or start a new conversation",
        )
