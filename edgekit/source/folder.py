"""A checkpoint's folder as a stranger's: plain files of bounded sizes, and no link that leads out of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from edgekit.errors import SourceError
from edgekit.strangers import open_plain, parse_json, read_plain

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path

LIMITS = {
    "config.json": 4 << 20,
    "generation_config.json": 1 << 20,
    "special_tokens_map.json": 4 << 20,
    "added_tokens.json": 4 << 20,
    "tokenizer_config.json": 16 << 20,
    "tokenizer.json": 64 << 20,
    "tokenizer.model": 16 << 20,
    "chat_template.json": 1 << 20,
    "chat_template.jinja": 1 << 20,
    "model.safetensors.index.json": 16 << 20,
}
"""Bytes of each file that is read whole. The largest published: 33 MB of tokenizer.json, 3 MB of any other."""


class Folder:
    """The files of a checkpoint's folder. Those of a hub's snapshot are links into the ``blobs`` of its repository."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        repository = self.path.parent.parent
        is_snapshot = self.path.parent.name == "snapshots" and (repository / "blobs").is_dir()
        self._roots = (self.path, repository / "blobs") if is_snapshot else (self.path,)

    def has(self, name: str) -> bool:
        """Whether anything of this name is there: a pipe or a link to nothing too, which ``read`` then refuses."""
        return os.path.lexists(self.path / name)

    def read(self, name: str, *, limit: str = "") -> bytes:
        """The content of a file of LIMITS, of one like it (``limit``), or of a template in a folder of them.

        Raises:
            SourceError: it is not there, larger, or not a plain file.
        """
        most = LIMITS[limit or ("chat_template.jinja" if name.endswith(".jinja") else name)]
        return read_plain(self.path / name, most, error=SourceError, within=self._roots)

    def read_json(self, name: str, *, limit: str = "") -> dict[str, Any]:
        """A JSON object. Raises SourceError as ``read``, and for anything else than an object."""
        return parse_json(self.read(name, limit=limit), str(self.path / name), error=SourceError)

    def optional_json(self, name: str) -> dict[str, Any]:
        """As read_json; an empty object where there is nothing of this name."""
        return self.read_json(name) if self.has(name) else {}

    def open(self, name: str) -> FileIO:
        """A file to read from. Raises SourceError when it is not there or not a plain file of this folder."""
        return open_plain(self.path / name, error=SourceError, within=self._roots)

    def names_in(self, name: str) -> list[str]:
        """Names of everything in a folder of this one, sorted; [] where there is no such folder."""
        return sorted(os.listdir(self.path / name)) if (self.path / name).is_dir() else []  # noqa: PTH208

    def names(self) -> list[str]:
        """Names of everything in the folder, sorted. Raises SourceError when it cannot be listed."""
        try:
            return sorted(os.listdir(self.path))  # noqa: PTH208 - names, not paths
        except OSError as error:
            raise SourceError(
                f"{self.path} cannot be read: {error.strerror}", "check the folder and its permissions"
            ) from error
