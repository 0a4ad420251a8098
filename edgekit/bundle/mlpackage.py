"""Write a Core ML package from static graphs. Needs coremltools (extra ``coreml``)."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from edgekit.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NEEDED = 9
"""The supported major version of coremltools."""


def require_coremltools() -> tuple[str, str]:
    """The name and version of coremltools.

    Raises:
        BundleError: it is missing or has another major version.
    """
    fix = "pip install 'edgekit[coreml]'"
    try:
        found = version("coremltools")
    except PackageNotFoundError as error:
        raise BundleError("a Core ML package needs coremltools, which is not installed", fix) from error
    if int(found.split(".")[0]) != NEEDED:
        raise BundleError(f"coremltools {found} is installed, but {NEEDED}.* is needed", fix)
    return "coremltools", found


def make_mlpackage(graphs: Sequence[tuple[str, Path]], out: Path) -> tuple[Path, ...]:
    """Write static graphs as the functions of one .mlpackage, in a subprocess.

    Args:
        graphs: each function's name and graph; the first is the default function.
        out: the package's folder, which must not exist.

    Returns:
        Its files, sorted.

    Raises:
        BundleError: coremltools is missing, or a graph cannot be translated.
    """
    require_coremltools()
    command = [
        sys.executable,
        "-P",
        "-m",
        "edgekit.bundle.mlprogram",
        str(out),
        *(f"{name}={path}" for name, path in graphs),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise BundleError(
            f"coremltools could not write {out.name}: {lines[-1] if lines else f'status {done.returncode}'}",
            "build without `mlpackage`",
        )
    return tuple(sorted(path for path in out.rglob("*") if path.is_file()))
