"""Result type of the check whether integer matmuls are exact on a processor. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arithmetic:
    """Whether a graph's integer matmuls are exact in ONNX Runtime on this processor, by probes with known sums.

    ``entries``: session config entries that make them exact, () if none are needed. ``inexact``: matmuls that are wrong
    with every choice of entries; () means that the graph may run. ``probed``: number of matmuls probed.
    """

    entries: tuple[tuple[str, str], ...]
    inexact: tuple[str, ...]
    probed: int

    @property
    def exact(self) -> bool:
        """Whether no matmul is wrong."""
        return not self.inexact


NOTHING = Arithmetic((), (), 0)
"""The result for a graph without integer matmuls."""
