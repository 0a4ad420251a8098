"""Decode several sequences side by side, token by token, for text in bulk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import RunError
from edgekit.run.cache import DTYPES, find_slots
from edgekit.run.runtime import onnxruntime
from edgekit.run.session import open_session
from edgekit.run.settings import default_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from edgekit.types import Bundle


def decode_batch(bundle: Bundle, ids: NDArray[np.int64], length: int) -> Iterator[NDArray[np.float32]]:
    """Yield the logits [n, V] after each of ``length`` tokens of n sequences, all from an empty cache.

    Args:
        bundle: its target shares the cache with the caller (``shared_kv``).
        ids: the first tokens [n]; before asking for the next logits, the caller puts the next tokens there.
        length: tokens of each sequence.

    Raises:
        RunError: the session cannot be created or run.
    """
    handle = open_session(bundle, default_settings(bundle.manifest)).handle
    outputs = {o.name: o for o in handle.get_outputs()}
    names, count = {i.name for i in handle.get_inputs()}, len(ids)
    binding = handle.io_binding()
    caches = []
    for slot in find_slots(handle.get_inputs()):
        empty = np.zeros((count, slot.heads, length, slot.size), slot.dtype)
        caches.append(onnxruntime.OrtValue.ortvalue_from_numpy(empty))
        binding.bind_ortvalue_input(slot.past, caches[-1])
        binding.bind_ortvalue_output(slot.present, caches[-1])
    logits = np.empty((count, 1, outputs["logits"].shape[-1]), DTYPES[outputs["logits"].type])
    binding.bind_output("logits", "cpu", 0, logits.dtype.type, logits.shape, logits.ctypes.data)
    for step in range(length):
        feeds = {
            "input_ids": ids[:, None],
            "attention_mask": np.ones((count, step + 1), np.int64),
            "position_ids": np.full((count, 1), step, np.int64),
        }
        for name in names & feeds.keys():
            binding.bind_cpu_input(name, np.ascontiguousarray(feeds[name]))
        try:
            handle.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's errors have no common base class
            raise RunError(
                f"onnxruntime stopped at position {step}: {' '.join(str(error).split())}",
                hint="run `edgekit verify` to check that the bundle is intact",
            ) from error
        yield logits[:, 0].astype(np.float32)
