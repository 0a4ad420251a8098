"""Which provider options an untrusted file may set: ``targets/providers/*.toml`` of this installation.

Bundles and target files are data. Only this installation decides which options of a provider they may set, to which
values, and which package a provider comes in. No option that names a library, a folder or a file is allowed. To add a
provider, add one file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.strangers.toml_table import Table, file_names, keys_of
from edgekit.types.device import Plugin

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from edgekit.types.device import Target

SESSION_ENTRIES = {
    "mlas.disable_kleidiai": ("0", "1"),
    "mlas.use_lut_gemm": ("0", "1"),
    "session.disable_quant_qdq": ("0", "1"),
}
"""Session configuration entries that a bundle or a target file may set, and their values. Some others write files or
load libraries."""

Pairs = tuple[tuple[str, str], ...]

_DIGITS = 9
"""Most digits of a numeric option."""


@dataclass(frozen=True)
class Option:
    """A provider option that an untrusted file may set: to one of ``words``, or to a number within ``limits``."""

    key: str
    words: tuple[str, ...]
    limits: tuple[int, int] | None

    def allows(self, value: str) -> bool:
        """Whether a file may set it to ``value``."""
        if self.limits is None:
            return value in self.words
        least, most = self.limits
        number = value.isascii() and value.isdigit() and len(value) <= _DIGITS
        return number and least <= int(value) <= most

    @property
    def expected(self) -> str:
        """The allowed values, for a message."""
        return "a number from {} to {}".format(*self.limits) if self.limits else f"one of {', '.join(self.words)}"


@dataclass(frozen=True)
class Provider:
    """An execution provider of ONNX Runtime, as this installation knows it.

    ``options`` may be set in a session, ``runtime`` also by onnxruntime-genai on the device. ``plugin`` is the package
    that it comes in, None if it is part of ONNX Runtime. ``half_precision`` is the option that, set to "1", makes it
    compute float32 graphs in half precision; "" if there is none. ``function`` is the function of ONNX Runtime's C
    library that adds it to a session; "" if it is added by its name.
    """

    name: str
    options: tuple[Option, ...]
    runtime: tuple[Option, ...]
    plugin: Plugin | None
    half_precision: str = ""
    function: str = ""


def targets_folder() -> Traversable:
    """The folder of target files: inside the package in a wheel, next to it in a checkout."""
    package = resources.files("edgekit")
    inside = package / "targets"
    return inside if inside.is_dir() else Path(str(package)).parent / "targets"


@cache
def find_provider(name: str) -> Provider | None:
    """Load a provider's file, None if this installation has none. Raises ConfigError if it is damaged."""
    folder = targets_folder() / "providers"
    if name not in file_names(folder):
        return None
    table = Table.open(name, folder, "provider", keys_of(Provider))
    plugin = _plugin(table.table("plugin", keys_of(Plugin))) if table.has("plugin") else None
    options, runtime = _options(table, "options"), _options(table, "runtime")
    return Provider(name, options, runtime, plugin, **table.present(half_precision=str, function=str))


def wrong_option(provider: str, options: Pairs, *, on_device: bool = False) -> str:
    """Return why an untrusted file may not set one of ``options``; "" if it may set all of them.

    Args:
        provider: the provider's name.
        options: keys and values.
        on_device: whether they are for onnxruntime-genai on the device.
    """
    known = find_provider(provider)
    if known is None:
        return f"unknown provider {provider}, for which no options are allowed" if options else ""
    return _wrong(options, (*known.options, *(known.runtime if on_device else ())))


def wrong_entry(entries: Pairs) -> str:
    """Return why an untrusted file may not set one of these session entries; "" if it may set all of them."""
    return _wrong(entries, tuple(Option(key, words, None) for key, words in SESSION_ENTRIES.items()))


def wrong_settings(target: Target) -> tuple[tuple[str, str], ...]:
    """The forbidden settings of an untrusted target: where each is and why it is forbidden."""
    found = [("provider_options", wrong_option(target.provider, target.provider_options))]
    if npu := target.npu:
        found += [
            ("npu.options", wrong_option(target.provider, npu.options)),
            ("npu.session", wrong_entry(npu.session)),
            *(
                (f"npu.schemes[{i}].options", wrong_option(target.provider, r.options))
                for i, r in enumerate(npu.schemes)
            ),
        ]
        if npu.runtime:
            found.append(("npu.runtime.options", wrong_option(target.provider, npu.runtime.options, on_device=True)))
    return tuple((where, why) for where, why in found if why)


def _wrong(pairs: Pairs, options: tuple[Option, ...]) -> str:
    allowed = {option.key: option for option in options}
    keys = [key for key, _ in pairs]
    for key, value in pairs:
        if key not in allowed:
            known = ", ".join(sorted(allowed)) or "none"
            return f"{key!r} may not be set by a file; allowed: {known}"
        if not allowed[key].allows(value):
            return f"{key!r} must be {allowed[key].expected}, not {value!r}"
        if keys.count(key) > 1:
            return f"{key!r} is set twice"
    return ""


def _options(table: Table, key: str) -> tuple[Option, ...]:
    if not table.has(key):
        return ()
    options = table.table(key, tuple(table.get(key, dict)))
    return tuple(_option(name, options.table(name, ("words", "least", "most"))) for name in options.values)


def _option(key: str, table: Table) -> Option:
    if table.has("words"):
        return Option(key, table.words("words"), None)
    return Option(key, (), (table.whole("least", at_least=0), table.whole("most", at_least=0)))


def _plugin(table: Table) -> Plugin:
    return Plugin(
        module=table.get("module", str),
        requirement=table.get("requirement", str),
        extra=table.get("extra", str),
        platforms=table.words("platforms"),
        licence=table.get("licence", str),
        paths=table.texts("paths"),
        **table.present(note=str, chip=str, sdk=str),
    )
