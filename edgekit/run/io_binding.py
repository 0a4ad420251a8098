"""Run a session with every input and output bound to memory allocated here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import RunError
from edgekit.run.cache import DTYPES
from edgekit.run.first_logit import NAMES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.run.cache import Cache
    from edgekit.run.session import Session


class BoundGraph:
    """Runs a graph over new tokens at the end of a cache. Bindings are renewed only when a shape changes.

    Attributes:
        vocab_size: columns of the logits.
        dtype: type of the logits.
        last_only: whether the graph can compute the logits of only the last positions.
    """

    def __init__(self, session: Session, context: int, chunk: int) -> None:
        """Args: the session; the maximum number of tokens in the cache; the maximum number of tokens per run."""
        handle = session.handle
        outputs = {o.name: o for o in handle.get_outputs()}
        self.vocab_size = _vocab_size(outputs)
        self.dtype = DTYPES[outputs["logits"].type]
        self._first_name = next((v.name for v in handle.get_overridable_initializers() if v.name in NAMES), "")
        self.last_only = bool(self._first_name)
        self._handle = handle
        self._binding = handle.io_binding()
        self._ids = np.zeros(chunk + 1, np.int64)
        self._positions = np.empty(chunk + 1, np.int64)
        self._steps = np.arange(chunk)
        self._mask = np.ones(context, np.int64)
        self._mask_at = self._mask.ctypes.data
        self._first_logit = np.zeros(1, np.int64)
        self._has_mask = "attention_mask" in session.info.inputs
        self._has_positions = "position_ids" in session.info.inputs
        self._rows: NDArray[Any] | None = None
        self._count = 0

    def feed_one(self, token: int, cache: Cache, rows: NDArray[Any]) -> None:
        """Run over one token and write its logits to ``rows`` [1,V]."""
        self._ids[0] = token
        self._positions[0] = cache.length
        self._run(1, cache, rows)

    def feed(self, ids: NDArray[np.int64], cache: Cache, rows: NDArray[Any], *, filler: int | None = None) -> None:
        """Run over tokens and write the logits of the last n to ``rows`` [n,V]; without ``last_only`` n must be all.

        Args:
            ids: the tokens.
            cache: of the tokens before them.
            rows: room for the logits, including the filler's.
            filler: the position of one more token at the end, which no other token sees and which is then dropped.
        """
        count, length = len(ids), cache.length
        self._ids[:count] = ids
        np.add(self._steps[:count], length, out=self._positions[:count])
        if filler is None:
            self._run(count, cache, rows)
            return
        self._positions[count] = filler
        self._run(count + 1, cache, rows)
        cache.rewind(length + count)

    def release(self) -> None:
        """Release the reference to the rows."""
        self._rows = None

    def close(self) -> None:
        """Release the session."""
        self._handle = self._binding = self._rows = None

    def _run(self, count: int, cache: Cache, rows: NDArray[Any]) -> None:
        if self._handle is None:
            raise RunError("the runner is closed", hint="load it again with load_runner")
        binding = self._binding
        total = cache.length + count
        cache.bind(binding, total)
        if self._rows is not rows or self._count != count:
            self._rows = None  # in case Ctrl-C interrupts the next lines
            binding.bind_input("input_ids", "cpu", 0, np.int64, (1, count), self._ids.ctypes.data)
            if self._has_positions:
                binding.bind_input("position_ids", "cpu", 0, np.int64, (1, count), self._positions.ctypes.data)
            if self.last_only:
                self._first_logit[0] = count - len(rows)
                binding.bind_input(self._first_name, "cpu", 0, np.int64, (1,), self._first_logit.ctypes.data)
            binding.bind_output("logits", "cpu", 0, self.dtype, (1, *rows.shape), rows.ctypes.data)
            self._rows, self._count = rows, count
        if self._has_mask:
            binding.bind_input("attention_mask", "cpu", 0, np.int64, (1, total), self._mask_at)
        try:
            self._handle.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's errors have no common base class
            raise RunError(
                f"onnxruntime stopped at position {total}: {' '.join(str(error).split())}",
                hint="run `edgekit verify` to check that the bundle is intact",
            ) from error
        cache.advance(total)


def _vocab_size(outputs: dict[str, Any]) -> int:
    if "logits" not in outputs or not isinstance(outputs["logits"].shape[-1], int):
        raise RunError(
            f"the graph has no output 'logits' with a fixed vocabulary; it has {', '.join(outputs)}",
            hint="rebuild the bundle with `edgekit build`",
        )
    return int(outputs["logits"].shape[-1])
