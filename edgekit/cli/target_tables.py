"""Tables of device files: the list, one device with the source of each number, and what lint found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from edgekit import words
from edgekit.cli.layout import columns, facts
from edgekit.types.device import AccuracyLimits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from edgekit.build.target_lint import Lint
    from edgekit.cli.documents import Rewrite, SchemeCard, TargetCard
    from edgekit.types.device import Evidence, Target, Value
    from edgekit.types.fleet import MeasuredSpeed

_UNKNOWN = "unknown"


def targets_table(targets: Sequence[Target]) -> Table:
    """One row per device; unknown values are empty."""
    table = columns("target", "chip", "NPU", "memory>", "bandwidth>", "precisions", "verified")
    for t in targets:
        memory = words.size(t.memory_bytes) if t.memory_bytes else ""
        bandwidth = f"{words.size(t.bandwidth_bytes_per_s)}/s" if t.bandwidth_bytes_per_s else ""
        npu = t.npu.name if t.npu else ""
        table.add_row(t.name, t.chip, npu, memory, bandwidth, " ".join(t.precisions), t.verified)
    return table


def target_tables(card: TargetCard) -> Iterator[RenderableType]:
    """Show a device: its properties, its numbers with sources, its NPU and the quantization schemes for it."""
    t = card.target
    yield facts(_target_rows(t))
    if numbers := t.numbers():
        yield ""
        yield _numbers_table(numbers, t.sources)
    if card.measured:
        yield ""
        yield _measured_table(card.measured)
    if card.rewrites:
        yield ""
        yield _rewrites_table(card.rewrites)
    if t.npu is None:
        return
    yield ""
    yield facts(
        [
            ("NPU", f"{t.npu.name}, family {t.npu.family}"),
            *(
                (
                    ("compiler", f"{plugin.requirement} on {', '.join(plugin.platforms)}"),
                    ("licence", plugin.licence),
                )
                if (plugin := t.npu.plugin)
                else (("compiler", "on the device: graphs are shipped uncompiled"),)
            ),
        ]
    )
    yield ""
    yield _numbers_table(t.npu.numbers(), t.npu.sources)
    for scheme in card.schemes:
        yield ""
        yield from _scheme_tables(scheme)


def lint_tables(lint: Lint) -> Iterator[RenderableType]:
    """Show every problem with a hint, or what was checked."""
    if not lint.problems:
        files = len(lint.targets) + len(lint.families)
        yield Text(
            f"{files} files: {len(lint.targets)} targets and {len(lint.families)} families; "
            f"{words.count(lint.numbers)} numbers, each with its source",
            style="green",
        )
        return
    table = columns("file", "problem")
    for p in lint.problems:
        found = Text(p.problem)
        if p.hint:
            found.append(f"\nhint: {p.hint}", style="cyan")
        table.add_row(p.file, found)
    yield table


def _target_rows(t: Target) -> Iterator[tuple[str, str]]:
    yield "target", t.name
    yield "title", t.title
    if t.chip:
        yield "chip", t.chip
    yield "provider", t.provider
    yield from ((f"option {key}", value) for key, value in t.provider_options)
    yield "opset", str(t.opset)
    yield "precisions", " ".join(t.precisions)
    yield "verified", t.verified
    if t.npu is None:
        yield "KV cache", "updated in place" if t.shared_kv else "copied at each step"
    else:
        yield "on its CPU", f"the graph of target {t.fallback or _UNKNOWN}"
    yield "accuracy level", "from the recipe" if t.accuracy_level is None else str(t.accuracy_level)
    if t.npu is None:
        yield "context", "unlimited" if t.max_context is None else f"{words.count(t.max_context)} tokens"
    yield "memory", _UNKNOWN if t.memory_bytes is None else words.size(t.memory_bytes)
    yield "bandwidth", _UNKNOWN if t.bandwidth_bytes_per_s is None else f"{words.size(t.bandwidth_bytes_per_s)}/s"
    if t.notes:
        yield "notes", t.notes


def _numbers_table(numbers: Mapping[str, Value | AccuracyLimits], sources: Sequence[Evidence]) -> Table:
    """A row for each number that needs a source."""
    table = columns("number", "value>", "certainty", "source")
    by_key = {source.key: source for source in sources}
    for key, value in numbers.items():
        if isinstance(value, AccuracyLimits):
            continue
        source = by_key.pop(key, None)
        cells = (source.certainty, source.text) if source else (Text("no source", style="red"), "")
        table.add_row(key, _value_words(key, value), *cells)
    if source := by_key.get("options"):
        # npu.options lists the values; this is where the family's come from.
        table.add_row(source.key, "", source.certainty, source.text)
    return table


def _measured_table(speeds: Sequence[MeasuredSpeed]) -> Table:
    """What this user's lab measured on devices of the target."""
    table = columns("measured", "precision", "tok/s>", "of the bandwidth>", "J/token>", "device", "host", "date")
    for s in speeds:
        share = "unknown" if s.efficiency is None else words.percent(s.efficiency)
        joules = words.number(s.joules_per_token)
        table.add_row(s.model, s.precision, words.number(s.tok_s), share, joules, s.device, s.host, s.time[:10])
    return table


def _value_words(key: str, value: Value) -> str:
    """A number in the unit that its key implies."""
    if isinstance(value, tuple):
        parts = (f"{part:.0%}" if isinstance(part, float) else " ".join(part) for part in value)
        return (" to " if key == "npu.efficiency" else ", ").join(parts)
    if key.endswith("_bytes_per_s"):
        return f"{words.size(value)}/s"
    if key.endswith("_bytes"):
        return words.size(value)
    if key.endswith("_ops_per_s"):
        return f"{words.number(value / 1e12)} TOPS"
    return words.count(value)


def _scheme_tables(scheme: SchemeCard) -> Iterator[RenderableType]:
    r = scheme.scheme
    yield facts(
        [
            ("scheme", f"{r.activations} activations, {' '.join(r.precisions)} weights"),
            *((f"{precision} recipe", name) for precision, name in r.recipes),
            *((f"option {key}", value) for key, value in r.options),
        ]
    )
    if r.limits:
        yield ""
        table = columns("limits", "top-1>", "KL>", "NPU's top-1>", "NPU's KL>", "NPU's cosine>", "certainty", "source")
        for limit, source in scheme.limits:
            numbers = (f">= {limit.top1}", f"<= {limit.kld}", f">= {limit.npu_top1}", f"<= {limit.npu_kld}")
            cells = (source.certainty, source.text) if source else (Text("no source", style="red"), "")
            table.add_row(limit.precision, *numbers, f">= {limit.npu_cosine}", *cells)
        yield table
    yield ""
    yield _rewrites_table(scheme.rewrites)


def _rewrites_table(rewrites: Sequence[Rewrite]) -> Table:
    return facts((f"rewrite {r.cures}", r.file or "missing") for r in rewrites)
