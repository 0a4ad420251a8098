"""What becomes of a model that is compiled for an NPU: the nouns. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from edgekit import ranges
from edgekit.types.device import Activations, Npu, Target

Role = Literal["prefill", "decode"]

ROLES: tuple[Role, Role] = ("prefill", "decode")

PAST, NEW = "past_key_values.", "new."
"""How the names of a static graph's cache begin: what it reads, and what it adds."""

LOW, HIGH = "/low", "/high"
"""How the names end under which an observed graph gives the least and the largest number of a value."""


def file_names(role: Role, parts: int) -> tuple[str, ...]:
    """What the graphs of a chain are called: ``prefill.onnx``, or ``prefill.0.onnx`` ... where the model was split."""
    return (f"{role}.onnx",) if parts == 1 else tuple(f"{role}.{i}.onnx" for i in range(parts))


def width(npu: Npu, role: Role) -> int:
    """Tokens that a graph takes at once."""
    return npu.prefill_tokens if role == "prefill" else 1


@dataclass(frozen=True)
class Placed:
    """A node and who runs it. ``reason`` is the provider's, where it refused the node.

    ``provider`` is "" for a node that ONNX Runtime computed while compiling: it only read constants.
    """

    node: str
    operator: str
    provider: str
    reason: str = ""


@dataclass(frozen=True)
class Placement:
    """Where each node of a graph runs."""

    graph: str
    nodes: tuple[Placed, ...]

    def off(self, provider: str) -> tuple[Placed, ...]:
        """The nodes that neither ``provider`` runs nor anybody needs to."""
        return tuple(node for node in self.nodes if node.provider not in ("", provider))


@dataclass(frozen=True)
class Traffic:
    """DRAM bytes of one run of a compiled graph, as its compiler reports them."""

    read: int
    written: int
    spilled: int
    filled: int

    @property
    def total(self) -> int:
        """All bytes that pass the memory bus."""
        return self.read + self.written + self.spilled + self.filled


@dataclass(frozen=True)
class CompiledGraph:
    """One static graph and what it was compiled to; paths are the bundle's.

    ``context`` is the EPContext graph that a session opens, ``binary`` what lies beside it; ``compatibility`` is what
    the compiler noted about itself and the chip. ``executed``: it ran on the emulator when the bundle was built.
    ``shared``: its weights are those of another graph's binary. Seconds and peak RSS are of this machine.
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
    """How far logits are from others: the share of equal top-1, mean KL in nats a token, mean cosine."""

    top1: float
    kld: ranges.Measured
    cosine: ranges.Measured


@dataclass(frozen=True)
class Emulation:
    """Logits of a compiled graph on the emulator, for ``tokens`` tokens of a text.

    ``total`` is the emulator against FP32, ``quantization`` the same graph on the CPU against FP32, ``npu`` the
    emulator against the same graph on the CPU. ``repeatable``: a second run gave the same bits.
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
    """A static graph that the device compiles by itself; ``path`` is the bundle's."""

    role: Role
    part: ranges.Count
    tokens: ranges.Chunk
    path: str
    nodes: ranges.Count


@dataclass(frozen=True)
class OnCpu:
    """Logits of static graphs on this computer's CPU against FP32, for ``tokens`` tokens of a text.

    They show what the weights lost and that the graphs are right; of the device they show nothing.
    """

    role: Role
    tokens: int
    text: str
    runtime: str
    total: Agreement


@dataclass(frozen=True)
class Usability:
    """What ONNX Runtime's mobile usability check says of a graph and one of the providers that it knows.

    It is read from a list of operators. ``partitions``: pieces the provider would take; ``unsupported`` the operators
    it would not; ``dynamic`` and ``rank`` count nodes refused for their shapes. ``suitable`` is the tool's word: YES,
    MAYBE or NO. ``conditions`` are those the tool names and does not check.
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
    """The check's words on every graph of a device, after the optimizations of a session (``session``: its entries).

    ``unknown`` says what it cannot tell.
    """

    tool: str
    session: tuple[tuple[str, str], ...]
    graphs: tuple[Usability, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class NpuBuild:
    """The part of a bundle that is for an NPU.

    ``tools`` are the compiler's packages and versions, ``options`` what it was given. ``host`` is the graph that makes
    the inputs; ``past`` counts the cache's slots. ``placement`` is the file that says where each node runs.

    Where the device compiles by itself, ``static`` are its graphs, ``session`` what its session must be told,
    ``usability`` the file with ONNX Runtime's word on them, ``package`` the same as an ML Program ("" where none was
    asked for), and ``graphs`` is empty.
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
        """What goes to the device, relative to the bundle."""
        return f"npu/{self.target.name}"

    def emulated(self, emulations: tuple[Emulation, ...]) -> NpuBuild:
        """The build after the emulator ran it: all graphs but those with shared weights, which it cannot load."""
        graphs = tuple(replace(g, executed=g.executed or not g.shared) for g in self.graphs)
        return replace(self, emulations=emulations, graphs=graphs)

    def chain(self, role: Role, *, shared: bool = False) -> tuple[CompiledGraph, ...]:
        """The parts of one role, in the order in which they run."""
        return tuple(g for g in self.graphs if g.role == role and g.shared == shared)
