"""Compile graphs for an NPU with the provider's compiler, and run them on its emulator or the NPU."""

from edgekit.run.npu.calibrating import observe_ranges
from edgekit.run.npu.compatibility import Mark, installed_sdk, parse_mark, require_compatible
from edgekit.run.npu.compiler import Compiler, VendorCompiler
from edgekit.run.npu.compiling import Compilation, compile_graphs
from edgekit.run.npu.emulating import Emulated, Task, emulate, run_graphs
from edgekit.run.npu.plugin import plugin_versions, require_compiler
from edgekit.run.npu.static_runner import StaticRunner, open_on_cpu
from edgekit.run.npu.usability import check_usability

__all__ = [
    "Compilation",
    "Compiler",
    "Emulated",
    "Mark",
    "StaticRunner",
    "Task",
    "VendorCompiler",
    "check_usability",
    "compile_graphs",
    "emulate",
    "installed_sdk",
    "observe_ranges",
    "open_on_cpu",
    "parse_mark",
    "plugin_versions",
    "require_compatible",
    "require_compiler",
    "run_graphs",
]
