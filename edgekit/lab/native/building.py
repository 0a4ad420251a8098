"""Compile the native runner for a machine, once, into the cache; find the ONNX Runtime library that it opens there."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import LabError
from edgekit.host.cache import cache_folder, make_own, require_own
from edgekit.run.arm64 import find_arm64
from edgekit.run.runtime import onnxruntime
from edgekit.types import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Sequence

MACHINES = {"x86_64": "x86_64-linux-gnu-g++", "aarch64": "aarch64-linux-gnu-g++"}
"""Machines that a runner can be compiled for, and Debian's compiler for each."""

PROGRAM = "edgekit-runner"

OLDEST_API = 22
"""The first version of ONNX Runtime's C API with providers in packages of their own."""

_SOURCES = Path(__file__).parent
_HEADER = "onnxruntime_c_api.h"
_SYSTEM = (Path("/usr/local/include/onnxruntime"), Path("/usr/include/onnxruntime"))
_PACKAGE, _SUITE = "libonnxruntime-dev", "sid"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def build_runner(machine: str, headers: Path | None = None, progress: Progress = silent) -> Path:
    """Compile the runner for a machine and return the program; at once if that was done before.

    Args:
        machine: one of MACHINES.
        headers: the folder with onnxruntime_c_api.h; by default the system's, else those of Debian's package, which are
            fetched once and only unpacked.
        progress: called before and after compiling.

    Raises:
        LabError: an unknown machine; cmake, a compiler or the headers are missing; the compiler failed.
        ConfigError: the cache is writable by other users.
    """
    compiler, cmake = _compiler(machine), _program("cmake", "apt-get install cmake")
    headers = headers or _find_headers()
    _require_api(headers)
    sources = sorted(p for p in _SOURCES.iterdir() if p.suffix in (".cpp", ".h", ".txt"))
    given = [p.read_bytes() for p in (*sources, *sorted(headers.glob("*.h")))]
    digest = sha256(b"\0".join([machine.encode(), compiler.encode(), *given])).hexdigest()[:16]
    place = require_own(cache_folder() / "native" / f"{machine}-{digest}")
    if (place / PROGRAM).is_file():
        return place / PROGRAM
    progress("runner", 0, 1, "programs")
    with tempfile.TemporaryDirectory(prefix=".build-", dir=make_own(place.parent)) as name:
        build = Path(name) / "build"
        settings = [f"-DONNXRUNTIME_HEADERS={headers.resolve()}", f"-DCMAKE_CXX_COMPILER={compiler}"]
        if machine != platform.machine():
            settings += ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={machine}"]
        _run([cmake, "-S", str(_SOURCES), "-B", str(build), *settings])
        _run([cmake, "--build", str(build)])
        made = make_own(place) / PROGRAM
        (build / PROGRAM).chmod(0o700)
        (build / PROGRAM).rename(made)
    progress("runner", 1, 1, "programs")
    return made


def find_runtime(machine: str) -> Path:
    """The ONNX Runtime library for a machine: this Python's, or that of the system for emulated ARM.

    Raises:
        LabError: there is none here.
        RunError: the system for emulated ARM is not installed.
    """
    if machine == platform.machine():
        folder = Path(onnxruntime.__file__).parent
    elif machine == "aarch64":
        folder = Path((find_arm64().environment or {})["PYTHONPATH"]) / "onnxruntime"
    else:
        raise LabError(
            f"there is no ONNX Runtime for {machine} here", "unpack one for that machine, and pass its library"
        )
    return next((folder / "capi").glob("libonnxruntime.so.*"))


def _compiler(machine: str) -> str:
    if machine not in MACHINES:
        raise LabError(
            f"there is no compiler for '{machine}'",
            f"pass one of {', '.join(MACHINES)}; docs/native.md has the commands for Android",
        )
    if machine == platform.machine() and (own := shutil.which("g++") or shutil.which("clang++")):
        return own
    return _program(MACHINES[machine], f"apt-get install g++-{machine.replace('_', '-')}-linux-gnu")


def _program(name: str, fix: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise LabError(f"{name}, which compiles the native runner, is not installed", fix)
    return found


def _require_api(headers: Path) -> None:
    found = _api(headers)
    if found is None:
        raise LabError(f"{headers} has no {_HEADER}", "pass the folder `include` of a release of ONNX Runtime")
    if found < OLDEST_API:
        raise LabError(
            f"the headers in {headers} are of version {found} of the C API, but {OLDEST_API} is needed",
            f"pass `headers` of ONNX Runtime 1.{OLDEST_API} or newer",
        )


def _api(headers: Path) -> int | None:
    """The version of the C API of some headers; None if there are none."""
    try:
        text = (headers / _HEADER).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"^#define ORT_API_VERSION (\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _find_headers() -> Path:
    """The system's headers if they are new enough, else those in the cache, which are fetched if necessary."""
    for folder in _SYSTEM:
        if (_api(folder) or 0) >= OLDEST_API:
            return folder
    kept = require_own(cache_folder() / "native" / "headers")
    if _api(kept) is None:
        _fetch_headers(kept)
    return kept


def _fetch_headers(place: Path) -> None:
    """Unpack the headers of Debian's package, from the system's own mirror with a list of sources for this alone."""
    fix = "unpack a release of ONNX Runtime and pass its folder `include` as `headers`"
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise LabError("ONNX Runtime's headers are not installed", fix)
    with tempfile.TemporaryDirectory(prefix=".headers-", dir=make_own(place.parent)) as name:
        work = Path(name)
        for folder in ("lists/partial", "archives/partial", "parts"):
            (work / folder).mkdir(parents=True)
        (work / "status").touch()
        (work / "sources").write_text(f"deb [signed-by={_KEYRING}] {_mirror(fix)} {_SUITE} main\n", encoding="utf-8")
        settings = {
            "Dir::State": work,
            "Dir::State::status": work / "status",
            "Dir::Cache": work,
            "Dir::Etc::sourcelist": work / "sources",
            "Dir::Etc::sourceparts": work / "parts",
            "Debug::NoLocking": "1",
            "Acquire::Languages": "none",
            # Require the distribution's signatures, whatever this machine's settings allow.
            "Acquire::AllowInsecureRepositories": "false",
            "APT::Get::AllowUnauthenticated": "false",
        }
        apt = ["apt-get", "-q", *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]
        _run([*apt, "update"], fix=fix)
        _run([*apt, "download", _PACKAGE], fix=fix, folder=work)
        _run(["dpkg-deb", "-x", str(next(work.glob("*.deb"))), str(work / "root")], fix=fix)
        shutil.copytree(work / "root" / "usr" / "include" / "onnxruntime", work / "headers")
        (work / "headers").chmod(0o700)
        shutil.rmtree(place, ignore_errors=True)
        (work / "headers").rename(place)


def _mirror(fix: str) -> str:
    """Where this system's packages of Debian come from."""
    said = _run(["apt-get", "indextargets", "--format", "$(ORIGIN) $(SITE) $(REPO_URI)"], fix=fix).splitlines()
    found = [line.split()[-1] for line in said if line.startswith("Debian ") and "security" not in line]
    if not found:
        raise LabError("ONNX Runtime's headers are not installed, and this system's packages are not Debian's", fix)
    return found[0]


def _run(command: Sequence[str], *, fix: str = "", folder: Path | None = None) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL, cwd=folder,
        env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    if done.returncode:
        said = (done.stderr + done.stdout).strip().splitlines()
        errors = [line for line in said if re.search(r"error|^E:", line, re.IGNORECASE)]
        reason = (errors or said or [f"exit status {done.returncode}"])[0]
        raise LabError(
            f"{Path(command[0]).name} failed: {reason}", fix or f"run `{' '.join(command)}` to see its full output"
        )
    return done.stdout
