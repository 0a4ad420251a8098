"""Safe access to an untrusted checkpoint folder: plain files of bounded size, no links that lead out of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from edgekit.errors import SourceError
from edgekit.strangers import open_plain, parse_json, read_plain, reading

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
"""Most bytes of files that are read whole. The largest published: 33 MB for tokenizer.json, 3 MB for others."""


class Folder:
    """The files of a checkpoint folder. Those of a hub snapshot are links into its repository's ``blobs``."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        repository = self.path.parent.parent
        is_snapshot = self.path.parent.name == "snapshots" and (repository / "blobs").is_dir()
        self._roots = (self.path, repository / "blobs") if is_snapshot else (self.path,)

    def has(self, name: str) -> bool:
        """Whether anything with this name exists, even a pipe or a broken link, which ``read`` refuses."""
        return os.path.lexists(self.path / name)

    def read(self, name: str, *, limit: str = "") -> bytes:
        """The content of a file. ``limit`` names the file in LIMITS with its size limit, by default itself.

        Raises:
            SourceError: it is missing, too large, or not a plain file.
        """
        most = LIMITS[limit or ("chat_template.jinja" if name.endswith(".jinja") else name)]
        return read_plain(self.path / name, most, error=SourceError, within=self._roots)

    def read_json(self, name: str, *, limit: str = "") -> dict[str, Any]:
        """Read a JSON object. Raises SourceError as ``read``, and for anything but an object."""
        return parse_json(self.read(name, limit=limit), str(self.path / name), error=SourceError)

    def optional_json(self, name: str) -> dict[str, Any]:
        """As read_json, but an empty object if the file does not exist."""
        return self.read_json(name) if self.has(name) else {}

    def open(self, name: str) -> FileIO:
        """Open a file to read. Raises SourceError if it is missing or not a plain file of this folder."""
        return open_plain(self.path / name, error=SourceError, within=self._roots)

    def names_in(self, name: str) -> list[str]:
        """Sorted names in a subfolder; [] if there is no such folder."""
        return sorted(os.listdir(self.path / name)) if (self.path / name).is_dir() else []  # noqa: PTH208

    def names(self) -> list[str]:
        """Sorted names in the folder. Raises SourceError if it cannot be listed."""
        with reading(self.path, error=SourceError):
            return sorted(os.listdir(self.path))  # noqa: PTH208 - names, not paths
