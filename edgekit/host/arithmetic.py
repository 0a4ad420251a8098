"""Whether integer matmuls come out exactly on a processor: the noun. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arithmetic:
    """What the probes' known sums say of a graph's matmuls under ONNX Runtime on this processor.

    ``entries``: session config entries under which they are exact, () where they are so by themselves. ``inexact``:
    matmuls that are wrong with every choice of entries; () says that the graph may be run. ``probed``: matmuls that
    were looked at.
    """

    entries: tuple[tuple[str, str], ...]
    inexact: tuple[str, ...]
    probed: int

    @property
    def exact(self) -> bool:
        """True when no matmul is wrong."""
        return not self.inexact


NOTHING = Arithmetic((), (), 0)
"""Of a graph without integer matmuls."""
