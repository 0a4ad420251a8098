"""A device as described in ``targets/*.toml``, with the source of each number. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from edgekit import ranges

if TYPE_CHECKING:
    from typing import Self

Precision = Literal["fp32", "fp16", "int8", "int4"]

Activations = Literal["float32", "float16", "uint16"]
"""Activation types of an NPU: floating point, or 16-bit integers with a scale and zero point per tensor."""

Certainty = Literal["measured", "stated", "derived", "reported", "chosen"]
"""How certain a number is: measured by us, stated by the manufacturer, derived from stated numbers, reported by others,
or chosen by us for the reason given."""

Verified = Literal["measured", "executed", "emulator", "compile-only", "cpu-only", "none"]
"""How a device's graphs were verified: measured or executed on such a device, executed on the manufacturer's emulator,
compiled only, executed on the host's CPU only, or not at all."""

NUMBERS = ("max_context", "memory_bytes", "bandwidth_bytes_per_s", "peak_int8_ops_per_s", "accuracy_level")
"""Fields of a Target that need a source."""

Value = int | float | tuple[float, float] | tuple[tuple[str, str], ...]
"""A number, a range, or named options."""


@dataclass(frozen=True)
class Evidence:
    """The source of the number ``key``."""

    key: str
    certainty: Certainty
    text: str


@dataclass(frozen=True)
class Plugin:
    """An execution provider in its own Python package.

    ``module`` has ``get_library_path()``; ``paths`` are provider options whose values are returned by the named
    functions of the module. ``requirement`` is the pip requirement, ``extra`` edgekit's extra for it, ``platforms``
    (``Linux x86_64``) those where it includes a compiler, ``licence`` its licence. ``note`` is a regular expression
    for the note that its compiler leaves in a graph, with groups ``sdk`` and ``chips``; ``chip`` is the option that
    names the chip; ``sdk`` is where the module has its SDK's version. The last three may be "".
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
    """How the device opens compiled graphs: onnxruntime-genai's name for the provider, and the provider's options."""

    genai: str
    options: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Window:
    """The static shape of a graph: ``tokens`` per run and ``past`` cache slots."""

    tokens: ranges.Chunk
    past: ranges.Context


@dataclass(frozen=True)
class AccuracyLimits:
    """Limits that a compiled graph must meet on the emulator, at one precision.

    ``top1`` and ``kld`` (nats per token) are relative to FP32: the loss of quantization and NPU together.
    ``npu_top1``, ``npu_kld`` and ``npu_cosine`` are relative to the same graph on the CPU: the loss of the NPU alone.
    """

    precision: Precision
    top1: float
    kld: float
    npu_top1: float
    npu_kld: float
    npu_cosine: float


@dataclass(frozen=True)
class NpuScheme:
    """A way to compute on an NPU: what its graphs lack, the recipes for the weights, and the accuracy limits.

    ``masked`` is added to the attention scores of masked positions; it must fit the activations' range.
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
        """Whether activation scales are calibrated before the build instead of computed at run time."""
        return self.activations == "uint16"

    def limits_for(self, precision: Precision) -> AccuracyLimits | None:
        """The limits of a precision, None if none are set."""
        return next((g for g in self.limits if g.precision == precision), None)


@dataclass(frozen=True)
class Npu:
    """The NPU of a device, which runs static graphs.

    ``family`` names the file in ``targets/families`` that says how to compile for it. Without a ``plugin`` the device
    compiles graphs itself. ``session`` are session config entries on the device; ``ml_program``: it also runs Core ML
    packages; ``runtime`` are the settings for onnxruntime-genai. ``context`` is the number of cache slots,
    ``prefill_tokens`` the width of the prompt graph. A model with more than ``largest_graph_bytes`` of weights is split
    by layers. ``efficiency``: lowest and highest fraction of the DRAM bandwidth expected in decoding. The first scheme
    is the default. ``sources`` are those in the family's file.
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
        """The family's numbers that need a source, by key."""
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
    """A device, read from ``targets/<name>.toml``. No code in edgekit depends on a provider's name.

    ``lacks`` lists missing operators (``op:GroupQueryAttention``) and ``quirks`` defects; each is handled by a pass in
    lower/. ``shared_kv``: the graph may write present into past's buffer. ``chip`` is the SoC. A device with an ``npu``
    also gets the graph of the target ``fallback`` for its CPU. ``window`` is set to lower a static graph.
    ``peak_int8_ops_per_s`` is the peak of the hardware that ``provider`` uses. Unknown numbers are None, never zero;
    ``sources`` has the source of each.
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
        """Return the target for lowering one static NPU graph: with the scheme's lacks and quirks, and a window."""
        return replace(self, lacks=scheme.lacks, quirks=scheme.quirks, window=window)

    def numbers(self) -> dict[str, Value]:
        """The device's known numbers that need a source, by key."""
        found: dict[str, Value] = {key: getattr(self, key) for key in NUMBERS if getattr(self, key) is not None}
        if self.npu is not None:
            found["npu.context"] = self.npu.context
            found["npu.efficiency"] = self.npu.efficiency
            found["npu.options"] = self.npu.options
        return found

    def source(self, key: str) -> Evidence | None:
        """The source of the number ``key``, None if there is none."""
        return next((source for source in self.sources if source.key == key), None)
