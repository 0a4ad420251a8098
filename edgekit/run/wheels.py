"""ONNX Runtime's and numpy's wheels for another machine, downloaded here by pip with the hashes in edgekit/locks."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from edgekit.errors import RunError
from edgekit.locks import STRICT, pins

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def download_wheels(folder: Path, *, runtime: str, python: str, platforms: Sequence[str]) -> None:
    """Put the wheels of a version of onnxruntime, and of a numpy for all versions, into a folder.

    Args:
        folder: an existing folder, which gets a lock file too.
        runtime: the version of onnxruntime.
        python: the version of CPython that loads them: ``3.11``.
        platforms: the platforms' tags, such as ``manylinux_2_28_aarch64``.

    Raises:
        RunError: edgekit has no hashes for that version, or pip found no such wheels or failed.
    """
    lock = folder / "lock.txt"
    lock.write_text("\n".join(runtime_pins(runtime)), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "-q", *STRICT, "--no-deps", "-d", str(folder)]
    pip += [f"--python-version={python}", f"--abi=cp{python.replace('.', '')}", "--implementation=cp"]
    _run([*pip, *(f"--platform={name}" for name in platforms), "--requirement", str(lock)])


def runtime_pins(runtime: str) -> tuple[str, str]:
    """The pins with hashes of a version of onnxruntime and of the numpy for all versions.

    Raises:
        RunError: edgekit has no hashes for that version.
    """
    known = pins("runtime")
    wanted = f"onnxruntime=={runtime}"
    if wanted not in known:
        newest = next(reversed([pin for pin in known if pin.startswith("onnxruntime==")]))
        raise RunError(
            f"edgekit has no hashes for onnxruntime {runtime} on other machines",
            f"pip install {newest}, or upgrade edgekit",
        )
    return known[wanted], next(line for pin, line in known.items() if pin.startswith("numpy=="))


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in said if line.startswith("ERROR:")]
        reason = (errors or said or [f"exit status {done.returncode}"])[-1]
        raise RunError(f"pip: {reason}", f"run `{' '.join(command)}` to see its full output")
