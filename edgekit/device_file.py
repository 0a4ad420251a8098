"""A device's TOML file in, a Target out; and ``lint``, which asks every number for its source.

``targets/<name>.toml`` is a device, ``targets/families/<name>.toml`` what the NPUs of one family have in common: how
graphs are compiled for them and what these must reach.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from edgekit.device import Activations, Certainty, Gate, Npu, Plugin, Precision, Route, Source, Target, Verified
from edgekit.table import Table, file_names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.resources.abc import Traversable

_PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_NUMBERS = ("max_context", "memory_bytes", "bandwidth_bytes_per_s", "peak_int8_ops_per_s")
"""Keys of a device whose numbers need a source."""

_NPU_NUMBERS = ("context", "efficiency", "options")
"""The same in its [npu] table."""

_KEYS = (
    *("name", "title", "chip", "provider", "provider_options", "opset", "precisions", "verified", "lacks", "quirks"),
    *("shared_kv", "accuracy_level", *_NUMBERS, "fallback", "npu", "sources", "notes"),
)
_NPU_KEYS = ("name", "family", "context", "efficiency", "options")
_FAMILY_KEYS = (
    *("name", "title", "plugin", "options", "session", "ml_program", "prefill_tokens", "largest_graph_bytes"),
    *("route", "sources"),
)
_PLUGIN_KEYS = ("module", "requirement", "extra", "platforms", "licence", "paths")
_ROUTE_KEYS = ("activations", "precisions", "lacks", "quirks", "options", "recipes", "masked", "gate")
_GATE_KEYS = ("top1", "kld", "npu_top1", "npu_kld", "npu_cosine")
_SOURCE_KEYS = ("certainty", "text")


def list_targets() -> tuple[str, ...]:
    """The names of the targets that ship with edgekit, sorted."""
    return file_names(_folder())


def load_target(name_or_path: str | Path) -> Target:
    """Read a target by name, or from a TOML file.

    Raises:
        ConfigError: no such target, family or file; not TOML; an unknown or missing key; a value of the wrong kind; a
            file whose name is not its target's.
    """
    table = Table.open(name_or_path, _folder(), "target", _KEYS)
    return Target(
        name=table.get("name", str),
        title=table.get("title", str),
        provider=table.get("provider", str),
        opset=table.whole("opset", at_least=1),
        precisions=table.words("precisions", _PRECISIONS),
        verified=table.choice("verified", get_args(Verified)),
        provider_options=table.texts("provider_options"),
        lacks=frozenset(table.words("lacks", default=())),
        quirks=frozenset(table.words("quirks", default=())),
        shared_kv=table.get("shared_kv", bool, False),
        accuracy_level=table.choice("accuracy_level", range(5)) if table.has("accuracy_level") else None,
        max_context=table.whole("max_context", at_least=1) if table.has("max_context") else None,
        memory_bytes=table.whole("memory_bytes", at_least=1) if table.has("memory_bytes") else None,
        bandwidth_bytes_per_s=table.positive("bandwidth_bytes_per_s"),
        peak_int8_ops_per_s=table.positive("peak_int8_ops_per_s"),
        chip=table.get("chip", str, ""),
        fallback=table.get("fallback", str, ""),
        npu=_npu(table.table("npu", _NPU_KEYS)) if table.has("npu") else None,
        sources=_sources(table),
        notes=table.get("notes", str, ""),
    )


def lint_target(target: Target) -> tuple[str, ...]:
    """What is wrong with a device's file beyond its form: numbers without a source, sources without a number.

    Args:
        target: as ``load_target`` gave it.

    Returns:
        One line for each; none when all is well.
    """
    return tuple(_lint(target))


def _lint(target: Target) -> Iterator[str]:
    known = {source.key for source in target.sources}
    numbers = {key for key in _NUMBERS if getattr(target, key) is not None}
    if target.npu is not None:
        numbers |= {f"npu.{key}" for key in _NPU_NUMBERS}
    if target.accuracy_level is not None:
        numbers.add("accuracy_level")
    for key in sorted(numbers - known):
        yield f"{target.name}: '{key}' has no source; add it under [sources]"
    for key in sorted(known - numbers):
        yield f"{target.name}: the source of '{key}' belongs to no number"
    for source in target.sources:
        if not source.text.strip():
            yield f"{target.name}: the source of '{source.key}' says nothing"
    if target.npu is not None and not target.fallback:
        yield f"{target.name}: it has an NPU and no fallback for its CPU"


def _npu(table: Table) -> Npu:
    family = Table.open(table.get("family", str), _folder() / "families", "family", _FAMILY_KEYS)
    efficiency = table.get("efficiency", list)
    rising = len(efficiency) == 2 and all(type(e) is float for e in efficiency) and 0 < efficiency[0] <= efficiency[1]
    table.require(rising and efficiency[1] <= 1, "efficiency", "two fractions, the lower first", efficiency)
    return Npu(
        name=table.get("name", str),
        family=family.get("name", str),
        plugin=_plugin(family.table("plugin", _PLUGIN_KEYS)) if family.has("plugin") else None,
        options=tuple(sorted({**dict(family.texts("options")), **dict(table.texts("options"))}.items())),
        prefill_tokens=family.whole("prefill_tokens", at_least=2),
        context=table.whole("context", at_least=2),
        largest_graph_bytes=family.whole("largest_graph_bytes", at_least=1),
        efficiency=(efficiency[0], efficiency[1]),
        routes=tuple(map(_route, family.tables("route", _ROUTE_KEYS))),
        session=family.texts("session"),
        ml_program=family.get("ml_program", bool, False),
    )


def _plugin(table: Table) -> Plugin:
    return Plugin(
        module=table.get("module", str),
        requirement=table.get("requirement", str),
        extra=table.get("extra", str),
        platforms=table.words("platforms"),
        licence=table.get("licence", str),
        paths=table.texts("paths"),
    )


def _route(table: Table) -> Route:
    precisions = table.words("precisions", _PRECISIONS)
    gates = table.table("gate", _PRECISIONS) if table.has("gate") else None
    return Route(
        activations=table.choice("activations", get_args(Activations)),
        precisions=precisions,
        lacks=frozenset(table.words("lacks", default=())),
        quirks=frozenset(table.words("quirks", default=())),
        options=table.texts("options"),
        recipes=tuple((p, name) for p in precisions for key, name in table.texts("recipes") if key == p),
        gates=tuple(_gate(p, gates.table(p, _GATE_KEYS)) for p in precisions if gates and gates.has(p)),
        masked=-(table.positive("masked") or 10_000.0),
    )


def _gate(precision: Precision, table: Table) -> Gate:
    kld, npu_kld = (table.positive(key) or 0.0 for key in ("kld", "npu_kld"))
    top1, npu_top1, cosine = (table.fraction(key) for key in ("top1", "npu_top1", "npu_cosine"))
    return Gate(precision, top1, kld, npu_top1, npu_kld, cosine)


def _sources(table: Table) -> tuple[Source, ...]:
    if not table.has("sources"):
        return ()
    keys = (*_NUMBERS, "accuracy_level", *(f"npu.{key}" for key in _NPU_NUMBERS))
    sources = table.table("sources", keys)
    rows = [(key, sources.table(key, _SOURCE_KEYS)) for key in keys if sources.has(key)]
    return tuple(Source(key, row.choice("certainty", get_args(Certainty)), row.get("text", str)) for key, row in rows)


def _folder() -> Traversable:
    """The folder of target files: inside the package in a wheel, beside it in a checkout."""
    package = resources.files("edgekit")
    inside = package / "targets"
    return inside if inside.is_dir() else Path(str(package)).parent / "targets"
