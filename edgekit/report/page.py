"""Turn the bundles' manifests into the numbers, rows and plots that the template lays out."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from math import isfinite, log10, prod
from typing import TYPE_CHECKING, Literal

from edgekit import words
from edgekit.estimate.npu_cost import estimate_build
from edgekit.estimate.sizes import PARTS, bundle_parts, graph_bytes
from edgekit.report import plot
from edgekit.report.training import data_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edgekit.types import (
        Bundle,
        Energy,
        Interval,
        Manifest,
        Measurement,
        NpuBuild,
        Quality,
        Series,
        SizePart,
        TensorEntry,
    )

Kind = Literal["counted", "measured", "emulated", "estimated", "none"]


@dataclass(frozen=True)
class Number:
    """A formatted number, how it was obtained, and its ``spread``: sd, interval or n."""

    text: str
    kind: Kind
    spread: str = ""


@dataclass(frozen=True)
class Rung:
    """One bar of a ladder; ``share`` of the longest bar, 0..1."""

    name: str
    number: Number
    share: float


@dataclass(frozen=True)
class Ladder:
    """From the machine's peak to what the model achieved."""

    title: str
    rungs: tuple[Rung, ...]


@dataclass(frozen=True)
class Slice:
    """A part of a bundle and its share of the longest size bar."""

    part: SizePart
    share: float


@dataclass(frozen=True)
class Cell:
    """One matrix in the strip: its bits per weight and error (None: kept in floating point).

    ``shade`` is the position of the error between the smallest and the largest of the strip, on a log scale, 0..1.
    """

    name: str
    bits: float
    error: float | None
    shade: float


@dataclass(frozen=True)
class StripRow:
    """One kind of matrix across the layers."""

    role: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Row:
    """A row of a table: a name, its explanation, and one number per bundle."""

    name: str
    why: str
    numbers: tuple[Number, ...]


@dataclass(frozen=True)
class Card:
    """Everything that the page shows about a single bundle."""

    ink: plot.Ink
    manifest: Manifest
    size: Number
    ratio: Number
    bits: Number
    kld: Number
    top1: Number
    first: Number
    decode: Number
    energy: Number
    slices: tuple[Slice, ...]
    strip: tuple[StripRow, ...]
    errors: tuple[float, float] | None
    ladders: tuple[Ladder, ...]
    origin: tuple[tuple[str, str], ...]

    def bytes_of(self, part: str) -> int:
        """Bytes of a part, 0 if the bundle lacks it."""
        return sum(s.part.bytes for s in self.slices if s.part.part == part)


@dataclass(frozen=True)
class Page:
    """The whole page. A plot is None if nothing was measured for it."""

    title: str
    summary: str
    cards: tuple[Card, ...]
    quality_plot: str | None
    depth_plot: str | None
    steps_plot: str | None
    runs_plot: str | None
    quality_rows: tuple[Row, ...]
    speed_rows: tuple[Row, ...]
    npu_rows: tuple[Row, ...]
    parts: tuple[str, ...]


NONE = Number(words.ABSENT, "none")

_LAYER = re.compile(r"model\.layers\.\d+\.(?:self_attn|mlp)\.(?P<role>\w+)\.weight")


def compose(bundles: Sequence[Bundle]) -> Page:
    """Turn bundles into a page."""
    widest = max(b.manifest.bytes for b in bundles)
    cards = tuple(
        _card(bundle, plot.Ink(label, index % plot.HUES), widest)
        for index, (bundle, label) in enumerate(zip(bundles, _labels(bundles), strict=True))
    )
    manifests = [b.manifest for b in bundles]
    return Page(
        title=" · ".join(dict.fromkeys(_model(m) for m in manifests)),
        summary=_summary(cards),
        cards=cards,
        quality_plot=_quality_plot(cards),
        depth_plot=_depth_plot(cards),
        steps_plot=_steps_plot(cards),
        runs_plot=_runs_plot(cards),
        quality_rows=_quality_rows([m.quality for m in manifests]),
        speed_rows=_speed_rows([m.latency for m in manifests]),
        npu_rows=_npu_rows(manifests),
        parts=tuple(p for p in PARTS if any(s.part.part == p for c in cards for s in c.slices)),
    )


def _labels(bundles: Sequence[Bundle]) -> list[str]:
    """Label bundles by precision, plus the directory name if several share one."""
    seen = Counter(b.manifest.recipe.precision for b in bundles)
    return [
        b.manifest.recipe.precision.upper() + (f" {b.path.name}" if seen[b.manifest.recipe.precision] > 1 else "")
        for b in bundles
    ]


def _model(manifest: Manifest) -> str:
    return manifest.provenance.id.rstrip("/").rpartition("/")[2] or manifest.provenance.id


def _card(bundle: Bundle, ink: plot.Ink, widest: int) -> Card:
    manifest = bundle.manifest
    quality, latency = manifest.quality, manifest.latency
    strip = _strip(manifest.tensors)
    return Card(
        ink=ink,
        manifest=manifest,
        size=Number(words.size(manifest.bytes), "counted"),
        ratio=Number(f"{4 * manifest.parameters / graph_bytes(manifest):.1f}×", "counted"),
        bits=Number(f"{manifest.bits_per_weight:.2f}", "counted"),
        kld=_interval(quality.kld_mean) if quality else NONE,
        top1=_interval(quality.top1, words.percent) if quality else NONE,
        decode=_series(_decode(latency)[0][1]) if latency and _decode(latency) else NONE,
        first=_timed(_first(latency, "ttft")) if latency else NONE,
        energy=_energy(latency.energy) if latency else NONE,
        slices=tuple(Slice(part, part.bytes / widest) for part in bundle_parts(manifest)),
        strip=strip,
        errors=_errors(strip),
        ladders=_ladders(latency) if latency else (),
        origin=_origin(bundle),
    )


def _summary(cards: Sequence[Card]) -> str:
    """Describe the smallest bundle in a sentence, with what was measured."""
    card = min(cards, key=lambda c: c.manifest.bytes)
    said = f"{card.ink.label}: {card.size.text}, {card.ratio.text} smaller than FP32"
    if card.top1.kind != "none":
        said += f"; it predicts the source's next token {card.top1.text} of the time"
    if card.decode.kind != "none":
        said += f" and decodes {card.decode.text} tokens per second on this machine"
    return said + "."


# --- numbers ----------------------------------------------------------------------------------


def _interval(value: Interval, shown: Callable[[float], str] = words.number) -> Number:
    return Number(shown(value.value), "measured", f"{shown(value.low)} to {shown(value.high)}")


def _series(series: Series, scale: float = 1.0) -> Number:
    spread = f"± {words.number(series.sd * scale, 2)}, n = {series.n}" if series.n > 1 else "n = 1"
    return Number(words.number(series.mean * scale), "measured", spread)


def _energy(energy: Energy) -> Number:
    if energy.kind == "none" or energy.net_joules is None or not energy.tokens:
        return Number("none", "none", energy.reason)
    return Number(f"{words.number(energy.net_joules / energy.tokens)} J/token", energy.kind, f"net, {energy.meter}")


def _decode(latency: Measurement) -> list[tuple[int, Series]]:
    """Decode speeds of the shortest workload, by depth."""
    found = [(m, s) for s in latency.series if (m := re.fullmatch(r"tg(\d+)@(\d+)", s.name))]
    if not found:
        return []
    shortest = min(int(m[1]) for m, _ in found)
    return sorted(((int(m[2]), s) for m, s in found if int(m[1]) == shortest), key=lambda point: point[0])


def _first(latency: Measurement, start: str) -> Series | None:
    """The first series whose name starts with ``start``: for ``tpot``, that at the smallest depth."""
    return next((s for s in latency.series if s.name.startswith(start)), None)


# --- plots ------------------------------------------------------------------------------------


def _quality_plot(cards: Sequence[Card]) -> str | None:
    found = [(c.ink, c.manifest.bytes / 1e6, c.manifest.quality.kld_mean) for c in cards if c.manifest.quality]
    # Infinite values appear in the table only.
    points = [(ink, size, kld) for ink, size, kld in found if isfinite(kld.value + kld.low + kld.high)]
    return plot.plot_quality(points) if points else None


def _depth_plot(cards: Sequence[Card]) -> str | None:
    lines = [(c.ink, points) for c in cards if c.manifest.latency and (points := _decode(c.manifest.latency))]
    return plot.plot_depth(lines) if lines else None


def _steps_plot(cards: Sequence[Card]) -> str | None:
    lines = [(c.ink, steps) for c in cards if c.manifest.latency and (steps := _first(c.manifest.latency, "tpot"))]
    return plot.plot_steps(lines) if lines else None


def _runs_plot(cards: Sequence[Card]) -> str | None:
    runs = [(c.ink, c.manifest.learned) for c in cards if c.manifest.learned and c.manifest.learned.curve]
    return plot.plot_runs(runs) if runs else None


def _strip(tensors: Sequence[TensorEntry]) -> tuple[StripRow, ...]:
    """The decoder's matrices by kind and layer."""
    found = [(t, m) for t in tensors if len(t.shape) == 2 and (m := _LAYER.fullmatch(t.name))]
    errors = [log10(t.error) for t, _ in found if t.error]
    low, high = min(errors, default=0.0), max(errors, default=0.0)

    def cell(tensor: TensorEntry) -> Cell:
        # If all errors are equal, they take the middle of the scale.
        place = (log10(tensor.error) - low) / (high - low) if tensor.error and high > low else 0.5
        bits = 8 * tensor.bytes / prod(tensor.shape)
        return Cell(tensor.name, bits, tensor.error, place)

    roles = dict.fromkeys(m["role"] for _, m in found)
    return tuple(StripRow(role, tuple(cell(t) for t, m in found if m["role"] == role)) for role in roles)


def _errors(strip: Sequence[StripRow]) -> tuple[float, float] | None:
    """The smallest and the largest weight error of a strip, None if all weights are floats."""
    found = [cell.error for row in strip for cell in row.cells if cell.error]
    return (min(found), max(found)) if found else None


# --- ladders and tables -----------------------------------------------------------------------


def _ladders(latency: Measurement) -> tuple[Ladder, ...]:
    """Peak -> achievable -> achieved, for decode (bandwidth) and prefill (arithmetic)."""
    if not latency.ceilings:
        return ()
    bandwidth, gemm = latency.ceilings.bandwidth_bytes_per_s, latency.ceilings.gemm_flop_per_s
    factor = latency.gemm_factor or 1.0
    rate = f"{gemm.name}, times {factor:g} for int8" if factor > 1 else gemm.name
    decode = Number(f"{words.number(max(bandwidth.samples) / 1e9)} GB/s", "measured", bandwidth.name)
    kind: Kind = "estimated" if factor > 1 else "measured"
    prefill = Number(f"{words.number(factor * max(gemm.samples) / 1e9)} GFLOP/s", kind, rate)
    return tuple(
        Ladder(f"{title}: {name}", _rungs(peak, latency.get(name), fraction, word, need))
        for start, title, peak, word, need in (
            ("tg", "Decode, bounded by memory bandwidth", decode, "MBU", "bytes"),
            ("pp", "Prefill, bounded by arithmetic", prefill, "MFU", "operations"),
        )
        # The first of its kind has the shallowest context or the shortest prompt.
        for name, fraction in [pair for pair in latency.roofline if pair[0].startswith(start)][:1]
    )


def _rungs(peak: Number, series: Series | None, fraction: float, word: str, need: str) -> tuple[Rung, ...]:
    if series is None:
        return (Rung("peak", peak, 1.0),)
    got = _series(series)
    reach = f"{words.number(series.mean / fraction)} tok/s"
    spread = f"{word} {words.percent(fraction)}, {got.spread}"
    return (
        Rung("peak", peak, 1.0),
        Rung("achievable", Number(reach, "estimated", f"peak / least {need} per token"), 1.0),
        Rung("achieved", Number(f"{got.text} tok/s", "measured", spread), fraction),
    )


def _quality_rows(found: Sequence[Quality | None]) -> tuple[Row, ...]:
    return tuple(Row(name, why, tuple(get(q) if q else NONE for q in found)) for name, why, get in _QUALITY)


def _perplexity(q: Quality) -> Number:
    return Number(words.number(q.ppl, 4), "measured", f"source {words.number(q.reference_ppl, 4)}")


def _said(text: str) -> Number:
    return Number(text, "counted")


_QUALITY: tuple[tuple[str, str, Callable[[Quality], Number]], ...] = (
    ("KLD, mean", "nats per token, from source to bundle", lambda q: _interval(q.kld_mean)),
    ("KLD, 99th percentile", "exceeded by one token in a hundred", lambda q: _interval(q.kld_p99)),
    ("KLD, 99.9th percentile", "exceeded by one token in a thousand", lambda q: _interval(q.kld_p999)),
    ("top-1 agreement", "same most likely next token", lambda q: _interval(q.top1, words.percent)),
    ("perplexity ratio", "bundle / source; 1 is lossless", lambda q: _interval(q.ppl_ratio, "{:.4f}".format)),
    ("perplexity", "of the bundle on this text", _perplexity),
    ("reference", "the source to compare with", lambda q: _said(q.reference)),
    ("text", "", lambda q: _said(f"{q.text} (sha256 {q.text_sha256[:12]})")),
    ("tokens", "scored, and window size", lambda q: _said(f"{words.count(q.tokens)} in windows of {q.window}")),
    ("runtime", "and accuracy level of MatMulNBits", lambda q: _said(f"{q.runtime}, level {q.accuracy_level}")),
)


def _speed_rows(found: Sequence[Measurement | None]) -> tuple[Row, ...]:
    names = dict.fromkeys(s.name for m in found if m for s in m.series)
    rows = [Row(name, _why(name), tuple(_timed(m.get(name)) if m else NONE for m in found)) for name in names]
    memory = tuple(Number(words.size(m.peak_rss_bytes), "measured") if m else NONE for m in found)
    energy = tuple(_energy(m.energy) if m else NONE for m in found)
    return (*rows, Row("peak RSS", "peak memory of the process", memory), Row("energy", "net, per token", energy))


def _npu_rows(manifests: Sequence[Manifest]) -> tuple[Row, ...]:
    """Emulated quality and estimated cost of a token, for each device and graph."""
    columns = [{name: number for build in m.npus for name, number in _npu_numbers(m, build)} for m in manifests]
    names = dict.fromkeys(name for column in columns for name in column)
    return tuple(Row(*name, tuple(column.get(name, NONE) for column in columns)) for name in names)


def _npu_numbers(manifest: Manifest, build: NpuBuild) -> Iterator[tuple[tuple[str, str], Number]]:
    """((name, explanation), number) for one device."""
    device = build.target.name
    sizes = {file.path: file.bytes for file in manifest.files}
    binaries = {graph.binary for graph in build.graphs if not graph.shared}
    size = Number(
        words.size(sum(sizes.get(path, 0) for path in binaries)), "counted", f"activations {build.activations}"
    )
    yield (f"{device}: binaries", "of both graphs, without shared weights"), size
    for e in build.emulations:
        said = f"{e.tokens} tokens of {e.text}; KL {words.number(e.total.kld)} nats"
        yield (f"{device}: {e.role}, top-1", "against FP32"), Number(words.percent(e.total.top1), "emulated", said)
        said = f"KL {words.number(e.npu.kld)} nats, cosine {e.npu.cosine:.5f}"
        why = "against the same graph on the CPU"
        yield (f"{device}: {e.role}, the NPU alone", why), Number(words.percent(e.npu.top1), "emulated", said)
    for cost in estimate_build(build):
        speeds = " to ".join(words.number(rate) for rate in cost.tokens_per_s) + " tok/s" if cost.tokens_per_s else ""
        floor = f"at least {words.number(cost.floor_ms)} ms" if cost.floor_ms is not None else ""
        text = "; ".join(t for t in (words.size(cost.bytes_per_token), floor, speeds) if t)
        yield (f"{device}: {cost.role}, per token", "DRAM bytes and time"), Number(text, "estimated", cost.formula)


def _origin(bundle: Bundle) -> tuple[tuple[str, str], ...]:
    """Source, recipe, device, tools and, if measured, the machine."""
    m = bundle.manifest
    recipe = f"{m.recipe.name}, method {m.recipe.method}" if m.recipe.linear else m.recipe.name
    rows = [
        ("source", f"{m.provenance.id} ({m.provenance.kind}), sha256 {m.provenance.sha256[:16]}"),
        ("model", f"{m.spec.architecture}, {words.count(m.parameters)} parameters, {m.spec.layers} layers"),
        ("recipe", recipe),
        ("device", f"{m.target.name}: {m.target.title} ({m.target.verified})"),
        ("bundle", f"sha256 {bundle.sha256[:16]}, edgekit {m.edgekit}, exporter {m.exporter}"),
        ("tools", ", ".join(f"{name} {version}" for name, version in m.tools)),
    ]
    rows += data_rows(m)
    if m.latency:
        rows += _machine(m.latency)
    return tuple(rows)


def _machine(latency: Measurement) -> list[tuple[str, str]]:
    e = latency.environment
    memory = words.size(e.memory_bytes) if e.memory_bytes else "unknown"
    processor = words.processor(e.cpu, e.processor_class)
    state = [
        f"governor {e.governor or 'unknown'}",
        f"clock {words.number(e.frequency_mhz)} MHz" if e.frequency_mhz else "clock unknown",
        f"{words.number(e.temperature_c)} °C" if e.temperature_c else "temperature unknown",
        f"load before {words.number(e.load_before)}" if e.load_before is not None else "load unknown",
    ]
    return [
        ("machine", f"{processor}, {e.cores} cores, {e.threads} threads, {memory}; {e.system}"),
        ("integer matmuls", e.arithmetic or "not recorded"),
        ("state", ", ".join(state)),
        ("runtime", ", ".join(f"{name} {version}" for name, version in e.runtime) + f"; {e.provider}"),
        ("workload", f"{latency.workload}; warm-up rounds: {latency.warmup}; {latency.time}"),
    ]


def _why(name: str) -> str:
    """Explain the name of a series."""
    if m := re.fullmatch(r"pp(\d+)", name):
        return f"prefill of {words.count(int(m[1]))} prompt tokens"
    if m := re.fullmatch(r"ttft(\d+)", name):
        return f"time to first token after {words.count(int(m[1]))} prompt tokens"
    if m := re.fullmatch(r"tg(\d+)@(\d+)", name):
        return f"decode of {m[1]} tokens after {words.count(int(m[2]))} tokens of context"
    if m := re.fullmatch(r"tpot@(\d+)", name):
        return f"time per output token after {words.count(int(m[1]))} tokens of context"
    return "opening the bundle" if name == "load" else ""


def _timed(series: Series | None) -> Number:
    if series is None:
        return NONE
    if series.unit != "s":
        shown = _series(series)
        return Number(f"{shown.text} {series.unit}", "measured", shown.spread)
    spread = f"± {words.seconds(series.sd)}, n = {series.n}" if series.n > 1 else "n = 1"
    if series.name.startswith("tpot"):
        p50, p95 = (words.seconds(series.percentile(p)) for p in (50, 95))
        spread = f"p50 {p50}, p95 {p95}, n = {series.n}"
    return Number(words.seconds(series.mean), "measured", spread)
