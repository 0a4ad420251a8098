"""A runner for static graphs, with the cache in host memory. Implements ``types.Runner``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import RunError
from edgekit.run.runtime import CPU, onnxruntime
from edgekit.types.npu import NEW, PAST

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


def open_on_cpu(graph: Path, threads: int) -> Any:
    """A CPU session of a static graph or the host's graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    # By default, QDQ matmuls become MatMulNBits with 8-bit activations; level 1 computes in float32.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=[CPU])
    except Exception as error:  # onnxruntime's errors have no common base class
        raise RunError(
            f"{graph.name}: {' '.join(str(error).split())}", "rebuild the bundle with `edgekit build`"
        ) from error


class StaticRunner:
    """A Runner over a host graph and two chains of static graphs.

    Prompts run in chunks of the prefill graph's width, padded with tokens that are masked out; single tokens run on the
    decode graph.
    """

    def __init__(
        self,
        host: Any,
        prefill: Sequence[Any],
        decode: Sequence[Any],
        *,
        watch: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        """Args: sessions of the host's graph and of both chains, in order; ``watch`` gets each session's outputs."""
        self._watch = watch
        self._host, self._prefill, self._decode = host, tuple(prefill), tuple(decode)
        inputs = [i for session in self._prefill for i in session.get_inputs()]
        self._width: int = next(i.shape[1] for i in self._host_inputs(inputs) if len(i.shape) == 3)
        self._vocab: int = self._prefill[-1].get_outputs()[0].shape[-1]
        kinds = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(uint16)": np.uint16}
        self._cache = {i.name: np.zeros(i.shape, kinds[i.type]) for i in inputs if i.name.startswith(PAST)}
        self._past: int = next(iter(self._cache.values())).shape[2]
        self._length = 0

    @staticmethod
    def _host_inputs(inputs: Sequence[Any]) -> list[Any]:
        return [i for i in inputs if not i.name.startswith(PAST)]

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._vocab

    @property
    def context_length(self) -> int:
        """The number of slots in the cache."""
        return self._past

    @property
    def length(self) -> int:
        """Tokens in the cache now."""
        return self._length

    def reset(self) -> None:
        """Empty the cache."""
        self._length = 0
        for array in self._cache.values():
            array[:] = 0

    def rewind(self, length: int) -> None:
        """Forget the tokens from position ``length`` on."""
        if not 0 <= length <= self._length:
            raise RunError(
                f"cannot rewind to position {length}: the cache holds {self._length} tokens",
                f"pass a position from 0 to {self._length}",
            )
        self._length = length

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Feed tokens; return the last position's logits [V].

        Raises:
            RunError: no tokens, a token outside the vocabulary, or more tokens than the cache holds.
        """
        last: NDArray[np.float32] = self._feed_all(tokens)[-1].copy()
        return last

    def step(self, token: int) -> NDArray[np.float32]:
        """Feed one token on the decode graph; return its logits [V].

        Raises:
            RunError: the cache is full.
        """
        ids = self._accept([token])
        row: NDArray[np.float32] = self._feed(self._decode, ids, 1)[0]
        return row

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits [S, V] of every position of a fresh sequence; the cache is reset first.

        Raises:
            RunError: as in ``prefill``.
        """
        self.reset()
        return self._feed_all(tokens)

    def close(self) -> None:
        """Release the sessions and the cache."""
        self._host, self._prefill, self._decode = None, (), ()
        self._cache.clear()

    def _feed_all(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        ids = self._accept(tokens)
        rows = np.empty((len(ids), self._vocab), np.float32)
        for start in range(0, len(ids), self._width):
            chunk = ids[start : start + self._width]
            rows[start : start + len(chunk)] = self._feed(self._prefill, chunk, self._width)
        return rows

    def _feed(self, chain: Sequence[Any], ids: NDArray[np.int64], width: int) -> NDArray[np.float32]:
        """Run a chain over up to ``width`` tokens and return their logits."""
        filled = np.zeros((1, width), np.int64)
        filled[0, : len(ids)] = ids
        # Padding gets the last token's position: a higher one may select other angles, or have none.
        places = self._length + np.minimum(np.arange(width), len(ids) - 1)[None]
        values = _run(self._host, {"input_ids": filled, "position_ids": places})
        values |= self._cache
        fresh = slice(self._length, self._length + len(ids))
        for session in chain:
            given = _run(session, {i.name: values[i.name] for i in session.get_inputs()})
            values |= given
            self._watch(given)
            for name, held in self._cache.items():
                if (new := given.get(name.replace(PAST, NEW))) is not None:
                    held[:, :, fresh] = new[:, :, : len(ids)]
        self._length += len(ids)
        rows: NDArray[np.float32] = values["logits"][0, : len(ids)].astype(np.float32, copy=False)
        return rows

    def _accept(self, tokens: Sequence[int]) -> NDArray[np.int64]:
        ids = np.asarray(tokens, np.int64)
        if not ids.size:
            raise RunError("the prompt has no tokens", "pass a prompt of at least one token")
        if ids.min() < 0 or ids.max() >= self._vocab:
            culprit = ids.min() if ids.min() < 0 else ids.max()
            raise RunError(
                f"token {culprit} is outside the vocabulary of {self._vocab}",
                "encode the text with the bundle's own tokenizer",
            )
        if self._length + ids.size > self._past:
            raise RunError(
                f"{self._length} tokens in the cache and {ids.size} new ones make {self._length + ids.size}, "
                f"more than the context of {self._past}",
                "shorten the prompt, or build for a longer context",
            )
        return ids


def _run(session: Any, feeds: dict[str, Any]) -> dict[str, Any]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))
