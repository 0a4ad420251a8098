"""What a bundle or a checkpoint turned out to be. Standard library only."""

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
    """One line of ``verify`` or ``doctor``: what was looked at, how it went, the numbers, the fix."""

    name: str
    status: Literal["pass", "fail", "skip", "info"]
    detail: str
    hint: str = ""


@dataclass(frozen=True)
class Verification:
    """The outcome of ``verify``. ``npus`` are the bundle's with what the emulator gave now, where it ran."""

    bundle: str
    checks: tuple[Check, ...]
    quality: Quality | None = None
    arm: ArmQuality | None = None
    npus: tuple[NpuBuild, ...] = ()

    @property
    def passed(self) -> bool:
        """True when no check failed."""
        return all(c.status != "fail" for c in self.checks)


@dataclass(frozen=True)
class SizePart:
    """Bytes of one part of a model: embedding, attention, mlp, norms, graph, tokenizer ..."""

    part: str
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint or a bundle is. ``signed_by``: the key that a signature names, which was not checked.

    ``left_aside``: tensors of a checkpoint that the model does not use.
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
