"""The manifest of a bundle and its parts. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from edgekit import ranges
from edgekit.record import added_later
from edgekit.types.calibration import Calibration
from edgekit.types.data import DataCard
from edgekit.types.device import Target
from edgekit.types.learning import RunCard
from edgekit.types.measurement import Measurement, Tuning
from edgekit.types.model import ModelSpec, Provenance
from edgekit.types.npu import NpuBuild
from edgekit.types.quality import ArmQuality, Quality
from edgekit.types.quantization import Grid, Recipe


@dataclass(frozen=True)
class FileEntry:
    """A file in a bundle: its relative POSIX path, size and sha256."""

    path: str
    bytes: ranges.Bytes
    sha256: ranges.Digest


@dataclass(frozen=True)
class TensorEntry:
    """A weight in a bundle: its grid (None: floating point, in type ``stored``) and its bytes.

    ``shared_with`` names the tensor whose data it shares (a tied head); ``bytes`` is 0 then.
    ``error`` is the relative weight error ||W - Q(W)|| / ||W||, None in floating point.
    """

    name: str
    shape: tuple[ranges.Count, ...]
    grid: Grid | None
    stored: str
    bytes: ranges.Bytes
    error: float | None = None
    shared_with: str = ""


LOOK_UP, LOOKED_UP_LEVEL = (("mlas.use_lut_gemm", "1"),), 4
"""The session entry for ONNX Runtime's 2-bit kernel with look-up tables, and the accuracy level that it is for. It
computes the matmuls whose rows are a multiple of 128 and whose columns are a multiple of the block."""


EXPANDED = "expanded-at-load"
"""External-data location of the prompt graph's 8-bit weights: not a file, ``run`` provides them at load."""


@dataclass(frozen=True)
class Region:
    """A range of bytes in a data file."""

    offset: ranges.Bytes
    bytes: ranges.Bytes


@dataclass(frozen=True)
class Int8Repack:
    """A weight of the prompt graph, and where its codes are in the data file, in the layout of MatMulNBits.

    ``codes`` uint8 [rows, blocks, block_size * bits / 8]; ``scales`` float16 or float32 [rows, blocks],
    or [rows, 1] per channel; ``zeros`` packed like the codes, None for a symmetric grid.
    """

    name: str
    rows: ranges.Rows
    columns: ranges.Width
    bits: ranges.Bits
    block_size: ranges.Block
    codes: Region
    scales: Region
    half_scales: bool
    zeros: Region | None

    @property
    def initializers(self) -> tuple[str, str]:
        """Names of initializers: the weight int8 [columns, rows], and its channel scales float32 [rows]."""
        return f"{self.name}.int8", f"{self.name}.channels"


@dataclass(frozen=True)
class Prefill:
    """The prompt graph, as a path in the bundle, and the weights to expand for it at load."""

    graph: str
    expansions: tuple[Int8Repack, ...]


@dataclass(frozen=True)
class Manifest:
    """edgekit.json: what the bundle contains, how it was built, and its measurements.

    ``fallback``: the CPU target of ``graph`` if ``target`` has an NPU, whose own graphs are in ``npus``.
    """

    schema: int
    edgekit: str
    provenance: Provenance
    spec: ModelSpec
    recipe: Recipe
    target: Target
    graph: str
    exporter: str
    tools: tuple[tuple[str, str], ...]
    tensors: tuple[TensorEntry, ...]
    files: tuple[FileEntry, ...]
    prefill: Prefill | None = None
    calibrated: DataCard | None = added_later(None)  # noqa: RUF009 - a field
    learned: RunCard | None = added_later(None)  # noqa: RUF009 - a field
    fallback: Target | None = None
    npus: tuple[NpuBuild, ...] = ()
    quality: Quality | None = None
    latency: Measurement | None = None
    tunings: tuple[Tuning, ...] = ()
    arm: ArmQuality | None = None
    calibration: Calibration | None = None

    @property
    def cpu_target(self) -> Target:
        """The target that ``graph`` was lowered for and is run and measured on."""
        return self.fallback or self.target

    @property
    def context_length(self) -> int:
        """Most tokens that both the model and the graph's target allow."""
        limit = self.cpu_target.max_context
        return self.spec.context_length if limit is None else min(limit, self.spec.context_length)

    @property
    def parameters(self) -> int:
        """Number of weights in the model; a tied head counts once."""
        return sum(prod(t.shape) for t in self.tensors if not t.shared_with)

    @property
    def accuracy_level(self) -> int:
        """MatMulNBits' accuracy level in the graph: the target's if set, otherwise the recipe's."""
        level = self.cpu_target.accuracy_level
        return self.recipe.accuracy_level if level is None else level

    @property
    def kernels(self) -> tuple[tuple[str, str], ...]:
        """Session config entries: of the kernels with the best score on ARM if scored, and of those for 2 bits.

        At level 4, look-up tables round activations like the other kernel and are faster. At level 0 they would round.
        """
        narrow = self.accuracy_level == LOOKED_UP_LEVEL and any(t.grid and t.grid.bits == 2 for t in self.tensors)
        return (self.arm.chosen.entries if self.arm else ()) + (LOOK_UP if narrow else ())

    @property
    def bits_per_weight(self) -> float:
        """Effective bits per weight: bytes of all tensors, including scales, zero points and padding."""
        return 8 * sum(t.bytes for t in self.tensors) / self.parameters

    @property
    def bytes(self) -> int:
        """Bytes of the bundle's files, without edgekit.json."""
        return sum(f.bytes for f in self.files)


@dataclass(frozen=True)
class Bundle:
    """An opened and checked bundle."""

    path: Path
    manifest: Manifest

    @property
    def graph(self) -> Path:
        """The ONNX file to run."""
        return self.path / self.manifest.graph

    @property
    def sha256(self) -> str:
        """The bundle's hash: sha256 over the sorted ``path sha256`` lines of its files."""
        from hashlib import sha256

        lines = sorted(f"{f.path} {f.sha256}\n" for f in self.manifest.files)
        return sha256("".join(lines).encode()).hexdigest()
