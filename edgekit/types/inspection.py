"""Results of ``inspect`` and ``verify``. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edgekit.record import added_later
from edgekit.types.bundle import FileEntry, TensorEntry
from edgekit.types.calibration import Calibration
from edgekit.types.measurement import Tuning
from edgekit.types.model import ModelSpec, Provenance
from edgekit.types.npu import NpuBuild
from edgekit.types.quality import ArmQuality, Quality


@dataclass(frozen=True)
class Check:
    """A line of ``verify`` or ``doctor``: what was checked, the outcome, the numbers, and a hint."""

    name: str
    status: Literal["pass", "fail", "skip", "info"]
    detail: str
    hint: str = ""


@dataclass(frozen=True)
class Verification:
    """The outcome of ``verify``. ``npus`` are the bundle's, with new emulator results if it ran."""

    bundle: str
    checks: tuple[Check, ...]
    quality: Quality | None = None
    arm: ArmQuality | None = None
    npus: tuple[NpuBuild, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(c.status != "fail" for c in self.checks)


@dataclass(frozen=True)
class SizePart:
    """Size of a part of a model: embedding, attention, mlp, norms, graph, tokenizer ..."""

    part: str
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Inspection:
    """Description of a checkpoint or a bundle.

    ``signed_by``: the key that a signature names, unverified. ``left_aside``: tensors that the model does not use.
    """

    path: str
    kind: Literal["checkpoint", "bundle"]
    spec: ModelSpec
    provenance: Provenance
    parameters: int
    bytes: int
    bits_per_weight: float
    tensors: tuple[TensorEntry, ...]
    parts: tuple[SizePart, ...]
    files: tuple[FileEntry, ...] = field(default=())
    tunings: tuple[Tuning, ...] = ()
    arm: ArmQuality | None = None
    npus: tuple[NpuBuild, ...] = ()
    calibration: Calibration | None = None
    signed_by: str = added_later("")
    left_aside: tuple[str, ...] = added_later(())
