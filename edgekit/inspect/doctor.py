"""What this machine can build, run and measure, and how to get what is missing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit import __version__, words
from edgekit.errors import ConfigError, GraphError, MeasureError, RunError, SourceError
from edgekit.host.arithmetic import NOTHING
from edgekit.host.processor import DOT_PRODUCTS, cpu_flags, processor_class
from edgekit.types import Check, silent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekit.types import Progress

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")
"""Instruction sets that matter for int8 matmuls."""

_EXTRAS = (
    (
        "sentencepiece",
        "sentencepiece",
        "models that ship only a tokenizer.model",
        "pip install 'edgekit[sentencepiece]'",
    ),
    ("pynvml", "nvidia-ml-py", "energy of NVIDIA GPUs", "pip install 'edgekit[nvidia]'"),
    ("numba", "numba", "builds large models twice as fast, with the same result", "pip install 'edgekit[large]'"),
    ("coremltools", "coremltools", "Core ML packages (edgekit build --mlpackage)", "pip install 'edgekit[coreml]'"),
    ("cryptography", "cryptography", "signatures (edgekit sign)", "pip install 'edgekit[sign]'"),
    ("uvicorn", "uvicorn", "the server (edgekit serve)", "pip install 'edgekit[serve]'"),
    ("onnxruntime_genai", "onnxruntime-genai", "runs bundles in that runtime", "pip install onnxruntime-genai"),
)
"""Module, distribution, what it is for, how to get it."""


def examine(root: Path = Path("/")) -> tuple[Check, ...]:
    """Examine this machine, without changing or fetching anything.

    Args:
        root: the folder with ``proc`` and ``sys``; tests pass a fixture tree.
    """
    return (
        _python(),
        _dependencies(),
        _processor(root),
        _class(root),
        _instructions(root),
        *_arithmetic(),
        _memory(),
        _disk(),
        _cache(),
        _providers(),
        *_models(),
        *_meters(root),
        *_extras(),
        _optimum(),
        _arm64(),
        _node(),
    )


def install_part(name: str, progress: Progress = silent) -> None:
    """Install an optional part that needs more than one pip command.

    Args:
        name: ``optimum``: the exporter for other architectures, in its own environment; ``arm64``: the system in which
            qemu runs ARM kernels.
        progress: called with the progress.

    Raises:
        ConfigError: there is no such part, or another user can write to the cache.
        GraphError: pip failed.
        RunError: qemu is missing, or apt-get or pip failed.
    """
    if name == "optimum":
        from edgekit.graph.optimum import install_optimum

        install_optimum(progress)
    elif name == "arm64":
        from edgekit.run import arm64

        arm64.install_arm64(progress)
    else:
        raise ConfigError(f"doctor cannot install '{name}'", "pass one of: optimum, arm64")


def _python() -> Check:
    return Check("python", "pass", f"{platform.python_version()} at {sys.executable}, {platform.platform()}")


def _dependencies() -> Check:
    """Check the packages that the installed metadata requires."""
    try:
        lines = requires("edgekit") or ()
    except PackageNotFoundError:
        where = f"edgekit {__version__} from {Path(__file__).parent}, not installed"
        return Check("packages", "info", where, "pip install -e .")
    wanted = [re.split(r"[\s<>=!~;\[]", line)[0] for line in lines if "extra ==" not in line]
    found, missing = [f"edgekit {__version__}"], []
    for name in wanted:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check("packages", "fail", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Check("packages", "pass", ", ".join(found))


def _processor(root: Path) -> Check:
    from edgekit.measure import read_environment
    from edgekit.run import physical_cores

    cores = physical_cores(root)
    environment = read_environment(cores=cores, threads=cores, runtime=(), provider="", root=root)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    detail = (
        f"{environment.cpu or platform.machine()}: {cores} usable physical cores (after affinity and cgroup quota), "
        f"{allowed} of {os.cpu_count()} logical ones, governor {environment.governor or 'unknown'}"
    )
    return Check("processor", "pass", detail)


def _class(root: Path) -> Check:
    from edgekit.run import machine_class, runtime_class

    return Check(
        "machine class", "info", f"{machine_class(root)}, {runtime_class()}: `bench --tune` writes settings for it"
    )


def _instructions(root: Path) -> Check:
    flags, kind = cpu_flags(root), processor_class(root)
    found = [flag for flag in _FLAGS if flag in flags]
    if not flags:
        return Check("instructions", "info", "unknown on this system")
    fast = kind in DOT_PRODUCTS
    dot = "int8 dot products in hardware" if fast else "no int8 dot products, so 8-bit matmuls are slow"
    named = f"class {kind or 'unknown'} ({', '.join(found) or 'no relevant flags'})"
    return Check("instructions", "pass" if fast else "info", f"{named}: {dot}")


def _arithmetic() -> Iterator[Check]:
    """Check which integer matmuls are exact here: every probe, and those that bundles run for prompts."""
    from edgekit.run import PROMPT_MATMULS, check_survey, describe_arithmetic, find_arithmetic, this_interpreter

    yield check_survey("arithmetic", this_interpreter())
    prompts = find_arithmetic(PROMPT_MATMULS, keep=False)
    yield Check("prompts", "pass" if prompts.exact else "info", describe_arithmetic(NOTHING, prompts))


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    return Check("memory", "pass", f"{words.size(memory.available)} of {words.size(memory.total)} available")


def _disk() -> Check:
    return Check("disk", "pass", f"{words.size(shutil.disk_usage(Path.cwd()).free)} free in {Path.cwd()}")


def _cache() -> Check:
    from edgekit.host.cache import cache_folder, foreign

    folder = cache_folder()
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    if reason := foreign(folder):
        return Check("cache", "fail", reason, "set EDGEKIT_CACHE to a folder of your own")
    if not os.access(nearest, os.W_OK):
        return Check("cache", "fail", f"{folder} is not writable", "set EDGEKIT_CACHE to a writable folder")
    return Check("cache", "pass", f"{folder}, {words.size(shutil.disk_usage(nearest).free)} free")


def _providers() -> Check:
    from edgekit.run.runtime import onnxruntime

    names = ", ".join(onnxruntime.get_available_providers())
    return Check("providers", "pass", f"onnxruntime {onnxruntime.__version__}: {names}")


def _models() -> Iterator[Check]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from edgekit.source.packaged import PACKAGED, fetch_packaged

    for name, row in PACKAGED.items():
        try:
            yield Check(f"model {name}", "pass", f"cached, {fetch_packaged(row, offline=True, progress=silent)}")
        except ConfigError as error:
            yield Check(f"model {name}", "fail", error.message, error.hint)
        except SourceError:
            size = words.size(row.wheel_bytes)
            hint = f"run `edgekit build {name} -o {name}-int4` to fetch it"
            yield Check(f"model {name}", "info", f"not downloaded ({size}, through pip)", hint)
    repositories = len(list(Path(HF_HUB_CACHE).glob("models--*")))
    yield Check("hub cache", "info", f"{repositories} models in {HF_HUB_CACHE}")


def _meters(root: Path) -> Iterator[Check]:
    from edgekit.measure import choose_meter, meters

    for probe in meters(root):
        try:
            probe.start()
            probe.stop()
        except MeasureError as error:
            yield Check(f"meter {probe.name}", "skip", error.message, error.hint)
        else:
            yield Check(f"meter {probe.name}", "pass", f"readable ({probe.kind})")
    chosen, reason = choose_meter(root)
    yield Check("energy", "pass", chosen.name) if chosen else Check("energy", "info", f"none: {reason}")


def _extras() -> Iterator[Check]:
    for module, distribution, purpose, command in _EXTRAS:
        if find_spec(module):
            yield Check(distribution, "pass", f"{version(distribution)}: {purpose}")
        else:
            yield Check(distribution, "skip", f"not installed: {purpose}", command)


def _optimum() -> Check:
    from edgekit.graph.optimum import INSTALL, find_optimum

    try:
        python = find_optimum()
    except ConfigError as error:
        return Check("optimum", "fail", error.message, error.hint)
    except GraphError as error:
        return Check("optimum", "skip", f"{error.message}: exports other architectures", error.hint or INSTALL)
    return Check("optimum", "pass", f"{python}: exports other architectures (edgekit build --exporter optimum)")


def _arm64() -> Check:
    from edgekit.run import find_arm64

    try:
        interpreter = find_arm64()
    except ConfigError as error:
        return Check("arm64", "fail", error.message, error.hint)
    except RunError as error:
        return Check("arm64", "skip", f"{error.message}: measures quality on ARM", error.hint)
    return Check("arm64", "pass", f"{interpreter.name}: measures quality on ARM (edgekit verify --on arm64)")


def _node() -> Check:
    node = shutil.which("node")
    if node:
        return Check("node", "pass", f"{node}: runs bundles in transformers.js")
    return Check("node", "skip", "not installed: runs bundles in transformers.js", "apt-get install nodejs npm")
