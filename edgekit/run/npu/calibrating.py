"""Find the range of every value of a static graph by running it over tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.run.npu.static_runner import StaticRunner, open_on_cpu
from edgekit.types import Progress, Range, silent
from edgekit.types.npu import HIGH, LOW

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


def observe_ranges(
    host: Path, chain: Sequence[Path], windows: NDArray[np.int64], threads: int, progress: Progress = silent
) -> tuple[Range, ...]:
    """Run windows of tokens, each from an empty cache.

    Args:
        host: the graph that computes the inputs.
        chain: prefill graphs with outputs ``<value>/low`` and ``<value>/high`` (``quantize.observed``).
        windows: [windows, tokens].
        threads: ONNX Runtime's threads.
        progress: called with the number of windows done.
    """
    found: dict[str, Range] = {}

    def watch(values: dict[str, NDArray[np.float32]]) -> None:
        for name in (n.removesuffix(LOW) for n in values if n.endswith(LOW)):
            low, high = float(values[name + LOW]), float(values[name + HIGH])
            known = found.get(name, Range(name, low, high))
            found[name] = Range(name, min(low, known.low), max(high, known.high))

    sessions = [open_on_cpu(path, threads) for path in chain]
    runner = StaticRunner(open_on_cpu(host, threads), sessions, (), watch=watch)
    try:
        for i, window in enumerate(windows.tolist()):
            progress("calibrating", i, len(windows), "windows")
            runner.logits(window)
        progress("calibrating", len(windows), len(windows), "windows")
    finally:
        runner.close()
    return tuple(found.values())
