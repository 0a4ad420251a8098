"""What the commands print on a terminal, as rich renderables."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import groupby
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from edgekit import words
from edgekit.cli.calibration_tables import calibration_rows
from edgekit.cli.flags import name_flags
from edgekit.cli.layout import columns, facts
from edgekit.cli.npu_tables import npu_tables, npu_words
from edgekit.config.recipe import PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from edgekit.cli.documents import Answer, Built
    from edgekit.inspect.fit import Fit, Option
    from edgekit.inspect.plan import Footprint
    from edgekit.types import (
        Ceilings,
        Check,
        Energy,
        Grid,
        Inspection,
        Measurement,
        Quality,
        Series,
        Settings,
        TensorEntry,
        Tuning,
        Verification,
    )

_STYLES = {"pass": "green", "fail": "bold red", "skip": "yellow", "info": "cyan"}


def built_lines(built: Built) -> Iterator[RenderableType]:
    """Show what was built, and the commands to try next."""
    m = built.manifest
    here = Path.cwd()
    path = built.path.relative_to(here) if built.path.is_relative_to(here) else built.path
    yield Text.assemble(
        (str(path), "bold"),
        f": {m.recipe.precision.upper()} for {m.target.name}, {words.size(built.bytes)}, ",
        f"{built.ratio:.1f}x smaller than FP32, {built.bits_per_weight:.2f} bits per weight, ",
        f"built in {words.seconds(built.seconds)}",
    )
    for build in m.npus:
        yield ""
        yield from npu_tables(m, build, [e for e in built.estimates if e.target == build.target.name])
    if m.npus:
        yield ""
    for command in ("verify", "run", "bench"):
        yield Text(f"  edgekit {command} {path}", style="dim")
    from edgekit.quantize.tensor import LARGE

    if built.parameters >= LARGE and m.recipe.method == "search" and find_spec("numba") is None:
        hint = "pip install 'edgekit[large]' halves the build time of models of this size, with the same result"
        yield Text(f"  {hint}", style="dim")


# --- inspect ----------------------------------------------------------------------------------


def inspection_tables(inspection: Inspection, *, tensors: bool) -> Iterator[RenderableType]:
    """Show the architecture, precision by layer and size by part; every tensor if ``tensors``."""
    yield facts(_spec_rows(inspection))
    yield ""
    yield _layers_table(inspection.tensors)
    yield ""
    table = columns("part", "tensors>", "parameters>", "size>", "share>")
    total = sum(p.bytes for p in inspection.parts)
    for part in inspection.parts:
        numbers = (str(part.tensors), words.count(part.parameters)) if part.tensors else ("", "")
        table.add_row(part.part, *numbers, words.size(part.bytes), words.percent(part.bytes / total))
    yield table
    if tensors:
        yield ""
        table = columns("tensor", "shape", "stored as", "size>", "error>")
        for t in inspection.tensors:
            error = "" if t.error is None else words.number(t.error)
            table.add_row(t.name, "x".join(map(str, t.shape)), _stored(t), words.size(t.bytes), error)
        yield table


def _spec_rows(inspection: Inspection) -> Iterator[tuple[str, str]]:
    s, source = inspection.spec, inspection.provenance
    windows = {w for w in s.windows if w}
    yield inspection.kind, inspection.path
    yield "source", f"{source.id} ({source.kind})" + (f", sha256 {source.sha256[:16]}" if source.sha256 else "")
    yield "architecture", f"{s.architecture}, {s.layers} layers, hidden {s.hidden_size}, mlp {s.intermediate_size}"
    yield (
        "attention",
        f"{s.heads} heads, {s.kv_heads} KV heads, head size {s.head_dim}"
        + (f", window {', '.join(map(str, sorted(windows)))}" if windows else ""),
    )
    yield "rope", f"{s.rope.kind}, theta {s.rope.theta:g}"
    yield "context", f"{words.count(s.context_length)} tokens"
    yield "vocabulary", f"{words.count(s.vocab_size)}, head {'tied' if s.tied else 'untied'}"
    yield "parameters", words.count(inspection.parameters)
    yield "size", f"{words.size(inspection.bytes)}, {inspection.bits_per_weight:.2f} bits per weight"
    if inspection.left_aside:
        yield "left aside", words.left_aside(inspection.left_aside)
    if arm := inspection.arm:
        kld = arm.score_of(arm.chosen).quality.kld_mean.value
        yield (
            "on ARM",
            f"{arm.chosen.name}, level {arm.chosen.accuracy_level}: KLD {words.number(kld)}, {arm.processor}",
        )
    if inspection.kind == "bundle":
        signer = inspection.signed_by
        yield "signed", f"by {signer}, not checked: use `edgekit verify --key`" if signer else "no"
    for npu in inspection.npus:
        yield f"NPU {npu.target.name}", npu_words(npu)
    for t in inspection.tunings:
        yield "tuned", f"for {t.machine}, {t.runtime}: {settings_words(t.settings)}"
    if inspection.calibration:
        yield from calibration_rows(inspection.calibration)


def _layers_table(tensors: Sequence[TensorEntry]) -> Table:
    """One row for each storage format in each run of layers that are stored alike."""
    table = columns("layers", "weights", "stored as", "bits/weight>", "size>", "error>")
    outside = [t for t in tensors if _layer(t) is None]
    by_layer = groupby((t for t in tensors if _layer(t) is not None), key=_layer)
    layers = [(layer, tuple(group)) for layer, group in by_layer]
    for _, run in groupby(layers, key=lambda pair: tuple((_role(t), _stored(t)) for t in pair[1])):
        pairs = list(run)
        first, last = pairs[0][0], pairs[-1][0]
        span = f"{first}" if first == last else f"{first}-{last}"
        _add_groups(table, span, [t for _, group in pairs for t in group])
    _add_groups(table, "", outside)
    return table


def _add_groups(table: Table, span: str, tensors: Iterable[TensorEntry]) -> None:
    groups: dict[str, list[TensorEntry]] = {}
    for tensor in tensors:
        groups.setdefault(_stored(tensor), []).append(tensor)
    for stored, group in groups.items():
        roles = " ".join(dict.fromkeys(_role(t) for t in group))
        size = sum(t.bytes for t in group)
        weights = sum(prod(t.shape) for t in group if not t.shared_with)
        errors = [t.error for t in group if t.error is not None]
        bits = f"{8 * size / weights:.2f}" if weights else ""
        error = words.number(sum(errors) / len(errors)) if errors else ""
        table.add_row(span, roles, stored, bits, words.size(size), error)


def _layer(tensor: TensorEntry) -> int | None:
    pieces = tensor.name.split(".")
    return int(pieces[2]) if pieces[:2] == ["model", "layers"] else None


def _role(tensor: TensorEntry) -> str:
    return tensor.name.removesuffix(".weight").rpartition(".")[2]


def _stored(tensor: TensorEntry) -> str:
    if tensor.shared_with:
        return f"shared with {tensor.shared_with.removesuffix('.weight').rpartition('.')[2]}"
    return grid_words(tensor.grid) if tensor.grid else tensor.stored


def grid_words(grid: Grid) -> str:
    """``4 bits, block 32, asymmetric``."""
    block = f"block {grid.block_size}" if grid.block_size else "per channel"
    return f"{grid.bits} bits, {block}, {'symmetric' if grid.symmetric else 'asymmetric'}"


# --- fit --------------------------------------------------------------------------------------


def fit_tables(fit: Fit) -> Iterator[RenderableType]:
    """Show what each model takes, what fits each target, quality per byte, and every formula."""
    for model in fit.models:
        yield Text.assemble(
            (model.name, "bold"),
            f": {model.architecture}, {words.count(model.parameters)} parameters; at {words.count(model.context)} of "
            f"{words.count(model.context_length)} tokens of context",
        )
        yield _footprints_table([o for o in fit.options if o.model == model.name])
        yield ""
    yield _matrix_table(fit)
    yield ""
    yield _choices_table(fit)
    if any(option.unknown for option in fit.options):
        yield Text("unknown: the target's file has no number; set a limit with --max-memory-mb", style="yellow")
    if len(fit.models) > 1:
        yield ""
        yield from _rank_tables(fit)
    yield ""
    for name, formula in fit.formulae:
        yield Text(f"{name}: {formula}", style="dim")
    for target in fit.targets:
        if source := target.source("bandwidth_bytes_per_s"):
            yield Text(f"bandwidth of {target.name} ({source.certainty}): {source.text}", style="dim")


def _footprints_table(options: Sequence[Option]) -> Table:
    """One row for each precision and dialect; targets with the same graph share a row."""
    numbers = ("file>", "RAM>", "weights>", "+ KV>", "+ workspace>", "+ runtime>", "read per token>")
    table = columns("precision", *numbers, "on")
    rows: dict[tuple[str, Footprint], list[str]] = {}
    for option in options:
        if option.footprint:
            rows.setdefault((option.precision, option.footprint), []).append(option.target)
    for precision, f in sorted(rows, key=lambda row: PRECISIONS.index(row[0])):
        m = f.memory
        file = ("" if f.file_known else "~") + words.size(f.file)
        parts = (words.size(part) for part in (m.total, m.weights, m.kv, m.workspace, m.runtime, f.token))
        table.add_row(precision, file, *parts, " ".join(rows[precision, f]))
    return table


def _matrix_table(fit: Fit) -> Table:
    """A row for each target and model, a column for each precision."""
    from edgekit.inspect.fit import HERE

    several = len(fit.models) > 1
    table = columns("target", "memory>", "bandwidth>", *(("model",) if several else ()), *(f"{p}>" for p in PRECISIONS))
    for target in fit.targets:
        memory = "unknown" if target.memory_bytes is None else words.size(target.memory_bytes)
        rate = target.bandwidth_bytes_per_s
        bandwidth = (
            "unknown" if rate is None else f"{words.size(rate)}/s" + (" measured" if target.name == HERE else "")
        )
        for model in fit.models:
            cells = [_fit_cell(o) for o in fit.options if o.target == target.name and o.model == model.name]
            table.add_row(target.name, memory, bandwidth, *((model.name,) if several else ()), *cells)
    return table


def _fit_cell(option: Option) -> Text:
    """Likely and highest tok/s if it fits."""
    s = option.speed
    if option.refusals:
        return Text("no", style="red")
    shown = f"{_rate(s.low)}-{_rate(s.high)} tok/s (max {_rate(s.at_most)})" if s else "tok/s unknown"
    return Text("unknown" if option.unknown else shown, style="yellow" if option.unknown else "green")


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else words.number(value, 2)


def _choices_table(fit: Fit) -> Table:
    several = len(fit.models) > 1
    table = columns("target", *(("model",) if several else ()), "choice", "why, and what the others cost")
    for c in fit.choices:
        choice = Text(c.precision or "none", style="green" if c.precision else "red")
        table.add_row(c.target, *((c.model,) if several else ()), choice, c.reason)
    return table


def _rank_tables(fit: Fit) -> Iterator[RenderableType]:
    """Models by size, and the best one that fits each target."""
    if fit.incomparable:
        yield Text(f"quality per byte: cannot rank these models: {fit.incomparable}", style="yellow")
        return
    table = columns("quality per byte", "precision", "parameters>", "file>", "loss, nats (estimated)>", "")
    for r in fit.ranks:
        best = Text("best at its size", style="green") if r.best else ""
        row = (r.model, r.precision, words.count(r.parameters), words.size(r.bytes), f"{r.loss:.3f}")
        table.add_row(*row, best)
    yield table
    yield ""
    table = columns("target", "best model", "precision", "why")
    for c in fit.best:
        table.add_row(c.target, c.model or "none", c.precision or "", c.reason)
    yield table


# --- verify and doctor ------------------------------------------------------------------------


def verification_tables(verification: Verification) -> Iterator[RenderableType]:
    """Show every check, and quality with its protocol."""
    yield checks_table(verification.checks)
    if verification.quality:
        yield ""
        yield _quality_table(verification.quality)
        yield Text(protocol(verification.quality), style="dim")


def checks_table(checks: Sequence[Check]) -> Table:
    """One row per check, with its hint below."""
    table = columns("", "check", "found")
    for check in checks:
        found = Text(check.detail)
        if check.hint and check.status != "pass":
            found.append(f"\nhint: {name_flags(check.hint, ('verify',))}", style="cyan")
        table.add_row(Text(check.status, style=_STYLES[check.status]), check.name, found)
    return table


def protocol(quality: Quality) -> str:
    """How quality was measured, without which its numbers mean nothing."""
    return (
        f"{words.count(quality.tokens)} tokens of {quality.text} (sha256 {quality.text_sha256[:12]}) in windows of "
        f"{quality.window}; reference: {quality.reference}; {quality.runtime}"
        f"{f' on {quality.processor_class}' if quality.processor_class else ''}, accuracy level "
        f"{quality.accuracy_level}; KLD over the top {quality.top_k} tokens; 95 % bootstrap intervals over windows"
    )


def _quality_table(q: Quality) -> Table:
    table = columns("quality", "value>", "from>", "to>")
    for name, interval in (
        ("KLD mean, nats", q.kld_mean),
        ("KLD p99", q.kld_p99),
        ("KLD p99.9", q.kld_p999),
        ("top-1 agreement", q.top1),
        ("perplexity ratio", q.ppl_ratio),
    ):
        table.add_row(name, *(words.number(v, 4) for v in (interval.value, interval.low, interval.high)))
    table.add_row("perplexity", words.number(q.ppl, 4), "", f"source {words.number(q.reference_ppl, 4)}")
    return table


# --- bench ------------------------------------------------------------------------------------


def bench_tables(m: Measurement) -> Iterator[RenderableType]:
    """Show the machine and its ceilings, then what the model reached."""
    e = m.environment
    yield facts(
        [
            ("model", f"{m.model} {m.precision.upper()}, {words.size(m.weight_bytes)} of weights per token"),
            ("machine", f"{words.processor(e.cpu, e.processor_class)}, {e.threads} threads, {e.provider}"),
            *((("integer matmuls", e.arithmetic),) if e.arithmetic else ()),
            *((("settings", f"{settings_words(m.settings)} ({_origin(m.tuned)})"),) if m.settings else ()),
            *_ceiling_rows(m.ceilings),
        ]
    )
    yield ""
    fractions = dict(m.roofline)
    table = columns("", "mean>", "± sd>", "n>", "p50>", "p95>", "of the ceiling>")
    for series in m.series:
        table.add_row(*_series_row(series, fractions.get(series.name)))
    yield table
    yield ""
    energy = [("energy", energy_words(m.energy)), *_energy_rows(m.energy)]
    yield facts([*_ladder_rows(m), ("peak RSS", words.size(m.peak_rss_bytes)), *energy])
    yield Text(f"{m.workload}; warm-up rounds: {m.warmup}; {m.time}", style="dim")


def energy_words(energy: Energy) -> str:
    """Joules per token and how they were obtained, or why there are none."""
    if energy.kind == "none" or energy.gross_joules is None or not energy.tokens:
        return f"none: {energy.reason}"
    net = words.number(None if energy.net_joules is None else energy.net_joules / energy.tokens)
    gross = energy.gross_joules / energy.tokens
    bound = f" ± {words.number(energy.net_error_joules / energy.tokens, 2)}" if energy.net_error_joules else ""
    said = [f"{net}{bound} J/token net", f"{words.number(gross)} gross", f"{words.number(1 / gross)} tokens/J gross"]
    if energy.joules_per_prompt_token is not None:
        said.append(f"{words.number(energy.joules_per_prompt_token)} J per prompt token")
    if energy.answers_per_charge is not None:
        said.append(f"{words.count(energy.answers_per_charge)} answers per charge")
    how = [energy.kind, energy.meter]
    how += [f"{words.number(energy.hertz)} Hz"] if energy.hertz else []
    how += [f"clocks aligned to {words.seconds(energy.alignment_residual)}"] if energy.alignment_residual else []
    return f"{', '.join(said)} ({', '.join(how)})"


def _energy_rows(energy: Energy) -> Iterator[tuple[str, str]]:
    """What a meter's trace tells beyond that."""
    if energy.error_joules is not None and energy.gross_joules and energy.hertz:
        share = words.percent(energy.error_joules / energy.gross_joules)
        covers = f"; covers {energy.covers}" if energy.covers else ""
        yield "energy's error", f"at most {share} by sampling, {words.number(energy.hertz)} readings a second{covers}"
    if energy.joules_per_prompt_token is not None:
        yield "energy of prompts", f"{words.number(energy.joules_per_prompt_token)} J/token gross"
    if energy.answers_per_charge is not None:
        yield "answers per charge", f"{energy.answers_per_charge:,.0f}, each with its prompt"


def _series_row(series: Series, fraction: float | None) -> tuple[str, ...]:
    times = series.unit == "s"
    mean = words.seconds(series.mean) if times else f"{words.number(series.mean)} {series.unit}"
    sd = words.seconds(series.sd) if times else words.number(series.sd, 2)
    p50, p95 = (words.seconds(series.percentile(p)) for p in (50, 95)) if times else ("", "")
    word = "MBU" if series.name.startswith("tg") else "MFU"
    of = "" if fraction is None else f"{words.percent(fraction)} {word}"
    return series.name, mean, sd if series.n > 1 else "", str(series.n), p50, p95, of


def _ceiling_rows(ceilings: Ceilings | None) -> Iterator[tuple[str, str]]:
    if ceilings is None:
        yield "ceilings", words.ABSENT
        return
    for series, unit in ((ceilings.bandwidth_bytes_per_s, "GB/s"), (ceilings.gemm_flop_per_s, "GFLOP/s")):
        best = words.number(max(series.samples) / 1e9)
        yield "ceiling", f"{best} {unit}, {series.name} (best of {series.n}, mean {words.number(series.mean / 1e9)})"


def _ladder_rows(m: Measurement) -> Iterator[tuple[str, str]]:
    """Peak -> achievable -> achieved, for the first workload of each kind."""
    if m.ceilings is None:
        return
    bandwidth = f"{words.number(max(m.ceilings.bandwidth_bytes_per_s.samples) / 1e9)} GB/s"
    gemm = f"{words.number((m.gemm_factor or 1) * max(m.ceilings.gemm_flop_per_s.samples) / 1e9)} GFLOP/s"
    for start, peak, word in (("tg", bandwidth, "MBU"), ("pp", gemm, "MFU")):
        name, fraction = next((pair for pair in m.roofline if pair[0].startswith(start)), ("", 0.0))
        if series := m.get(name):
            yield (
                f"ladder {name}",
                f"peak {peak} -> achievable {words.number(series.mean / fraction)} {series.unit} -> achieved "
                f"{words.number(series.mean)} {series.unit} ({word} {words.percent(fraction)})",
            )


# --- tuning -----------------------------------------------------------------------------------


def settings_words(s: Settings) -> str:
    """``2 threads, spinning, prompts from 5 tokens on their own graph in chunks of 128``."""
    threads = f"{s.threads} thread{'s' * (s.threads != 1)}{', pinned' if s.pinned else ''}"
    own = f"prompts from {s.decode_graph_max_tokens + 1} tokens on their own graph"
    graph = own if s.prompt_graph == "own" else "prompts on the decoder's graph"
    return f"{threads}, {'spinning' if s.spinning else 'not spinning'}, {graph} in chunks of {s.prefill_chunk}"


def tuning_tables(tuning: Tuning) -> Iterator[RenderableType]:
    """Show every trial, phase by phase, and the resulting settings."""
    from edgekit.bench.tune import verdict

    yield facts([("machine", f"{tuning.machine}, {tuning.runtime}")])
    yield ""
    table = columns("change", "phase", "median>", "from>", "to>", "rounds>", "verdict")
    for trial in tuning.trials:
        for i, s in enumerate(trial.ratios):
            ratios = (f"{value:.3f}x" for value in (s.percentile(50), min(s.samples), max(s.samples)))
            last = i == len(trial.ratios) - 1
            said = f"{verdict(s.samples)}{(': kept' if trial.won else ': not kept') if last else ''}"
            table.add_row("" if i else trial.change, s.name, *ratios, str(s.n), said)
    yield table
    yield ""
    outcome = "the defaults are kept" if tuning.kept else "for this class of machine"
    yield facts(
        [("settings", f"{settings_words(tuning.settings)} ({outcome})"), *(("not tried", w) for w in tuning.left_out)]
    )
    if tuning.waited is not None:
        yield Text(f"waiting for a core: {words.percent(tuning.waited)} of the time in the worst trial", style="dim")
    yield Text("ratios: speed with the change / without it, in the same round; lost trials stop early", style="dim")


def _origin(tuned: bool) -> str:
    return "tuned for this class of machine" if tuned else "defaults; `bench --tune` searches for faster ones"


# --- the rest ---------------------------------------------------------------------------------


def signals_table(answer: Answer) -> Table:
    """Every token with its log-probability, its two margins (see Emitted) and the entropy in nats."""
    table = columns("token", "id>", "logprob>", "log p1/p2>", "p1 - p2>", "entropy>")
    for t in answer.tokens:
        table.add_row(repr(t.text), str(t.token), *map(_fixed, (t.logprob, t.logprob_margin, t.prob_margin, t.entropy)))
    return table


def _fixed(value: float | None) -> str:
    return words.ABSENT if value is None else f"{value:.3f}"
