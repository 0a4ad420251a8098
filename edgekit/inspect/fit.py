"""Which precision of a model fits which device, before any weights are downloaded.

File sizes are those that a build writes. Memory, speed and quality are estimates by ``FORMULAE``; unknown numbers stay
unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, get_args

from edgekit import measure, words
from edgekit.config.measured import efficiency_range, measured_speeds, read_records
from edgekit.config.recipe import builtin_recipe, list_targets, load_target
from edgekit.errors import ConfigError, LowerError, QuantizeError
from edgekit.estimate.memory import RUNTIME_BYTES
from edgekit.inspect.plan import TOKENIZER_BYTES, Footprint, Plan, npu_token_bytes, plan_bundle, predict_footprint
from edgekit.run import physical_cores
from edgekit.source import open_config_only
from edgekit.types import Checkpoint, Precision, Progress, Target, silent
from edgekit.types.device import Evidence
from edgekit.types.generation import PREFILL_CHUNK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from edgekit.types.fleet import MeasuredSpeed

Plans = dict[tuple[str, str, Precision], Plan | str]
"""By target, model and precision: the planned bundle, or why it cannot be built."""

HERE = "here"
"""The name of the target that is this machine, with its memory read and its bandwidth measured."""

CONTEXT = 4096
"""Default tokens of context, for models that have as many."""

SYSTEM_SHARE = 0.25
"""Share of a target's memory reserved for the system and other programs."""

EFFICIENCY: Mapping[Precision, tuple[float, float]] = {
    # int4: onnxruntime-genai 0.25, edgekit 0.32; int8: edgekit 0.33 and 0.35, lower end as for int4
    "int4": (0.25, 0.35),
    "int8": (0.25, 0.35),
    # onnxruntime-genai 0.48, edgekit 0.96
    "fp16": (0.48, 0.96),
    "fp32": (0.48, 0.96),
}
"""Lowest and highest fraction of the memory bandwidth that decoding reached (MBU of `edgekit bench`): SmolLM2-135M in
ONNX Runtime on 2 cores of an AMD EPYC (Zen 4). Assumed for other devices."""

FORMULAE = (
    (
        "file",
        "graph, weights and side files as a build writes them; ~: no tokenizer available, estimated at "
        f"{TOKENIZER_BYTES} bytes per token of the vocabulary",
    ),
    (
        "RAM (estimated)",
        "weights as ONNX Runtime holds them (floats 4 bytes; quantized: codes, zero points and 8 bytes a block; a tied "
        "table twice) + KV 2 * layers * kv_heads * head_dim * 4 bytes * context (twice if the cache is not updated in "
        f"place) + workspace (logits and activations of {PREFILL_CHUNK} tokens, attention scores, rope tables) + "
        f"{words.size(RUNTIME_BYTES)} for the runtime",
    ),
    (
        "tok/s (estimated)",
        "max is bandwidth / (weights + KV that a token reads at the end of the context); the likely range is "
        + ", ".join(f"{low:.0%} to {high:.0%} of max at {p}" for p, (low, high) in EFFICIENCY.items())
        + ", measured with SmolLM2-135M on 2 cores of an AMD EPYC and assumed for other devices",
    ),
    (
        "loss of a precision (measured)",
        "KL divergence from FP32 on WikiText-2 with SmolLM2-135M, assumed for other models; the smallest precision "
        f"below {measure.UNSEEN} nats per token is chosen: one per cent of the perplexity, which is not noticeable",
    ),
    ("allowed RAM", f"the given limit, or {1 - SYSTEM_SHARE:.0%} of the target's memory; the rest is for the system"),
)
"""How the numbers are computed: (name, formula)."""

NPU_FORMULAE = (
    (
        "read per token on an NPU (estimated)",
        "weights as in the file (floats 2 bytes) + KV 2 * layers * kv_heads * head_dim * 2 bytes * npu.context",
    ),
    (
        "file and RAM on an NPU",
        "those of the CPU graph, which the bundle also holds; the size of the compiled graphs is not known in advance",
    ),
    (
        "context on an NPU",
        "its graphs hold npu.context tokens: longer contexts are refused, and this is the default",
    ),
)
"""What differs for graphs compiled for an NPU; its efficiency stands in each target's file."""


@dataclass(frozen=True)
class Limits:
    """Limits of a choice; None is no limit. ``memory`` and ``size`` in bytes, ``speed`` in tok/s."""

    memory: int | None = None
    size: int | None = None
    speed: float | None = None


@dataclass(frozen=True)
class Speed:
    """Estimated decoding speed in tok/s: ``at_most`` is the roofline, ``low`` to ``high`` the likely range."""

    at_most: float
    low: float
    high: float


@dataclass(frozen=True)
class Option:
    """A model at a precision on a target. It fits if both ``refusals`` and ``unknown`` are empty.

    ``context`` is the number of tokens it was judged at. ``footprint`` is None if it cannot be built for the target,
    ``speed`` if the bandwidth is unknown.
    """

    model: str
    target: str
    precision: Precision
    context: int
    footprint: Footprint | None
    speed: Speed | None
    refusals: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether it keeps every limit, by the estimates."""
        return not self.refusals and not self.unknown


@dataclass(frozen=True)
class Choice:
    """The precision for a model on a target, None if none fits; ``reason`` compares it with the others."""

    target: str
    model: str
    precision: Precision | None
    reason: str


@dataclass(frozen=True)
class Rank:
    """Estimated ``loss`` of a model at a precision and size, in nats above that of an unlimited model.

    ``best``: no option of this size or less has a lower loss.
    """

    model: str
    precision: Precision
    parameters: int
    bytes: int
    loss: float
    best: bool


@dataclass(frozen=True)
class ModelFit:
    """A model as configured, and the ``context`` it is judged at."""

    name: str
    architecture: str
    parameters: int
    context: int
    context_length: int


@dataclass(frozen=True)
class Fit:
    """The result. ``ranks`` and ``best`` (one per target) compare several models; ``incomparable``: why they cannot."""

    models: tuple[ModelFit, ...]
    targets: tuple[Target, ...]
    limits: Limits
    options: tuple[Option, ...]
    choices: tuple[Choice, ...]
    ranks: tuple[Rank, ...]
    best: tuple[Choice, ...]
    incomparable: str
    formulae: tuple[tuple[str, str], ...]


def fit_models(
    models: Sequence[str],
    *,
    targets: Sequence[str] = (),
    context: int | None = None,
    limits: Limits | None = None,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress = silent,
) -> Fit:
    """Find which precision of each model fits which target, without downloading or reading weights.

    Args:
        models: folders with a config.json, hub ids, ``.gguf`` files or packaged names.
        targets: names or TOML files; ``here`` is this machine, measured. By default all that ship with edgekit.
        context: tokens of context; by default at most 4096, and on an NPU at most what its graphs hold.
        limits: limits besides the target's memory.
        revision: branch, tag or commit on the hub.
        offline: do not access the hub.
        progress: called with the number of planned bundles.

    Raises:
        SourceError: a model's configuration is missing or not supported.
        ConfigError: a target is unknown, or a model does not hold ``context`` tokens.
    """
    limits = limits or Limits()
    known = [_load(name) for name in dict.fromkeys(targets or list_targets())]
    opened = {name: open_config_only(name, revision=revision, offline=offline) for name in models}
    lengths = {name: _context(name, checkpoint, context) for name, checkpoint in opened.items()}
    plans = _plan_all(opened, known, progress)
    known = [_measure_here(t, plans, lengths) if t.name == HERE else t for t in known]
    records = read_records()
    measured = {t.name: measured_speeds(t, records) for t in known}
    options = tuple(
        _judge(
            name,
            target,
            precision,
            plans[target.name, name, precision],
            _judged_at(target, lengths[name], context),
            limits,
            measured[target.name],
        )
        for target in known
        for name in opened
        for precision in get_args(Precision)
    )
    described = tuple(
        ModelFit(name, o.spec.architecture, _parameters(o), lengths[name], o.spec.context_length)
        for name, o in opened.items()
    )
    why = _why_incomparable(described, tuple(opened.values()))
    comparable = len(described) > 1 and not why
    return Fit(
        models=described,
        targets=tuple(known),
        limits=limits,
        options=options,
        choices=tuple(_choose(t.name, name, options) for t in known for name in opened),
        ranks=_rank(described, options) if comparable else (),
        best=tuple(_choose_model(t.name, described, options) for t in known) if comparable else (),
        incomparable=why,
        formulae=(
            *_formulae(known),
            *_measured_formulae(measured),
            *((("loss (estimated)", measure.FORMULA),) if comparable else ()),
        ),
    )


# --- inputs -----------------------------------------------------------------------------------


def _load(name: str) -> Target:
    if name != HERE:
        return load_target(name)
    return replace(load_target("cpu"), name=HERE, title="this machine")


def _context(name: str, checkpoint: Checkpoint, context: int | None) -> int:
    limit = checkpoint.spec.context_length
    if context is not None and not 1 <= context <= limit:
        raise ConfigError(
            f"`context` is {context}, but {name} holds 1 to {limit} tokens", f"pass `context={limit}` or less"
        )
    return context or min(CONTEXT, limit)


def _judged_at(target: Target, length: int, asked: int | None) -> int:
    """Tokens of context that a target is judged at; on an NPU by default what its graphs hold."""
    return length if asked or target.npu is None else min(length, target.npu.context)


def _efficiency(target: Target, precision: Precision, measured: Sequence[MeasuredSpeed]) -> tuple[float, float]:
    """Lowest and highest fraction of the bandwidth that decoding is expected to reach: measured on it, if it was."""
    assumed = target.npu.efficiency if target.npu else EFFICIENCY[precision]
    return efficiency_range(measured, precision) or assumed


def _measured_formulae(measured: Mapping[str, Sequence[MeasuredSpeed]]) -> Iterator[tuple[str, str]]:
    """What a lab measured on targets, which takes the place of the assumed fraction of max."""
    for target, speeds in measured.items():
        for speed in speeds:
            if speed.efficiency is not None:
                what = f"{speed.efficiency:.0%} of max with {speed.model} on {speed.device} ({speed.host})"
                yield f"{speed.precision} on {target} (measured)", f"{what}, {speed.time[:10]}"


def _formulae(targets: Sequence[Target]) -> tuple[tuple[str, str], ...]:
    """The formulae that apply to these targets."""
    ranges = [f"{low:.0%} to {high:.0%} on {t.name}" for t in targets if t.npu for low, high in (t.npu.efficiency,)]
    if not ranges:
        return FORMULAE
    speed = f"of max, {', '.join(ranges)}: from the target's file (npu.efficiency), not measured"
    return (*FORMULAE, ("tok/s on an NPU (estimated)", speed), *NPU_FORMULAE)


def _parameters(checkpoint: Checkpoint) -> int:
    return sum(prod(checkpoint.weights.shape(name)) for name in checkpoint.weights.names())


def _plan_all(models: Mapping[str, Checkpoint], targets: Sequence[Target], progress: Progress) -> Plans:
    plans: Plans = {}
    drawn: dict[tuple[object, ...], Plan] = {}
    for i, (name, checkpoint) in enumerate(models.items()):
        progress("planning bundles", i, len(models), "models")
        for target in targets:
            for precision in get_args(Precision):
                plans[target.name, name, precision] = _plan(checkpoint, precision, target, drawn)
    progress("planning bundles", len(models), len(models), "models")
    return plans


def _plan(
    checkpoint: Checkpoint, precision: Precision, target: Target, drawn: dict[tuple[object, ...], Plan]
) -> Plan | str:
    """Plan the bundle, once for all targets of a dialect, or return why it cannot be built."""
    if precision not in target.precisions:
        return "not supported by the target"
    scheme = next((r for r in target.npu.schemes if precision in r.precisions), None) if target.npu else None
    recipe = builtin_recipe(precision, scheme)
    target = _on_cpu(target)
    dialect = (target.opset, target.lacks, target.quirks, target.accuracy_level, target.shared_kv)
    key = (checkpoint.provenance, recipe.name, *dialect)
    if key not in drawn:
        try:
            drawn[key] = plan_bundle(checkpoint, recipe, target)
        except (QuantizeError, LowerError) as error:
            return error.message
    return drawn[key]


def _on_cpu(target: Target) -> Target:
    """The target of the CPU graph: for an NPU its fallback, whose graph the bundle also holds."""
    return load_target(target.fallback) if target.fallback else target


def _measure_here(target: Target, plans: Plans, lengths: Mapping[str, int]) -> Target:
    """Fill in this machine's memory and its bandwidth at the smallest working set, where it is highest."""
    threads = physical_cores()
    machine = measure.read_environment(cores=threads, threads=threads, runtime=(), provider=target.provider)
    sizes = [
        predict_footprint(plan, lengths[name], shared_kv=target.shared_kv).token
        for (_, name, _), plan in plans.items()
        if isinstance(plan, Plan)
    ]
    series = measure.measure_bandwidth(threads, min(sizes, default=0))
    return replace(
        target,
        title=f"this machine: {machine.cpu or 'unknown processor'}",
        memory_bytes=machine.memory_bytes,
        bandwidth_bytes_per_s=max(series.samples),
        sources=(
            Evidence("memory_bytes", "measured", "read from the operating system"),
            Evidence("bandwidth_bytes_per_s", "measured", f"just now: {series.name}, best of {series.n}"),
        ),
    )


# --- what fits --------------------------------------------------------------------------------


def _judge(
    model: str,
    target: Target,
    precision: Precision,
    plan: Plan | str,
    context: int,
    limits: Limits,
    measured: Sequence[MeasuredSpeed] = (),
) -> Option:
    """Compare one model at one precision with a target and the limits."""
    if isinstance(plan, str):
        return Option(model, target.name, precision, context, None, None, (plan,), ())
    footprint = predict_footprint(plan, context, shared_kv=_on_cpu(target).shared_kv)
    if target.npu:
        footprint = replace(footprint, token=npu_token_bytes(plan, target.npu.context))
    speed = None
    if target.bandwidth_bytes_per_s is not None:
        most = target.bandwidth_bytes_per_s / footprint.token
        low, high = _efficiency(target, precision, measured)
        speed = Speed(most, low * most, high * most)
    refusals, unknown = [], []
    if target.max_context is not None and context > target.max_context:
        refusals.append(f"the target holds {target.max_context} tokens")
    if target.npu is not None and context > target.npu.context:
        refusals.append(f"the NPU's graphs hold {target.npu.context} tokens")
    allowed = limits.memory
    if allowed is None and target.memory_bytes is not None:
        allowed = int((1 - SYSTEM_SHARE) * target.memory_bytes)
    if allowed is None:
        unknown.append("memory")
    elif footprint.memory.total > allowed:
        refusals.append(f"needs {words.size(footprint.memory.total)} of RAM, limit {words.size(allowed)}")
    if limits.size is not None and footprint.file > limits.size:
        refusals.append(f"file of {words.size(footprint.file)}, limit {words.size(limits.size)}")
    if limits.speed is not None and speed is None:
        unknown.append("bandwidth")
    elif limits.speed is not None and speed is not None and speed.low < limits.speed:
        likely = f"{words.number(speed.low)} to {words.number(speed.high)} tok/s likely"
        refusals.append(f"{likely}, at most {words.number(speed.at_most)}, limit {words.number(limits.speed)}")
    return Option(model, target.name, precision, context, footprint, speed, tuple(refusals), tuple(unknown))


def _choose(target: str, model: str, options: Iterable[Option]) -> Choice:
    """Choose the smallest option that fits without noticeable loss, else the one with the least loss."""
    obstacles: dict[str, list[str]] = {}
    fitting: list[tuple[Option, int]] = []
    for option in (o for o in options if o.target == target and o.model == model):
        if option.fits and option.footprint is not None:
            fitting.append((option, option.footprint.file))
        else:
            obstacles.setdefault(_obstacle(option), []).append(option.precision)
    refused = [f"{', '.join(precisions)}: {obstacle}" for obstacle, precisions in obstacles.items()]
    if not fitting:
        return Choice(target, model, None, "; ".join(refused))
    losses = measure.PRECISION_LOSS
    least = max(measure.UNSEEN, min(losses[o.precision] for o, _ in fitting))
    chosen, size = min(((o, s) for o, s in fitting if losses[o.precision] <= least), key=lambda found: found[1])
    prices = [_price(o.precision, s, size) for o, s in fitting if o is not chosen]
    return Choice(target, model, chosen.precision, "; ".join([_loss(chosen.precision), *prices, *refused]))


def _loss(precision: Precision) -> str:
    """Describe the loss of the chosen precision."""
    loss = measure.PRECISION_LOSS[precision]
    if not loss:
        return f"{precision} is lossless"
    seen = "which is not noticeable" if loss <= measure.UNSEEN else "the least that fits"
    return f"{precision} loses {words.number(loss)} nats per token, {seen}"


def _price(precision: Precision, size: int, chosen: int) -> str:
    """Describe the loss and size of another precision that fits, relative to the chosen one."""
    change = f"{words.size(abs(size - chosen))} {'more' if size > chosen else 'less'}"
    return f"{precision}: {words.number(measure.PRECISION_LOSS[precision])} nats for {change}"


def _obstacle(option: Option) -> str:
    if option.refusals:
        return ", ".join(option.refusals)
    return f"{' and '.join(option.unknown)} unknown"


# --- several models ---------------------------------------------------------------------------


def _why_incomparable(models: Sequence[ModelFit], opened: Sequence[Checkpoint]) -> str:
    if len(models) < 2:
        return ""
    return measure.why_incomparable([checkpoint.spec for checkpoint in opened], [m.parameters for m in models])


def _rank(models: Sequence[ModelFit], options: Sequence[Option]) -> tuple[Rank, ...]:
    """Rank models and precisions by size, as on the first target, and mark the best at each size."""
    points: dict[tuple[str, Precision], Rank] = {}
    parameters = {m.name: m.parameters for m in models}
    for option in options:
        key = option.model, option.precision
        if option.footprint is not None and key not in points:
            loss = measure.estimate_loss(parameters[option.model], option.precision)
            points[key] = Rank(*key, parameters[option.model], option.footprint.file, loss, best=False)
    return tuple(_mark_best(sorted(points.values(), key=lambda r: (r.bytes, r.loss))))


def _mark_best(ranks: Iterable[Rank]) -> Iterator[Rank]:
    least = float("inf")
    for rank in ranks:
        yield replace(rank, best=rank.loss < least)
        least = min(least, rank.loss)


def _choose_model(target: str, models: Sequence[ModelFit], options: Iterable[Option]) -> Choice:
    """Choose the smallest option for a target whose estimated loss is not noticeably above the least."""
    parameters = {m.name: m.parameters for m in models}
    fitting = [
        (measure.estimate_loss(parameters[o.model], o.precision), o.footprint.file, o)
        for o in options
        if o.target == target and o.fits and o.footprint is not None
    ]
    if not fitting:
        return Choice(target, "", None, "nothing fits, or memory or speed is unknown")
    least = min(loss for loss, _, _ in fitting) + measure.UNSEEN
    loss, size, option = min((found for found in fitting if found[0] <= least), key=lambda found: found[1])
    reason = f"least or about the least loss that fits: {words.number(loss)} nats (estimated), {words.size(size)}"
    return Choice(target, option.model, option.precision, reason)
