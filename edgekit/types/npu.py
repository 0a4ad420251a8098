"""A bundle's build for an NPU. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from edgekit import ranges
from edgekit.types.device import Activations, Npu, Target

Role = Literal["prefill", "decode"]

ROLES: tuple[Role, Role] = ("prefill", "decode")

PAST, NEW = "past_key_values.", "new."
"""Name prefixes of a static graph's cache inputs, and of the outputs with new keys and values."""

LOW, HIGH = "/low", "/high"
"""Name suffixes of the outputs with a value's minimum and maximum in an observed graph."""


def file_names(role: Role, parts: int) -> tuple[str, ...]:
    """File names of a role's graphs: ``prefill.onnx``, or ``prefill.0.onnx`` ... if the model was split."""
    return (f"{role}.onnx",) if parts == 1 else tuple(f"{role}.{i}.onnx" for i in range(parts))


def width(npu: Npu, role: Role) -> int:
    """Tokens per run of a role's graph."""
    return npu.prefill_tokens if role == "prefill" else 1


@dataclass(frozen=True)
class Placed:
    """A node and the provider that runs it. ``reason`` is why the NPU's provider refused it, if it did.

    ``provider`` is "" for a node that ONNX Runtime folded to a constant while compiling.
    """

    node: str
    operator: str
    provider: str
    reason: str = ""


@dataclass(frozen=True)
class Placement:
    """The provider of each node in a graph."""

    graph: str
    nodes: tuple[Placed, ...]

    def off(self, provider: str) -> tuple[Placed, ...]:
        """The nodes that run on another provider than ``provider``."""
        return tuple(node for node in self.nodes if node.provider not in ("", provider))


@dataclass(frozen=True)
class Traffic:
    """DRAM bytes per run of a compiled graph, as reported by its compiler."""

    read: int
    written: int
    spilled: int
    filled: int

    @property
    def total(self) -> int:
        """All bytes on the memory bus."""
        return self.read + self.written + self.spilled + self.filled


@dataclass(frozen=True)
class CompiledGraph:
    """A static graph and its compiled form; paths are relative to the bundle.

    ``context`` is the EPContext graph that a session opens, ``binary`` the file that it loads; ``compatibility`` is the
    compiler's note about itself and the chip. ``executed``: it ran on the emulator during the build. ``shared``: it
    uses the weights in another graph's binary. Seconds and peak RSS are of the compilation on the build machine.
    """

    role: Role
    part: ranges.Count
    tokens: ranges.Chunk
    source: str
    context: str
    binary: str
    shared: bool
    executed: bool
    nodes: ranges.Count
    compatibility: str
    traffic: Traffic | None
    seconds: float
    peak_rss_bytes: ranges.Bytes


@dataclass(frozen=True)
class Agreement:
    """Agreement of two sets of logits: the share of equal top-1, mean KL in nats per token, mean cosine."""

    top1: float
    kld: ranges.Measured
    cosine: ranges.Measured


@dataclass(frozen=True)
class Emulation:
    """Agreement of a compiled graph's logits on the emulator, over ``tokens`` tokens of a text.

    ``total`` compares the emulator with FP32, ``quantization`` the same graph on the CPU with FP32, ``npu`` the
    emulator with the same graph on the CPU. ``repeatable``: a second run gave identical bits.
    """

    role: Role
    tokens: int
    text: str
    total: Agreement
    quantization: Agreement
    npu: Agreement
    repeatable: bool


@dataclass(frozen=True)
class StaticGraph:
    """A static graph that the device compiles itself; ``path`` is relative to the bundle."""

    role: Role
    part: ranges.Count
    tokens: ranges.Chunk
    path: str
    nodes: ranges.Count


@dataclass(frozen=True)
class OnCpu:
    """Agreement of static graphs on the host's CPU with FP32, over ``tokens`` tokens of a text.

    It covers the loss by quantized weights and the correctness of the graphs, but not the device.
    """

    role: Role
    tokens: int
    text: str
    runtime: str
    total: Agreement


@dataclass(frozen=True)
class Usability:
    """Result of ONNX Runtime's mobile usability checker for a graph and one provider.

    The tool works from a list of operators. ``partitions``: number of subgraphs for the provider; ``unsupported``: the
    operators it does not support; ``dynamic`` and ``rank`` count nodes excluded for their shapes. ``suitable`` is the
    tool's verdict: YES, MAYBE or NO. ``conditions`` are those that the tool names but does not check.
    """

    graph: str
    provider: str
    partitions: int
    supported: int
    nodes: int
    unsupported: tuple[str, ...]
    dynamic: int
    rank: int
    suitable: str
    conditions: tuple[str, ...]


@dataclass(frozen=True)
class UsabilityReport:
    """Results of the usability checker for all graphs of a device.

    Graphs are first optimized in a session with the entries ``session``. ``unknown`` lists what it cannot determine.
    """

    tool: str
    session: tuple[tuple[str, str], ...]
    graphs: tuple[Usability, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class NpuBuild:
    """The part of a bundle for an NPU.

    ``tools`` are the compiler's packages and versions, ``options`` its options. ``host`` is the graph that prepares the
    inputs; ``past`` is the number of cache slots. ``placement`` is the file with the provider of each node.

    If the device compiles graphs itself, ``graphs`` is empty, ``static`` are its graphs, ``session`` the required
    session config entries, ``usability`` the file with the usability report, and ``package`` the ML Program ("" if not
    requested).
    """

    target: Target
    activations: Activations
    options: tuple[tuple[str, str], ...]
    tools: tuple[tuple[str, str], ...]
    host: str
    past: ranges.Context
    graphs: tuple[CompiledGraph, ...]
    placement: str
    emulations: tuple[Emulation, ...] = ()
    static: tuple[StaticGraph, ...] = ()
    session: tuple[tuple[str, str], ...] = ()
    usability: str = ""
    on_cpu: tuple[OnCpu, ...] = ()
    package: str = ""

    @property
    def folder(self) -> str:
        """The folder with the device's files, relative to the bundle."""
        return f"npu/{self.target.name}"

    def emulated(self, emulations: tuple[Emulation, ...]) -> NpuBuild:
        """The build with emulator results. The emulator cannot load graphs with shared weights."""
        graphs = tuple(replace(g, executed=g.executed or not g.shared) for g in self.graphs)
        return replace(self, emulations=emulations, graphs=graphs)

    def chain(self, role: Role, *, shared: bool = False) -> tuple[CompiledGraph, ...]:
        """The parts of one role, in execution order."""
        return tuple(g for g in self.graphs if g.role == role and g.shared == shared)
