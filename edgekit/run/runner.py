"""A bundle held open: tokens in, logits out, the key/value cache inside. Implements ``types.Runner``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import RunError
from edgekit.run.cache import DTYPES, AppendCache, Cache, InPlaceCache, find_slots
from edgekit.run.session import Session, SessionInfo, open_session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgekit.types import Bundle

CHUNK = 256
"""Tokens fed in one run. The graph computes logits for every token it is fed, so a prompt in one piece would need
4 * S * V bytes for them (1.6 GB for 8k tokens of a 49k vocabulary) of which only the last row is wanted. From 128
tokens on, a longer run is no faster: SmolLM2-135M in INT4 on 2 cores, 512 tokens in runs of 64, 128, 256 and 512
take 1.19, 0.99, 1.02 and 1 times as long."""


def load_runner(bundle: Bundle, *, threads: int | None = None, context: int | None = None) -> OnnxRunner:
    """Open a bundle for running.

    Args:
        bundle: the opened bundle.
        threads: intra-op threads; the physical cores this process may use by default.
        context: most tokens the cache may hold; what the model and the target allow by default.

    Raises:
        RunError: the session cannot be made, or ``context`` is more than the model was made for.
    """
    manifest = bundle.manifest
    limit = manifest.spec.context_length
    if manifest.target.max_context is not None:
        limit = min(limit, manifest.target.max_context)
    if context is not None and not 1 <= context <= limit:
        raise RunError(f"context={context}: {bundle.path} holds 1 to {limit} tokens", hint=f"ask for {limit} or less")
    session = open_session(bundle, threads)
    return OnnxRunner(session, context=context or limit, shared_kv=manifest.target.shared_kv)


class OnnxRunner:
    """A Runner over an ONNX Runtime session. Every input and output is bound to memory allocated here."""

    def __init__(self, session: Session, *, context: int, shared_kv: bool) -> None:
        handle = session.handle
        outputs = {o.name: o for o in handle.get_outputs()}
        slots = find_slots(handle.get_inputs())
        self.info: SessionInfo = session.info
        self._context = context
        self._vocab = _vocab_size(outputs)
        self._cache: Cache = InPlaceCache(slots, context) if shared_kv else AppendCache(slots, context)
        self._handle = handle
        self._binding = handle.io_binding()
        self._dtype = DTYPES[outputs["logits"].type]
        self._last = np.empty((1, self._vocab), self._dtype)
        self._ids = np.empty(CHUNK, np.int64)
        self._positions = np.empty(CHUNK, np.int64)
        self._mask = np.ones(context, np.int64)
        self._mask_at = self._mask.ctypes.data
        self._has_mask = "attention_mask" in session.info.inputs
        self._has_positions = "position_ids" in session.info.inputs
        self._bound: NDArray[Any] | None = None

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
        rows = np.empty((min(CHUNK, len(ids)), self._vocab), self._dtype)
        for start in range(0, len(ids), CHUNK):
            chunk = ids[start : start + CHUNK]
            self._feed(chunk, rows[: len(chunk)])
        self._bound = None  # lets go of the rows
        last: NDArray[np.float32] = rows[len(chunk) - 1].astype(np.float32)
        return last

    def step(self, token: int) -> NDArray[np.float32]:
        """Feed one token; return its logits [V]. The array is reused by the next call.

        Raises:
            RunError: the context is full.
        """
        position = self._cache.length
        if position >= self._context:
            raise self._too_long(1)
        self._ids[0] = token
        self._positions[0] = position
        self._run(1, self._last)
        logits: NDArray[np.float32] = self._last[0].astype(np.float32, copy=False)
        return logits

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits [S, V] of every position of a fresh sequence; the cache is reset first.

        Raises:
            RunError: as prefill.
        """
        self.reset()
        ids = self._accept(tokens)
        rows = np.empty((len(ids), self._vocab), self._dtype)
        for start in range(0, len(ids), CHUNK):
            self._feed(ids[start : start + CHUNK], rows[start : start + CHUNK])
        self._bound = None
        return rows.astype(np.float32, copy=False)

    def close(self) -> None:
        """Release the session and the cache."""
        self._cache.clear()
        self._binding = self._handle = self._bound = None

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

    def _feed(self, ids: NDArray[np.int64], rows: NDArray[Any]) -> None:
        count = len(ids)
        self._ids[:count] = ids
        self._positions[:count] = np.arange(self.length, self.length + count)
        self._run(count, rows)

    def _run(self, count: int, rows: NDArray[Any]) -> None:
        """One run over the first ``count`` of the id buffer, logits into ``rows`` [count, V]."""
        if self._handle is None:
            raise RunError("the runner is closed", hint="load it again with load_runner")
        binding = self._binding
        total = self._cache.length + count
        self._cache.bind(binding, total)
        if self._bound is not rows:
            self._bound = None  # Ctrl-C may fall between these lines
            binding.bind_input("input_ids", "cpu", 0, np.int64, (1, count), self._ids.ctypes.data)
            if self._has_positions:
                binding.bind_input("position_ids", "cpu", 0, np.int64, (1, count), self._positions.ctypes.data)
            binding.bind_output("logits", "cpu", 0, self._dtype, (1, *rows.shape), rows.ctypes.data)
            self._bound = rows
        if self._has_mask:
            binding.bind_input("attention_mask", "cpu", 0, np.int64, (1, total), self._mask_at)
        try:
            self._handle.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's errors have no common base class
            raise RunError(
                f"onnxruntime stopped at position {total}: {' '.join(str(error).split())}",
                hint="`edgekit verify` tells whether the bundle is whole",
            ) from error
        self._cache.advance(total)


def _vocab_size(outputs: dict[str, Any]) -> int:
    if "logits" not in outputs or not isinstance(outputs["logits"].shape[-1], int):
        raise RunError(
            f"the graph has no output 'logits' with a fixed vocabulary; it has {', '.join(outputs)}",
            hint="rebuild the bundle with `edgekit build`",
        )
    return int(outputs["logits"].shape[-1])
