"""Find, check and register execution providers that are separate packages (plugins of ONNX Runtime)."""

from __future__ import annotations

import platform
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement

from edgekit.config.providers import wrong_option
from edgekit.errors import RunError
from edgekit.run.runtime import onnxruntime

if TYPE_CHECKING:
    from types import ModuleType

    from edgekit.types.device import Plugin


def require_compiler(plugin: Plugin) -> None:
    """Raise unless this machine can compile with the plugin.

    Raises:
        RunError: the package is missing, has the wrong version, or has no compiler for this platform.
    """
    here = f"{platform.system()} {platform.machine()}"
    if here not in plugin.platforms:
        raise RunError(
            f"the compiler and emulator of {plugin.module} need {', '.join(plugin.platforms)}, but this is {here}",
            "build on such a machine, in a container or in CI, and copy the bundle to the device",
        )
    _load(plugin)


def plugin_versions(plugin: Plugin) -> tuple[tuple[str, str], ...]:
    """(package, version) of ONNX Runtime and the plugin.

    Raises:
        RunError: the package is missing or has the wrong version.
    """
    _load(plugin)
    name = Requirement(plugin.requirement).name
    return (("onnxruntime", onnxruntime.__version__), (name, version(name)))


def session_options(plugin: Plugin, provider: str, options: tuple[tuple[str, str], ...], threads: int) -> Any:
    """Options for a session on the plugin's device that fails instead of running a node on the CPU.

    Raises:
        RunError: the package is missing or has the wrong version, it has no device, or an option is not allowed.
    """
    if wrong := wrong_option(provider, options):
        raise RunError(f"{provider}: {wrong}", "targets/providers of this edgekit lists the allowed options")
    module = _load(plugin)
    _register(plugin.module, provider, module.get_library_path())
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == provider]
    if not devices:
        raise RunError(f"{plugin.module} finds no device for {provider} on this machine", "run `edgekit doctor`")
    paths = {option: getattr(module, function)() for option, function in plugin.paths}
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = threads
    made.log_severity_level = 4
    made.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    made.add_provider_for_devices(devices[:1], {**dict(options), **paths})
    return made


@cache
def _register(module: str, provider: str, path: str) -> None:
    try:
        onnxruntime.register_execution_provider_library(provider, path)
    except Exception as error:  # onnxruntime's errors have no common base class
        raise RunError(
            f"onnxruntime {onnxruntime.__version__} cannot load {module}: {' '.join(str(error).split())}",
            "install matching versions: pip install -U onnxruntime " + module.replace("_", "-"),
        ) from error


def _load(plugin: Plugin) -> ModuleType:
    wanted = Requirement(plugin.requirement)
    fix = f"pip install 'edgekit[{plugin.extra}]'"
    try:
        module = import_module(plugin.module)
        found = version(wanted.name)
    except (ImportError, PackageNotFoundError) as error:
        raise RunError(f"the NPU's compiler and emulator need {wanted.name}, which is not installed", fix) from error
    if not wanted.specifier.contains(found, prereleases=True):
        raise RunError(f"{wanted.name} {found} is installed, but {wanted.specifier} is needed", fix)
    return module
