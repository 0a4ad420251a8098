"""numpy and onnxruntime for a device's own processor, libc and Python: downloaded here, kept in the cache."""

from __future__ import annotations

import re
import shutil
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from edgekit.errors import LabError, RunError
from edgekit.host.cache import cache_folder, make_own, require_own
from edgekit.types import Progress, silent

if TYPE_CHECKING:
    from edgekit.lab.driver.python import Python

LEAST_GLIBC = 17
"""The glibc 2 of the oldest tag, manylinux2014."""

_MACHINES = {"aarch64": "aarch64", "arm64": "aarch64", "x86_64": "x86_64", "amd64": "x86_64"}
_NATIVE = "or build the native runner: docs/lab.md"


def find_wheels(python: Python, address: str, progress: Progress = silent) -> tuple[Path, ...]:
    """The wheels for a device's Python, of this machine's version of onnxruntime; from the cache or the network.

    Args:
        python: the device's.
        address: the device's, for messages.
        progress: called when they are downloaded.

    Raises:
        LabError: there are none for its processor, libc or Python, or they cannot be downloaded.
        RunError: edgekit has no hashes for this version of onnxruntime.
        ConfigError: the cache is writable by other users.
    """
    runtime, platforms = version("onnxruntime"), _platforms(python, address)
    libc = python.libc.replace(" ", "-").replace(".", "_")
    folder = cache_folder() / "wheels" / f"{runtime}-cp{python.minor.replace('.', '')}-{platforms[-1]}-{libc}"
    if not require_own(folder).is_dir():
        from edgekit.run.wheels import download_wheels, runtime_pins

        runtime_pins(runtime)
        progress("wheels for the device", 0, 0, "B")
        work = Path(mkdtemp(prefix=".new-", dir=make_own(folder.parent)))
        try:
            download_wheels(work, runtime=runtime, python=python.minor, platforms=platforms)
        except RunError as error:
            shutil.rmtree(work, ignore_errors=True)
            raise _none(python, address, runtime, error) from error
        work.rename(folder)
    return tuple(sorted(folder.glob("*.whl")))


def _platforms(python: Python, address: str) -> tuple[str, ...]:
    """The tags of wheels that run there, the oldest last."""
    machine = _MACHINES.get(python.machine.lower())
    if machine is None or python.bits != 64:
        bits = "" if python.bits == 64 else f" with {python.bits} bits"
        raise LabError(
            f"{address}: there is no onnxruntime for Python on {python.machine or 'its processor'}{bits}",
            "use a 64-bit system: aarch64 or x86-64",
        )
    found = re.fullmatch(r"glibc 2\.(\d{1,3})", python.libc)
    if python.system != "linux" or not found or python.implementation != "CPython":
        what = f"{python.implementation} on {python.system} with {python.libc or 'an unknown libc'}"
        raise LabError(
            f"{address}: there is no onnxruntime for {what}",
            f"use CPython on a Linux with glibc (Debian, Ubuntu, Raspberry Pi OS), {_NATIVE}",
        )
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(int(found[1]), LEAST_GLIBC - 1, -1)]
    return (*tags, f"manylinux2014_{machine}")


def _none(python: Python, address: str, runtime: str, error: RunError) -> LabError:
    where = f"CPython {python.version}, {python.machine}, {python.libc}"
    if "No matching distribution" in error.message or "find a version" in error.message:
        return LabError(
            f"{address}: onnxruntime {runtime} or numpy has no wheel for {where}",
            f"install a Python from 3.11 on that they support, on a system with a newer glibc, {_NATIVE}",
        )
    return LabError(f"{address}: the wheels for {where} could not be downloaded: {error.message}", error.hint)
