"""A system with glibc and Python for an Android phone without root: the one that ``doctor --install arm64`` makes.

Its programs are started through its own loader, so nothing of Android's libraries is touched, and no root is needed.
"""

from __future__ import annotations

import tarfile
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgekit.errors import LabError
from edgekit.host.cache import cache_folder, make_own, require_own
from edgekit.lab.driver.kept import Item, file_of, keep
from edgekit.lab.driver.python import ask_python
from edgekit.types import Progress, silent

if TYPE_CHECKING:
    from pathlib import Path

    from edgekit.lab.driver.python import Python
    from edgekit.lab.transport import Transport

_PARTS = ("lib", "usr/bin", "usr/lib")
_LOADER = "ld-linux-aarch64.so.1"
_LIBRARIES = ("usr/lib/aarch64-linux-gnu", "lib/aarch64-linux-gnu")


def push_system(transport: Transport, progress: Progress = silent) -> Python:
    """Bring the system to a phone unless it is there, and return its Python.

    Raises:
        LabError: it is not installed here, or does not start there.
    """
    root = require_own(cache_folder() / "arm64")
    python = next((p for p in root.glob("usr/bin/python3.*") if p.suffix[1:].isdigit()), None)
    loader = next((p for p in (root / "lib" / _LOADER, *root.glob(f"*/lib/{_LOADER}")) if p.exists()), None)
    if python is None or loader is None:
        raise LabError(
            f"{transport.address}: no Python there, and the system that is pushed to phones is not installed here",
            "run `edgekit doctor --install arm64`, or install Python in the app Termux",
        )
    (folder,) = keep(
        transport, [Item("system", (file_of("system.tar", _archive(root)),), unpack="tar")], None, progress
    )
    libraries = ":".join(f"{folder}/{path}" for path in _LIBRARIES)
    started = (f"{folder}/{loader.relative_to(root)}", "--library-path", libraries)
    program = f"{folder}/{python.relative_to(root)}"
    return ask_python(transport, ("env", f"PYTHONHOME={folder}/usr", *started, program))


def _archive(root: Path) -> Path:
    """The system as a tar in the cache, made once for each installation; the same files make the same bytes."""
    path = require_own(cache_folder() / "systems" / f"arm64-{root.stat().st_mtime_ns}.tar")
    if not path.is_file():
        with TemporaryDirectory(dir=make_own(path.parent)) as work:
            new = path.parent / work / path.name
            with tarfile.open(new, "w") as archive:
                for part in _PARTS:
                    archive.add(root / part, part, filter=_plain)
            new.rename(path)
    return path


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """An entry without owner and time; None for what Python makes again."""
    if entry.name.endswith("__pycache__"):
        return None
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry
