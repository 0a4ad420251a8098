"""A device as data: what ``targets/*.toml`` says about it, and where each number comes from. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from edgekit import ranges

if TYPE_CHECKING:
    from typing import Self

Precision = Literal["fp32", "fp16", "int8", "int4"]

Activations = Literal["float32", "float16", "uint16"]
"""What an NPU computes in: half precision, or 16-bit integers with a scale and zero point for every tensor."""

Certainty = Literal["measured", "stated", "derived", "reported", "chosen"]
"""How sure a number is: we measured it; its maker states it; it follows from stated numbers; others report it; or it is
no property of the device but our choice, for the reason given."""

Verified = Literal["executed", "emulator", "compile-only", "cpu-only", "none"]
"""How far a device's graphs were seen to work: run on such a device; compiled for it and run on its maker's emulator;
compiled and not run; run on this computer's CPU alone; not at all."""

NUMBERS = ("max_context", "memory_bytes", "bandwidth_bytes_per_s", "peak_int8_ops_per_s", "accuracy_level")
"""Fields of a Target whose numbers need a source."""

Value = int | float | tuple[float, float] | tuple[tuple[str, str], ...]
"""A number, a range, or named options."""


@dataclass(frozen=True)
class Evidence:
    """Where the number called ``key`` comes from."""

    key: str
    certainty: Certainty
    text: str


@dataclass(frozen=True)
class Plugin:
    """An execution provider that comes as a Python package of its own.

    ``module`` has ``get_library_path()``; ``paths`` are provider options whose value the named function of the module
    gives. ``requirement`` is what to install, ``extra`` edgekit's name for it, ``platforms`` (``Linux x86_64``) where
    it holds a compiler, ``licence`` whose terms it comes under. ``note`` is a regular expression of what its compiler
    notes in a graph, with groups ``sdk`` and ``chips``; ``chip`` the option that names the chip; ``sdk`` where the
    module says its own SDK's version. Each is "" where there is no such thing.
    """

    module: str
    requirement: str
    extra: str
    platforms: tuple[str, ...]
    licence: str
    paths: tuple[tuple[str, str], ...] = ()
    note: str = ""
    chip: str = ""
    sdk: str = ""


@dataclass(frozen=True)
class Runtime:
    """How the device itself opens binaries: onnxruntime-genai's name for the provider, and the provider's options."""

    genai: str
    options: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Window:
    """A static graph's width: ``tokens`` at once over a cache of ``past`` slots."""

    tokens: ranges.Chunk
    past: ranges.Context


@dataclass(frozen=True)
class AccuracyLimits:
    """What a compiled graph must reach on the emulator, at one precision.

    ``top1`` and ``kld`` (nats per token) against FP32: what quantization and NPU lose together. ``npu_top1``,
    ``npu_kld`` and ``npu_cosine`` against the same graph on the CPU: what the NPU alone loses.
    """

    precision: Precision
    top1: float
    kld: float
    npu_top1: float
    npu_kld: float
    npu_cosine: float


@dataclass(frozen=True)
class NpuScheme:
    """One way to compute on an NPU: what its graphs lack, which recipe makes the weights, what it must reach.

    ``masked`` is added to attention scores where a token must not look; it must fit the activations' range.
    """

    activations: Activations
    precisions: tuple[Precision, ...]
    lacks: frozenset[str]
    quirks: frozenset[str]
    options: tuple[tuple[str, str], ...]
    recipes: tuple[tuple[Precision, str], ...]
    limits: tuple[AccuracyLimits, ...]
    masked: float

    @property
    def calibrated(self) -> bool:
        """Whether the activations' scales are found on tokens before the build, not while the model runs."""
        return self.activations == "uint16"

    def limits_for(self, precision: Precision) -> AccuracyLimits | None:
        """The limits of a precision, None where none are set."""
        return next((g for g in self.limits if g.precision == precision), None)


@dataclass(frozen=True)
class Npu:
    """The part of a device that runs static graphs.

    ``family`` names the file in ``targets/families`` that says how to compile for it; without a ``plugin`` the device
    compiles by itself, ``session`` are entries of its session's configuration, ``ml_program``: it takes Core ML's
    packages too; ``runtime`` is what onnxruntime-genai is told. ``context`` is the cache's slots, ``prefill_tokens``
    the width of the prompt's graph. ``largest_graph_bytes``: a model whose weights are more is split by layers.
    ``efficiency``: lowest and highest fraction of the DRAM's bandwidth that decoding is expected to reach. The first
    scheme is the one taken when none is asked for. ``sources`` are those of the family's file.
    """

    name: str
    family: ranges.Name
    plugin: Plugin | None
    options: tuple[tuple[str, str], ...]
    prefill_tokens: ranges.Chunk
    context: ranges.Context
    largest_graph_bytes: ranges.Bytes
    efficiency: tuple[float, float]
    schemes: tuple[NpuScheme, ...]
    runtime: Runtime | None = None
    session: tuple[tuple[str, str], ...] = ()
    ml_program: bool = False
    sources: tuple[Evidence, ...] = ()

    def numbers(self) -> dict[str, Value | AccuracyLimits]:
        """The family's numbers that need a source, by the source's key."""
        found: dict[str, Value | AccuracyLimits] = {
            "prefill_tokens": self.prefill_tokens,
            "largest_graph_bytes": self.largest_graph_bytes,
        }
        for scheme in self.schemes:
            found[f"{scheme.activations}.masked"] = scheme.masked
            found |= {f"{scheme.activations}.limits.{limits.precision}": limits for limits in scheme.limits}
        return found


@dataclass(frozen=True)
class Target:
    """A device, as data. Read from ``targets/<name>.toml``; nothing else in edgekit knows a provider's name.

    ``lacks`` names operators (``op:GroupQueryAttention``) and ``quirks`` misbehaviours; each is cured by the
    file in lower/ that says so. ``shared_kv``: the graph may write present into past's buffer. ``chip`` is the SoC.
    A device with an ``npu`` also gets the graph of the target ``fallback``, for its CPU. ``window`` is set when a
    static graph is lowered. ``peak_int8_ops_per_s`` is of what ``provider`` reaches. Unknown numbers are None, never
    zero; ``sources`` says where each comes from.
    """

    name: ranges.Name
    title: str
    provider: str
    opset: ranges.Opset
    precisions: tuple[Precision, ...]
    verified: Verified
    provider_options: tuple[tuple[str, str], ...] = ()
    lacks: frozenset[str] = frozenset()
    quirks: frozenset[str] = frozenset()
    shared_kv: bool = False
    accuracy_level: ranges.Level | None = None
    max_context: ranges.Context | None = None
    memory_bytes: ranges.Bytes | None = None
    bandwidth_bytes_per_s: float | None = None
    peak_int8_ops_per_s: float | None = None
    chip: str = ""
    fallback: str = ""
    npu: Npu | None = None
    window: Window | None = None
    sources: tuple[Evidence, ...] = ()
    notes: str = ""

    def compiled(self, scheme: NpuScheme, window: Window) -> Self:
        """The target that one static graph for its NPU is lowered for: the scheme's lacks and quirks, a width."""
        return replace(self, lacks=scheme.lacks, quirks=scheme.quirks, window=window)

    def numbers(self) -> dict[str, Value]:
        """The device's numbers that need a source, by the source's key; unknown ones are left out."""
        found: dict[str, Value] = {key: getattr(self, key) for key in NUMBERS if getattr(self, key) is not None}
        if self.npu is not None:
            found["npu.context"] = self.npu.context
            found["npu.efficiency"] = self.npu.efficiency
            found["npu.options"] = self.npu.options
        return found

    def source(self, key: str) -> Evidence | None:
        """Where the number called ``key`` comes from, None where the file does not say."""
        return next((source for source in self.sources if source.key == key), None)
