"""Check that a binary is for this chip and not newer than the installed SDK.

The provider does not check it: here its emulator silently runs binaries for other chips, and a binary of a newer SDK
fails with "invalid argument" (both tried with onnxruntime-qnn 2.6.0 and 2.7.0, whose own check is skipped on x86).
Older binaries load: the provider's rule compares major and minor versions.
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
    """A compiler's note in a graph: its SDK version, and the chips that the binary is for."""

    sdk: str
    chips: tuple[str, ...]


def parse_mark(note: str, pattern: str) -> Mark | None:
    """Parse a compiler's note; None if it does not match the pattern, which has groups ``sdk`` and ``chips``."""
    found = re.fullmatch(pattern, note)
    return Mark(found["sdk"], tuple(found["chips"].split(","))) if found else None


def installed_sdk(plugin: Plugin) -> str:
    """The SDK version of the installed plugin, "" if unknown."""
    module, _, attribute = plugin.sdk.rpartition(".")
    try:
        return str(getattr(import_module(f"{plugin.module}.{module}" if module else plugin.module), attribute))
    except (ImportError, AttributeError):
        return ""


def require_compatible(
    plugin: Plugin, provider: str, options: Pairs, graphs: Sequence[Path], *, tools: Pairs = ()
) -> None:
    """Raise unless compiled graphs are for the chip in the options, and not newer than the plugin.

    Args:
        plugin: the installed plugin.
        provider: its name, under which the compiler stored its note in the graph.
        options: the options that the graphs were compiled with, from the manifest.
        graphs: EPContext graphs.
        tools: the compiler's packages and versions, from the manifest; used if the note has no version.

    Raises:
        RunError: a graph cannot be read, has no note, or is for another chip or from a newer SDK; or ONNX Runtime is
            older than 1.25, which cannot read notes.
    """
    here, package = installed_sdk(plugin), Requirement(plugin.requirement).name
    compiler = dict(tools).get(package, "")
    chip = dict(options).get(plugin.chip)
    for graph in graphs:
        note = _note(graph, provider)
        mark = parse_mark(note, plugin.note) if plugin.note else None
        if mark and chip and not set(chip.split(",")) <= set(mark.chips):
            raise RunError(
                f"{graph.name} has a binary for chip {', '.join(mark.chips)}, but the device's is {chip}",
                "rebuild the bundle for this device",
            )
        fix = f"pip install '{package}>={compiler}'" if compiler else f"pip install -U {package}"
        if mark and here and _newer(mark.sdk, here, 2):
            raise RunError(f"{graph.name} was compiled with SDK {mark.sdk}, newer than {here} of {package}", fix)
        if not (mark and here) and compiler and _newer(compiler, _version(package), 3):
            raise RunError(
                f"{graph.name} was compiled with {package} {compiler}, newer than the installed {_version(package)}",
                fix,
            )


def _note(graph: Path, provider: str) -> str:
    try:
        from onnxruntime.capi.onnxruntime_pybind11_state import get_compatibility_info_from_model  # noqa: TID251
    except ImportError as error:
        unable = f"onnxruntime {onnxruntime.__version__} cannot read what {graph.name} was compiled for"
        raise RunError(unable, "pip install 'onnxruntime>=1.25'") from error
    try:
        note = get_compatibility_info_from_model(str(graph), provider)
    except Exception as error:  # onnxruntime's errors have no common base class
        raise RunError(
            f"{graph.name}: {' '.join(str(error).split())}", "rebuild the bundle with `edgekit build`"
        ) from error
    if note is None:
        raise RunError(f"{graph.name} is not compiled for {provider}", "rebuild the bundle with `edgekit build`")
    return str(note)


def _newer(one: str, other: str, parts: int) -> bool:
    """Whether the first version is newer in its leading parts; False for invalid versions."""
    try:
        return Version(one).release[:parts] > Version(other).release[:parts]
    except InvalidVersion:
        return False


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
