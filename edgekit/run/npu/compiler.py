"""The seam between a build and what compiles static graphs for an NPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from edgekit.run.npu.compiling import Compilation, compile_graphs
from edgekit.run.npu.plugin import plugin_versions, require_compiler
from edgekit.types import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekit.types.device import Plugin


class Compiler(Protocol):
    """What a build needs of a compiler: the vendor's (``VendorCompiler``), or a fake (``edgekit.testing``)."""

    def require(self, plugin: Plugin) -> None:
        """Raise ``RunError`` unless this machine can compile with the plugin."""

    def versions(self, plugin: Plugin) -> tuple[tuple[str, str], ...]:
        """(package, version) of all that compiles."""

    def compile(
        self,
        plugin: Plugin,
        provider: str,
        options: Sequence[tuple[str, str]],
        graphs: Sequence[tuple[Path, Path]],
        *,
        share: bool = False,
        threads: int = 1,
        progress: Progress = silent,
    ) -> tuple[Compilation, ...]:
        """Compile static graphs; arguments and result as ``compile_graphs`` has them."""


class VendorCompiler:
    """The compiler of the provider's own package, in a process of its own."""

    require = staticmethod(require_compiler)
    versions = staticmethod(plugin_versions)
    compile = staticmethod(compile_graphs)
