"""Whether a binary is for this chip and not newer than what is to open it.

The provider does not ask: on this machine its emulator runs a binary for another chip without a word, and a binary of a
newer SDK ends in an argument said to be invalid (both tried with onnxruntime-qnn 2.6.0 and 2.7.0, whose own check is
skipped on x86). An older binary opens: that is the provider's rule, which compares major and minor versions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from edgekit.errors import RunError
from edgekit.run.runtime import onnxruntime

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekit.types.device import Plugin

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Mark:
    """What a compiler noted in a graph: its SDK's version, and the chips that the binary is for."""

    sdk: str
    chips: tuple[str, ...]


def parse_mark(note: str, pattern: str) -> Mark | None:
    """A compiler's note, taken apart; None when it is not of the pattern, which has groups ``sdk`` and ``chips``."""
    found = re.fullmatch(pattern, note)
    return Mark(found["sdk"], tuple(found["chips"].split(","))) if found else None


def installed_sdk(plugin: Plugin) -> str:
    """The SDK of the plugin that is installed, "" when it does not say."""
    module, _, attribute = plugin.sdk.rpartition(".")
    try:
        return str(getattr(import_module(f"{plugin.module}.{module}" if module else plugin.module), attribute))
    except (ImportError, AttributeError):
        return ""


def require_compatible(
    plugin: Plugin, provider: str, options: Pairs, graphs: Sequence[Path], *, tools: Pairs = ()
) -> None:
    """Raise unless compiled graphs are for the chip that the options name, and not newer than the plugin.

    Args:
        plugin: it is installed.
        provider: its name, under which the compiler left its note in the graph.
        options: what the graphs were compiled with, as the manifest says.
        graphs: EPContext graphs.
        tools: packages and versions of the compiler, as the manifest says: they speak where the note does not.

    Raises:
        RunError: a graph that cannot be read or holds no note, one for another chip, one of a newer SDK; an ONNX
            Runtime before 1.25, which reads no notes.
    """
    here, package = installed_sdk(plugin), Requirement(plugin.requirement).name
    compiler = dict(tools).get(package, "")
    chip = dict(options).get(plugin.chip)
    for graph in graphs:
        note = _note(graph, provider)
        mark = parse_mark(note, plugin.note) if plugin.note else None
        if mark and chip and not set(chip.split(",")) <= set(mark.chips):
            raise RunError(
                f"{graph.name} holds a binary for chip {', '.join(mark.chips)}, and the device's is {chip}",
                "`edgekit verify` tells whether the bundle is whole; build it again for this device",
            )
        fix = f"pip install '{package}>={compiler}'" if compiler else f"pip install -U {package}"
        if mark and here and _newer(mark.sdk, here, 2):
            raise RunError(f"{graph.name} was compiled with SDK {mark.sdk}, and {package} here has {here}", fix)
        if not (mark and here) and compiler and _newer(compiler, _version(package), 3):
            raise RunError(f"{graph.name} was compiled with {package} {compiler}, and {_version(package)} is here", fix)


def _note(graph: Path, provider: str) -> str:
    try:
        from onnxruntime.capi.onnxruntime_pybind11_state import get_compatibility_info_from_model  # noqa: TID251
    except ImportError as error:
        unable = f"onnxruntime {onnxruntime.__version__} cannot tell what {graph.name} was compiled for"
        raise RunError(unable, "pip install 'onnxruntime>=1.25'") from error
    try:
        note = get_compatibility_info_from_model(str(graph), provider)
    except Exception as error:  # onnxruntime's errors have no common base class
        raise RunError(f"{graph.name}: {' '.join(str(error).split())}", "build the bundle again") from error
    if note is None:
        raise RunError(f"{graph.name} is not compiled for {provider}", "build the bundle again")
    return str(note)


def _newer(one: str, other: str, parts: int) -> bool:
    """Whether the first version is later in its leading parts; versions that are none are not."""
    try:
        return Version(one).release[:parts] > Version(other).release[:parts]
    except InvalidVersion:
        return False


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
