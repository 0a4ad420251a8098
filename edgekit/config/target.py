"""Read a target's TOML file.

``targets/<name>.toml`` describes a device, ``targets/families/<name>.toml`` what the NPUs of one family have in common:
how graphs are compiled for them and the accuracy limits. A user's target file may have its family in a folder
``families`` next to it. ``edgekit targets lint`` checks that every number has a source.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from edgekit.config.providers import find_provider, targets_folder, wrong_settings
from edgekit.ranges import PLAIN_NAME
from edgekit.strangers.toml_table import Table, file_names, is_path, keys_of
from edgekit.types.device import (
    NUMBERS,
    AccuracyLimits,
    Activations,
    Certainty,
    Evidence,
    Npu,
    NpuScheme,
    Precision,
    Runtime,
    Target,
    Verified,
)

if TYPE_CHECKING:
    from edgekit.config.providers import Provider

_PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_NPU_KEYS = ("name", "family", "context", "efficiency", "options", "runtime")
_FAMILY_KEYS = (
    *("name", "title", "runtime", "options", "session", "ml_program", "prefill_tokens"),
    *("largest_graph_bytes", "scheme", "sources"),
)

_SOURCED = (*NUMBERS, "npu.context", "npu.efficiency", "npu.options")
_FAMILY_SOURCED = (
    *("prefill_tokens", "largest_graph_bytes", "options"),
    *(f"{a}.{what}" for a in get_args(Activations) for what in ("masked", *(f"limits.{p}" for p in _PRECISIONS))),
)


def list_targets() -> tuple[str, ...]:
    """The names of the targets that ship with edgekit, sorted."""
    return file_names(targets_folder())


def load_target(name_or_path: str | Path) -> Target:
    """Read a target by name, or from a TOML file.

    Raises:
        ConfigError: no such target, family or file, not TOML, an unknown or missing key, an invalid value, a file
            whose name differs from its target's, or a provider option that files may not set (see providers).
    """
    table = Table.open(name_or_path, targets_folder(), "target", keys_of(Target, "window"))
    provider = table.get("provider", str)
    target = Target(
        name=table.get("name", str),
        title=table.get("title", str),
        provider=provider,
        opset=table.whole("opset", at_least=1),
        precisions=table.words("precisions", _PRECISIONS),
        verified=table.choice("verified", get_args(Verified)),
        provider_options=table.texts("provider_options"),
        lacks=frozenset(table.words("lacks", default=())),
        quirks=frozenset(table.words("quirks", default=())),
        accuracy_level=table.choice("accuracy_level", range(5)) if table.has("accuracy_level") else None,
        max_context=table.whole("max_context", at_least=1) if table.has("max_context") else None,
        memory_bytes=table.whole("memory_bytes", at_least=1) if table.has("memory_bytes") else None,
        bandwidth_bytes_per_s=table.positive("bandwidth_bytes_per_s"),
        peak_int8_ops_per_s=table.positive("peak_int8_ops_per_s"),
        npu=_npu(table.table("npu", _NPU_KEYS), name_or_path, find_provider(provider)) if table.has("npu") else None,
        sources=_sources(table, _SOURCED),
        **table.present(shared_kv=bool, chip=str, fallback=str, notes=str),
    )
    for key, name in (("name", target.name), ("fallback", target.fallback)):
        table.require(not name or PLAIN_NAME.holds(name), key, PLAIN_NAME.words, name)
    for where, why in wrong_settings(target):
        raise table.error(f"{where}: {why}", "see targets/providers in this edgekit for the allowed options")
    return target


def _npu(table: Table, device: str | Path, provider: Provider | None) -> Npu:
    named = table.get("family", str)
    table.require(PLAIN_NAME.holds(named), "family", PLAIN_NAME.words, named)
    family = _family(named, device)
    efficiency = table.get("efficiency", list)
    rising = len(efficiency) == 2 and all(type(e) is float for e in efficiency) and 0 < efficiency[0] <= efficiency[1]
    table.require(rising and efficiency[1] <= 1, "efficiency", "two fractions, the lower first", efficiency)
    return Npu(
        name=table.get("name", str),
        family=family.get("name", str),
        plugin=provider.plugin if provider else None,
        options=tuple(sorted({**dict(family.texts("options")), **dict(table.texts("options"))}.items())),
        prefill_tokens=family.whole("prefill_tokens", at_least=2),
        context=table.whole("context", at_least=2),
        largest_graph_bytes=family.whole("largest_graph_bytes", at_least=1),
        efficiency=(efficiency[0], efficiency[1]),
        schemes=tuple(map(_scheme, family.tables("scheme", keys_of(NpuScheme)))),
        runtime=_runtime(family.table("runtime", keys_of(Runtime)), table) if family.has("runtime") else None,
        session=family.texts("session"),
        sources=_sources(family, _FAMILY_SOURCED),
        **family.present(ml_program=bool),
    )


def _runtime(family: Table, device: Table) -> Runtime:
    options = {**dict(family.texts("options")), **dict(device.texts("runtime"))}
    return Runtime(genai=family.get("genai", str), options=tuple(sorted(options.items())))


def _family(name: str, device: str | Path) -> Table:
    """Open the family's file: next to the device's if that is a user's and has one, otherwise the one that ships."""
    beside = Path(device).parent / "families"
    theirs = is_path(device) and (beside / f"{name}.toml").is_file()
    return Table.open(name, beside if theirs else targets_folder() / "families", "family", _FAMILY_KEYS)


def _scheme(table: Table) -> NpuScheme:
    precisions = table.words("precisions", _PRECISIONS)
    limits = table.table("limits", _PRECISIONS) if table.has("limits") else None
    return NpuScheme(
        activations=table.choice("activations", get_args(Activations)),
        precisions=precisions,
        lacks=frozenset(table.words("lacks", default=())),
        quirks=frozenset(table.words("quirks", default=())),
        options=table.texts("options"),
        recipes=tuple((p, name) for p in precisions for key, name in table.texts("recipes") if key == p),
        limits=tuple(_limits(p, limits) for p in precisions if limits and limits.has(p)),
        masked=-(table.positive("masked") or 10_000.0),
    )


def _limits(precision: Precision, limits: Table) -> AccuracyLimits:
    table = limits.table(precision, keys_of(AccuracyLimits, "precision"))
    kld, npu_kld = (table.positive(key) or 0.0 for key in ("kld", "npu_kld"))
    top1, npu_top1, cosine = (table.fraction(key) for key in ("top1", "npu_top1", "npu_cosine"))
    return AccuracyLimits(precision, top1, kld, npu_top1, npu_kld, cosine)


def _sources(table: Table, keys: tuple[str, ...]) -> tuple[Evidence, ...]:
    if not table.has("sources"):
        return ()
    sources = table.table("sources", keys)
    rows = [(key, sources.table(key, keys_of(Evidence, "key"))) for key in keys if sources.has(key)]
    return tuple(Evidence(key, row.choice("certainty", get_args(Certainty)), row.get("text", str)) for key, row in rows)
