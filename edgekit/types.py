"""The nouns that pass between rooms, and the seams. Standard library only.

Every value is a frozen dataclass; the only other thing that crosses rooms is an ``onnx_ir.Model``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import nan, prod
from pathlib import Path  # noqa: TC003 - record.py resolves these annotations at run time
from typing import TYPE_CHECKING, Literal, Protocol

from edgekit import ranges
from edgekit.calibration import Calibration as Calibration
from edgekit.compiled import NpuBuild as NpuBuild
from edgekit.device import Activations as Activations
from edgekit.device import Precision as Precision
from edgekit.device import Target as Target
from edgekit.interval import Interval as Interval
from edgekit.record import added_later

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Progress(Protocol):
    """What a long call tells its caller. ``total`` is 0 while it is not known."""

    def __call__(self, task: str, done: int, total: int, unit: str = "B") -> None:
        """Report that ``done`` of ``total`` ``unit`` of ``task`` are finished."""


def silent(task: str, done: int, total: int, unit: str = "B") -> None:
    """A Progress that says nothing."""


RESUMED = "resumed"
"""The task of the one report that says how much a killed build had finished."""

LEFT_ALONE = "left alone"
"""The task of the one report that says how many unfinished builds others could have put there: none is gone on with."""


@dataclass(frozen=True)
class Resume:
    """What resuming a build needs: a ``key`` of its inputs; the tensors' relative ``errors``, filled as it goes on."""

    key: str
    errors: dict[str, float]


# --- the checkpoint ---------------------------------------------------------------------------

RopeKind = Literal["default", "linear", "llama3", "yarn", "longrope"]


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding. Names follow transformers' ``rope_parameters``.

    ``dim`` counts the rotated dimensions of a head; it is less than head_dim for partial rotary.
    ``original_context`` is the context the rope was trained for, before scaling.
    """

    theta: ranges.NotNegative
    dim: ranges.RotaryDim
    kind: RopeKind = "default"
    factor: ranges.NotNegative = 1.0
    original_context: ranges.Count = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


@dataclass(frozen=True)
class ModelSpec:
    """A decoder of the LLaMA family, as numbers. Everything the graph needs besides the weights.

    ``windows[i]`` is layer i's sliding window in tokens, or None for full attention.
    ``rotary[i]`` says whether layer i rotates its queries and keys (SmolLM3 leaves some out).
    ``vocab_size`` counts the embedding's rows, padding included.
    """

    architecture: str
    hidden_size: ranges.Hidden
    intermediate_size: ranges.Intermediate
    layers: ranges.Layers
    heads: ranges.Heads
    kv_heads: ranges.Heads
    head_dim: ranges.HeadSize
    vocab_size: ranges.Vocabulary
    context_length: ranges.Context
    norm_eps: ranges.Epsilon
    rope: Rope
    tied: bool
    windows: tuple[ranges.Window | None, ...]
    rotary: tuple[bool, ...]
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    bos_token_id: ranges.Token | None = None
    eos_token_ids: tuple[ranges.Token, ...] = ()
    pad_token_id: ranges.Token | None = None


class Weights(Protocol):
    """Named tensors that are read when asked for and not held afterwards.

    Names are Hugging Face's for LLaMA, whatever the checkpoint calls them:
    ``model.embed_tokens.weight``, ``model.layers.{i}.self_attn.{q,k,v,o}_proj.{weight,bias}``,
    ``model.layers.{i}.self_attn.{q,k}_norm.weight``, ``model.layers.{i}.mlp.{gate,up,down}_proj.{weight,bias}``,
    ``model.layers.{i}.{input,post_attention}_layernorm.weight``, ``model.norm.weight`` and, unless
    tied, ``lm_head.weight``. Linear weights are [outputs, inputs].
    """

    def names(self) -> tuple[str, ...]:
        """All tensor names, in model order."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it. Raises SourceError for an unknown name."""

    def stored(self, name: str) -> str:
        """How the checkpoint stores it: ``F32``, ``BF16``, ``Q4_1`` ..."""

    def nbytes(self, name: str) -> int:
        """Bytes it occupies in the checkpoint."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) of the first axis as a new float32 array.

        Raises SourceError when the file is truncated or a value is NaN or infinite.
        """


@dataclass(frozen=True)
class SideFile:
    """A file that travels from the checkpoint into the bundle as it is: tokenizer.json, config.json ..."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Provenance:
    """Where a checkpoint came from. ``sha256`` covers the weight files' bytes; a bundle leaves ``location`` out."""

    id: str
    kind: Literal["folder", "hub", "gguf", "packaged", "optimum"]
    sha256: ranges.Digest
    revision: str = ""
    location: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """A model as it was given to us: the spec, lazy weights and the files beside them.

    ``files`` always holds config.json, generation_config.json, tokenizer.json, tokenizer_config.json
    and, where the model has one, chat_template.jinja; those of an outline (see source/outline.py) may be absent.
    """

    spec: ModelSpec
    weights: Weights
    files: tuple[SideFile, ...]
    provenance: Provenance

    def file(self, name: str) -> bytes | None:
        """The content of a side file, or None."""
        return next((f.data for f in self.files if f.name == name), None)


# --- quantization -----------------------------------------------------------------------------

ScaleType = Literal["float16", "float32"]


@dataclass(frozen=True)
class Grid:
    """The values a weight may take: ``(q - zero_point) * scale``, one scale (and zero point) a block.

    A block is ``block`` consecutive weights of one row (one output channel); 0 is the whole row
    (per-channel). ``q`` is unsigned, 0 .. 2**bits - 1. A symmetric grid has the zero point 2**(bits-1)
    and stores none.
    """

    bits: ranges.Bits
    block: ranges.Block
    symmetric: bool
    scale: ScaleType = "float16"


SHARED_WITH = "edgekit.shared_with"
"""Metadata of an initializer that has no bytes of its own: the name of the one whose bytes it uses. Set by quantize,
kept by lower, obeyed by bundle."""

INSIDE = "edgekit.inside"
"""Metadata of an initializer that stays in the graph's own file, however large. Set by lower, obeyed by bundle."""

FIRST_LOGIT = "first_logit.start"
"""The initializer that says from which position on the head reads. Set by lower; run makes it an input."""

JOINED = "edgekit.joined"
"""Metadata of an initializer that holds several one after another: ``name:rows`` of each, with blanks between. Set by
lower, read by bundle when weights are read back."""

GridPolicy = Callable[[str, tuple[int, ...]], "Grid | None"]
"""A tensor's name and shape -> the grid it gets, or None to leave it in floating point."""


@dataclass(frozen=True)
class Override:
    """Tensors whose name matches the glob ``match`` get ``grid`` (None: floating point). The first match wins.

    ``{last}`` in ``match`` stands for the number of the last layer.
    """

    match: str
    grid: Grid | None


@dataclass(frozen=True)
class Recipe:
    """How the weights become small. ``method`` is the name of a file in quantize/.

    ``linear`` is the grid of the decoder's matrix products; ``embedding`` that of the token table and the head.
    ``size_bytes`` or ``bits_per_weight`` set a budget that picks 8-bit tensors by measured sensitivity. ``smooth``
    (0..1): how much of the activations' range is moved into the weights first, exactly (see quantize/smooth.py).
    ``rotate``: the residual stream is turned, exactly, so that no channel stands out (see quantize/rotate.py).
    ``fast_prefill``: prompts run on 8-bit integers, one scale a token (see lower/prefill.py).
    """

    name: str
    precision: Precision
    method: str = "search"
    linear: Grid | None = None
    embedding: Grid | None = None
    overrides: tuple[Override, ...] = ()
    accuracy_level: ranges.Level = 0  # MatMulNBits': 0: the runtime decides, 1: fp32, 4: int8 activations
    smooth: ranges.Share = 0.0
    rotate: bool = False
    fast_prefill: bool = False
    size_bytes: ranges.Bytes | None = None
    bits_per_weight: ranges.NotNegative | None = None


@dataclass(frozen=True)
class Range:
    """The least and the largest number that the value ``name`` of a graph took on calibration tokens."""

    name: str
    low: float
    high: float


# --- the bundle -------------------------------------------------------------------------------


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
class Expansion:
    """A weight of the prompt's graph, and where in the data file its codes on a grid lie, laid out as MatMulNBits'.

    ``codes`` uint8 [rows, blocks, block * bits / 8]; ``scales`` float16 or float32 [rows, blocks], or [rows, 1] per
    channel; ``zeros`` packed like the codes, None on a symmetric grid.
    """

    name: str
    rows: ranges.Rows
    columns: ranges.Width
    bits: ranges.Bits
    block: ranges.Block
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
    expansions: tuple[Expansion, ...]


@dataclass(frozen=True)
class Settings:
    """How a bundle is run. They change the speed; the logits only by rounding, or by the graph that prompts take.

    ``spinning``: threads wait for work in a loop instead of asleep. ``pinned``: each thread but the caller's keeps to
    one physical core. ``prompt_graph``: ``own`` is the bundle's graph for prompts. ``chunk``: most tokens of one run of
    a prompt. ``few``: up to this many tokens at once run on the decoder's graph, whatever ``prompt_graph`` says.

    Raises ValueError where a number is below 1.
    """

    threads: ranges.Threads
    spinning: bool
    pinned: bool
    prompt_graph: Literal["own", "decoder"]
    chunk: ranges.Chunk
    few: ranges.Chunk

    def __post_init__(self) -> None:
        if min(self.threads, self.chunk, self.few) < 1:
            raise ValueError(f"threads {self.threads}, chunk {self.chunk} and few {self.few} count from 1")


@dataclass(frozen=True)
class Trial:
    """One change of the settings, measured in rounds beside the settings that stood until then.

    ``ratios`` by workload (``pp512``, ``tg32@512``): one sample a round, the speed with the change over that without.
    """

    change: str
    ratios: tuple[Series, ...]
    won: bool


@dataclass(frozen=True)
class Tuning:
    """The settings that were the fastest on a class of machine, and the trials that say so.

    ``machine`` and ``runtime`` must be those of the process for it to apply. ``kept``: the default settings stayed.
    ``left_out`` says what was not tried and why. ``waited``: the share of its running time that the process waited for
    a core, in the worst trial; None where the system does not tell.
    """

    machine: str
    runtime: str
    settings: Settings
    kept: bool
    trials: tuple[Trial, ...]
    left_out: tuple[str, ...]
    waited: float | None
    time: str


@dataclass(frozen=True)
class Manifest:
    """edgekit.json: what the bundle is, how it was made, and what has been measured on it.

    ``fallback``: whom ``graph`` is for where ``target`` has an NPU, whose own graphs are in ``npus``.
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
    fallback: Target | None = None
    npus: tuple[NpuBuild, ...] = ()
    quality: Quality | None = None
    latency: Measurement | None = None
    tunings: tuple[Tuning, ...] = ()
    arm: ArmQuality | None = None
    calibration: Calibration | None = None

    @property
    def portable(self) -> Target:
        """Whom ``graph`` was lowered for: what runs it, and what its numbers are of."""
        return self.fallback or self.target

    @property
    def context_length(self) -> int:
        """Most tokens that the model and the graph's target allow."""
        limit = self.portable.max_context
        return self.spec.context_length if limit is None else min(limit, self.spec.context_length)

    @property
    def parameters(self) -> int:
        """Weights of the model, a tied head counted once."""
        return sum(prod(t.shape) for t in self.tensors if not t.shared_with)

    @property
    def accuracy_level(self) -> int:
        """MatMulNBits' level in the graph: its target's, which wins over the recipe's."""
        level = self.portable.accuracy_level
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


# --- running ----------------------------------------------------------------------------------


class Predictor(Protocol):
    """What quality is measured on: logits of whole sequences."""

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits [S, V] of every position of a fresh sequence; a cache is reset first."""


class Runner(Predictor, Protocol):
    """A model held open. Batch 1. The key/value cache lives inside and grows by what is fed."""

    @property
    def context_length(self) -> int:
        """Most tokens the cache can hold."""

    @property
    def length(self) -> int:
        """Tokens in the cache now."""

    def reset(self) -> None:
        """Forget everything that was fed."""

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Feed tokens; return the last position's logits [V]. Raises RunError past the context."""

    def step(self, token: int) -> NDArray[np.float32]:
        """Feed one token; return its logits [V]. The array is reused by the next call."""

    def close(self) -> None:
        """Release the session and the cache."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. ``temperature`` 0 is greedy. 0 / 1.0 / 0.0 switch top_k / top_p / min_p off.

    None is what nobody asked for: greedy; another ``seed`` each time; as many new tokens as the context holds.
    """

    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Emitted:
    """One generated token: the text that became safe to show with it (possibly ""), and its signals.

    ``logprob``, ``logprob_margin`` (of top-1 over top-2), ``prob_margin`` (the same of their probabilities)
    and ``entropy`` (nats) are of the unmodified distribution, NaN unless they were asked for.
    """

    token: int
    text: str
    logprob: float = nan
    logprob_margin: float = nan
    prob_margin: float = nan
    entropy: float = nan


# --- measuring --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """Raw samples of one quantity. Statistics are derived, never stored instead."""

    name: str
    unit: str
    samples: tuple[float, ...]

    @property
    def n(self) -> int:
        """How many samples."""
        return len(self.samples)

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return sum(self.samples) / len(self.samples)

    @property
    def sd(self) -> float:
        """Sample standard deviation (n - 1); 0.0 for one sample."""
        if len(self.samples) < 2:
            return 0.0
        m = self.mean
        variance = sum((x - m) ** 2 for x in self.samples) / (len(self.samples) - 1)
        return float(variance**0.5)

    def percentile(self, p: float) -> float:
        """The p-th percentile (0..100), linear between order statistics."""
        ordered = sorted(self.samples)
        at = (len(ordered) - 1) * p / 100
        low = int(at)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


@dataclass(frozen=True)
class Energy:
    """Energy of the measured work. ``kind`` says how it was obtained; absent numbers are None, never zero.

    ``gross`` joules include the idle power, ``net`` do not. ``reason`` says why there is none.
    """

    kind: Literal["measured", "estimated", "none"]
    meter: str = ""
    gross_joules: float | None = None
    net_joules: float | None = None
    idle_watts_before: float | None = None
    idle_watts_after: float | None = None
    seconds: float | None = None
    tokens: int | None = None
    formula: str = ""
    reason: str = ""


class PowerProbe(Protocol):
    """A meter. One file each in measure/power/."""

    @property
    def name(self) -> str:
        """What it reads, in words: ``RAPL package-0``."""

    @property
    def kind(self) -> Literal["measured", "estimated"]:
        """How its joules are obtained."""

    def start(self) -> None:
        """Begin to count."""

    def stop(self) -> float:
        """Joules since start()."""


@dataclass(frozen=True)
class Environment:
    """The machine during a measurement. Unknown is None or "". ``arithmetic``: how exact its integer products were."""

    host: str
    system: str
    cpu: str
    cores: int
    threads: int
    memory_bytes: int | None
    governor: str
    frequency_mhz: float | None
    temperature_c: float | None
    battery_percent: float | None
    on_battery: bool | None
    load_before: float | None
    runtime: tuple[tuple[str, str], ...]
    provider: str
    provider_options: tuple[tuple[str, str], ...]
    processor_class: str = added_later("")
    arithmetic: str = added_later("")


@dataclass(frozen=True)
class Ceilings:
    """What the machine can do, measured in the same run: memory read bandwidth and fp32 GEMM rate."""

    bandwidth_bytes_per_s: Series
    gemm_flop_per_s: Series


@dataclass(frozen=True)
class Measurement:
    """One run of a workload on one bundle: one JSON line. Raw samples with units; statistics are derived.

    ``bytes_per_token`` and ``flop_per_token`` are what a decoded token must at least read and compute,
    by their formulae in measure/; MBU and MFU follow from them and the ceilings. ``roofline`` holds, by series,
    the fraction of the ceiling that was reached: MBU for ``tg``, MFU for ``pp``. ``gemm_factor`` is what the fp32
    GEMM rate was multiplied by to be a ceiling for the model's own arithmetic (1 in fp32), None when not known.
    ``settings`` are those it ran with; ``tuned`` says that they came from a tuning for this class of machine.
    """

    schema: int
    bundle_sha256: str
    model: str
    precision: Precision
    device: str
    time: str
    environment: Environment
    workload: str
    warmup: int
    series: tuple[Series, ...]
    ceilings: Ceilings | None
    peak_rss_bytes: int
    weight_bytes: int
    kv_bytes_per_position: int
    flop_per_token: float
    nodes_on_cpu: int | None
    energy: Energy
    roofline: tuple[tuple[str, float], ...] = ()
    gemm_factor: float | None = None
    settings: Settings | None = None
    tuned: bool = False

    def get(self, name: str) -> Series | None:
        """The series called ``name``, or None."""
        return next((s for s in self.series if s.name == name), None)


@dataclass(frozen=True)
class Quality:
    """How far the shipped file is from its FP32 source, with 95 % bootstrap intervals over windows.

    KLD is KL(reference || bundle) in nats per token; it is computed on the reference's ``top_k`` most likely
    tokens plus one bucket for the rest, which can only understate it. ``text`` names the text, ``tokens`` counts
    the scored positions.
    """

    kld_mean: Interval
    kld_p99: Interval
    kld_p999: Interval
    top1: Interval
    ppl_ratio: Interval
    ppl: ranges.Measured
    reference_ppl: ranges.Measured
    reference: str
    text: str
    text_sha256: ranges.Digest
    window: int
    tokens: int
    top_k: int
    runtime: str
    accuracy_level: ranges.Level
    processor_class: str = added_later("")


@dataclass(frozen=True)
class Kernels:
    """A choice of the runtime's kernels: session config ``entries``, and MatMulNBits' accuracy level."""

    name: str
    accuracy_level: ranges.Level
    entries: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class KernelScore:
    """The decoder's graph on ARM with one choice of kernels.

    ``quality`` is its distance from the FP32 source. ``excess``: its KLD less that of the first choice, the runtime's
    own, position by position, in nats. ``away`` and ``same``: KLD from, and top-1 agreement with, what the machine that
    scored computes from the same file itself.
    """

    kernels: Kernels
    quality: Quality
    excess: Interval
    away: Interval
    same: Interval


@dataclass(frozen=True)
class ArmQuality:
    """What a bundle's decoder graph computes on ARM, where kernels are others than on x86. No speed: it is emulated.

    ``processor`` says what ran it, ``here`` is the same graph on the machine that scored. ``chosen`` is one of the
    kernels scored at the bundle's own accuracy level; opening the bundle applies its entries. ``prompts``: the bundle's
    graph for prompts with the chosen kernels, None where it has none.
    """

    processor: str
    here: Quality
    scores: tuple[KernelScore, ...]
    chosen: Kernels
    prompts: KernelScore | None

    def score_of(self, kernels: Kernels) -> KernelScore:
        """The score of one choice."""
        return next(s for s in self.scores if s.kernels == kernels)


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
    """What a checkpoint or a bundle is. ``signed_by``: the key that a signature names, which was not checked."""

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
