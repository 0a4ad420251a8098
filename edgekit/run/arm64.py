"""A Python for ARM with numpy and onnxruntime under qemu's user mode, set up once in the cache, without root.

Its system consists of the distribution's arm64 packages, resolved by apt with a separate state and checked against the
distribution's signatures; its wheels come from pip with the hashes in edgekit/locks. Everything is only unpacked.
Results are those of ARM's kernels; its speed says nothing about a device.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import RunError
from edgekit.host.cache import cache_folder, make_own, require_own
from edgekit.host.processor import processor_class
from edgekit.run.runtime import onnxruntime
from edgekit.run.subprocess_predictor import Interpreter, this_interpreter
from edgekit.run.wheels import download_wheels
from edgekit.types import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Sequence

QEMU = ("qemu-aarch64-static", "qemu-aarch64")


@dataclass(frozen=True)
class Core:
    """An emulated processor: qemu's name for it, and its features and part number in /proc/cpuinfo."""

    cpu: str
    features: str
    part: str


_NEON = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_DOTPROD = f"{_NEON} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"

CORES = {
    "NEON": Core("cortex-a72", _NEON, "0xd08"),
    "dotprod": Core("cortex-a76", _DOTPROD, "0xd0b"),
    "i8mm": Core("max", f"{_DOTPROD} i8mm bf16", "0xd0b"),
}
"""The processors by class (see machine.CLASSES)."""

STANDARD = "dotprod"
"""The default class to score bundles on: most phones and boards of recent years."""

NO_KLEIDIAI = (("mlas.disable_kleidiai", "1"),)
"""The session config entry that selects ONNX Runtime's own kernels on ARM; it has no effect elsewhere."""

INSTALL = "edgekit doctor --install arm64"

_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6", "libgomp1")
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
_CORE = (
    "processor\t: {n}\nBogoMIPS\t: 108.00\nFeatures\t: {core.features}\nCPU implementer\t: 0x41\n"
    "CPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: {core.part}\nCPU revision\t: 1\n\n"
)


def find_arm64(kind: str = STANDARD) -> Interpreter:
    """The Python to run on ARM: this one on an ARM machine, an emulated one elsewhere.

    Args:
        kind: the class to emulate, one of CORES.

    Raises:
        RunError: qemu is not installed, or ``install_arm64`` has not been run for this version of onnxruntime.
        ConfigError: the cache is writable by other users.
    """
    if platform.machine() in ("aarch64", "arm64"):
        return this_interpreter()
    qemu = _qemu()
    root = _folder()
    python = _python(require_own(root))
    if python is None:
        raise RunError("the system for emulated ARM is not installed", f"run `{INSTALL}`, which needs no root")
    require_own(python)
    if not (require_own(root / "site") / f"onnxruntime-{onnxruntime.__version__}.dist-info").is_dir():
        raise RunError(f"{root} has another onnxruntime than {onnxruntime.__version__}", f"run `{INSTALL}` again")
    core, root = CORES[kind], _root_of(root, kind)
    if not root.is_dir():
        raise RunError(f"{root.parent.parent} has no processor of class {kind}", f"run `{INSTALL}` again")
    # The complete environment: no search path of the host, and onnxruntime's telemetry is off.
    environment = {"PYTHONHOME": str(root / "usr"), "PYTHONPATH": str(root / "site"), "PYTHONSAFEPATH": "1"}
    return Interpreter(
        f"emulated ARM ({core.cpu})",
        (qemu, "-cpu", core.cpu, "-L", str(root), str(root / "usr" / "bin" / python.name)),
        environment | {"ORT_DISABLE_TELEMETRY": "1"},
        processor_class(root),
    )


def install_arm64(progress: Progress = silent) -> Path:
    """Set up the system for emulated ARM in the cache, atomically, and return its folder.

    Raises:
        RunError: qemu, apt-get or dpkg-deb is not installed, or one of them or pip failed.
        ConfigError: the cache is writable by other users.
    """
    _qemu()
    for program in ("apt-get", "dpkg-deb"):
        if not shutil.which(program):
            raise RunError(
                f"{program} is not installed; the ARM system is made from Debian packages", "use Debian or Ubuntu"
            )
    place = require_own(_folder())
    with tempfile.TemporaryDirectory(prefix=".arm64-", dir=make_own(place.parent)) as name:
        work, root = Path(name), Path(name) / "root"
        progress("ARM system", 0, 3, "steps")
        _unpack_system(work / "apt", root)
        progress("ARM system", 1, 3, "steps")
        _unpack_wheels(work / "wheels", root)
        progress("ARM system", 2, 3, "steps")
        for kind, core in CORES.items():
            _show_core(root, kind, core)
        root.chmod(0o700)
        shutil.rmtree(place, ignore_errors=True)
        root.rename(place)
    progress("ARM system", 3, 3, "steps")
    return place


def _root_of(system: Path, kind: str) -> Path:
    """The root folder for qemu of a class: the system itself, or a folder with links into it."""
    return system if kind == STANDARD else system / "classes" / kind


def _show_core(system: Path, kind: str, core: Core) -> None:
    """Put a /proc/cpuinfo into the root of a class.

    Without one, qemu shows the host's, and onnxruntime crashes when it reads an x86 one on ARM.
    """
    root = _root_of(system, kind)
    if root != system:
        root.mkdir(parents=True)
        for entry in sorted(system.iterdir()):
            if entry.name not in ("classes", "proc"):
                (root / entry.name).symlink_to(Path("..", "..", entry.name))
    (root / "proc").mkdir()
    text = "".join(_CORE.format(n=n, core=core) for n in range(os.cpu_count() or 1))
    (root / "proc" / "cpuinfo").write_text(text, encoding="utf-8")


def _qemu() -> str:
    for name in QEMU:
        if found := shutil.which(name):
            return found
    raise RunError("qemu-aarch64-static, which runs ARM programs, is not installed", "apt-get install qemu-user-static")


def _folder() -> Path:
    return cache_folder() / "arm64"


def _python(root: Path) -> Path | None:
    """The interpreter in an ARM system, such as ``python3.11``."""
    return next((p for p in root.glob("usr/bin/python3.*") if p.suffix[1:].isdigit()), None)


def _unpack_system(work: Path, root: Path) -> None:
    """Unpack Python's packages and all their dependencies from the system's own sources."""
    for folder in ("lists/partial", "archives/partial"):
        (work / folder).mkdir(parents=True)
    (work / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "Dir::State": str(work),
        "Dir::State::status": str(work / "status"),
        "Dir::Cache": str(work),
        "Debug::NoLocking": "1",
        "Acquire::Languages": "none",
        # Require the distribution's signatures, whatever this machine's settings allow.
        "Acquire::AllowInsecureRepositories": "false",
        "APT::Get::AllowUnauthenticated": "false",
    }
    apt = ["apt-get", "-q", "-y", *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]
    _run([*apt, "update"])
    _run([*apt, "--no-install-recommends", "--download-only", "install", *_PACKAGES])
    (root / "usr" / "lib").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")  # packages use both paths
    for package in sorted((work / "archives").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(root)])


def _unpack_wheels(work: Path, root: Path) -> None:
    """Unpack this version of onnxruntime and a matching numpy for the ARM system's Python."""
    python = _python(root)
    if python is None:
        raise RunError(
            "the distribution's arm64 packages contain no Python interpreter",
            "report this, with the distribution's name",
        )
    work.mkdir()
    version = python.name.removeprefix("python")
    download_wheels(work, runtime=onnxruntime.__version__, python=version, platforms=_PLATFORMS)
    for wheel in work.glob("*.whl"):
        with zipfile.ZipFile(wheel) as file:
            file.extractall(root / "site")


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in said if line.startswith(("E:", "dpkg-deb: error"))]
        reason = (errors or said or [f"exit status {done.returncode}"])[-1]
        raise RunError(
            f"{Path(command[0]).name} failed to set up the ARM system: {reason}",
            f"run `{' '.join(command)}` to see its full output",
        )
