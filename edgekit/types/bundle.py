"""What ships: the manifest of a bundle and what it lists. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from edgekit import ranges
from edgekit.types.calibration import Calibration
from edgekit.types.device import Target
from edgekit.types.measurement import Measurement, Tuning
from edgekit.types.model import ModelSpec, Provenance
from edgekit.types.npu import NpuBuild
from edgekit.types.quality import ArmQuality, Quality
from edgekit.types.quantization import CalibratedOn, Grid, Recipe


@dataclass(frozen=True)
class FileEntry:
    """A file of a bundle: POSIX path relative to it, size and sha256."""

    path: str
    bytes: ranges.Bytes
    sha256: ranges.Digest


@dataclass(frozen=True)
class TensorEntry:
    """What a weight became: its grid (None: floating point ``stored``) and the bytes it occupies.

    ``shared_with`` names the tensor whose bytes it uses (a tied head), and then ``bytes`` is 0.
    ``error`` is the relative weight error ||W - Q(W)|| / ||W||, None in floating point.
    """

    name: str
    shape: tuple[ranges.Count, ...]
    grid: Grid | None
    stored: str
    bytes: ranges.Bytes
    error: float | None = None
    shared_with: str = ""


EXPANDED = "expanded-at-load"
"""Where the prompt's graph says its 8-bit weights lie: nowhere. ``run`` provides them."""


@dataclass(frozen=True)
class Region:
    """Bytes of a data file."""

    offset: ranges.Bytes
    bytes: ranges.Bytes


@dataclass(frozen=True)
class Int8Repack:
    """A weight of the prompt's graph, and where in the data file its codes on a grid lie, laid out as MatMulNBits'.

    ``codes`` uint8 [rows, blocks, block_size * bits / 8]; ``scales`` float16 or float32 [rows, blocks],
    or [rows, 1] per channel; ``zeros`` packed like the codes, None on a symmetric grid.
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
        """Names in the graph: the weight int8 [columns, rows], its channels' scales float32 [rows]."""
        return f"{self.name}.int8", f"{self.name}.channels"


@dataclass(frozen=True)
class Prefill:
    """The graph for prompts, a path in the bundle, and the weights that it needs made."""

    graph: str
    expansions: tuple[Int8Repack, ...]


@dataclass(frozen=True)
class Manifest:
    """edgekit.json: what the bundle is, how it was made, and what has been measured on it.

    ``fallback``: the CPU target of ``graph`` where ``target`` has an NPU, whose own graphs are in ``npus``.
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
    calibrated: CalibratedOn | None = None
    fallback: Target | None = None
    npus: tuple[NpuBuild, ...] = ()
    quality: Quality | None = None
    latency: Measurement | None = None
    tunings: tuple[Tuning, ...] = ()
    arm: ArmQuality | None = None
    calibration: Calibration | None = None

    @property
    def cpu_target(self) -> Target:
        """The target that ``graph`` was lowered for: it runs the graph, and its numbers are measured on it."""
        return self.fallback or self.target

    @property
    def context_length(self) -> int:
        """Most tokens that the model and the graph's target allow."""
        limit = self.cpu_target.max_context
        return self.spec.context_length if limit is None else min(limit, self.spec.context_length)

    @property
    def parameters(self) -> int:
        """Weights of the model, a tied head counted once."""
        return sum(prod(t.shape) for t in self.tensors if not t.shared_with)

    @property
    def accuracy_level(self) -> int:
        """MatMulNBits' level in the graph: its target's, which wins over the recipe's."""
        level = self.cpu_target.accuracy_level
        return self.recipe.accuracy_level if level is None else level

    @property
    def kernels(self) -> tuple[tuple[str, str], ...]:
        """Session config entries that pick the kernels with which the bundle was scored best; () where none was."""
        return self.arm.chosen.entries if self.arm else ()

    @property
    def bits_per_weight(self) -> float:
        """True bits per weight: all bytes of all tensors, scales, zero points and padding included."""
        return 8 * sum(t.bytes for t in self.tensors) / self.parameters

    @property
    def bytes(self) -> int:
        """Bytes of the bundle's files, edgekit.json left out."""
        return sum(f.bytes for f in self.files)


@dataclass(frozen=True)
class Bundle:
    """A directory that ships, opened and checked."""

    path: Path
    manifest: Manifest

    @property
    def graph(self) -> Path:
        """The ONNX file to run."""
        return self.path / self.manifest.graph

    @property
    def sha256(self) -> str:
        """One hash for the whole bundle: sha256 over the sorted ``path sha256`` lines of its files."""
        from hashlib import sha256

        lines = sorted(f"{f.path} {f.sha256}\n" for f in self.manifest.files)
        return sha256("".join(lines).encode()).hexdigest()
