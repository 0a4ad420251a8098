"""Open a model by its configuration alone, without its weights: the spec and the tensor shapes that follow from it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.errors import SourceError
from edgekit.source.architectures import parse_config
from edgekit.source.folder import Folder
from edgekit.source.hub import HUB_ID, fetch_config
from edgekit.source.layout import Shapes, tensor_shapes
from edgekit.source.model import find_path, is_folder, open_model
from edgekit.source.packaged import PACKAGED, is_cached
from edgekit.source.safetensors_folder import read_spec
from edgekit.source.sidefiles import collect_files
from edgekit.types import Checkpoint, Provenance

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


def open_config_only(model: str, *, revision: str | None = None, offline: bool = False) -> Checkpoint:
    """Open a model like ``open_model``, but without downloading or reading weights.

    A folder needs only config.json, and only config.json of a hub id is downloaded. Tokenizer files are included if
    they are next to it. A GGUF file is opened as usual, since its header is its configuration.

    Args:
        model: a packaged model's name, a folder, a ``.gguf`` file or a hub id ``org/name``.
        revision: branch, tag or commit of a hub id.
        offline: use only what is cached, never the network.

    Raises:
        SourceError: the configuration is missing or of an unknown kind.
    """
    path = find_path(model)
    if (row := PACKAGED.get(model)) and not is_cached(row):
        spec = parse_config(row.config, f"the configuration of {row.name}")
        return Checkpoint(spec, OutlineWeights(row.name, tensor_shapes(spec)), (), Provenance(row.name, "packaged", ""))
    if model not in PACKAGED and is_folder(path):
        path = path.resolve()
        return _outline_folder(path, Provenance(path.name, "folder", "", "", str(path)))
    if model in PACKAGED or os.path.lexists(path) or path.suffix == ".gguf" or not HUB_ID.fullmatch(model):
        return open_model(model, revision=revision, offline=True)
    folder = fetch_config(model, revision=revision, offline=offline)
    return _outline_folder(folder, Provenance(model, "hub", "", folder.name, str(folder)))


def _outline_folder(path: Path, provenance: Provenance) -> Checkpoint:
    folder = Folder(path)
    config, spec = read_spec(folder)
    files, spec = collect_files(folder, config, spec) if folder.has("tokenizer.json") else ((), spec)
    return Checkpoint(spec, OutlineWeights(provenance.id, tensor_shapes(spec)), files, provenance)


@dataclass(frozen=True)
class OutlineWeights:
    """Weights of which only names and shapes are known."""

    model: str
    shapes: Shapes

    def names(self) -> tuple[str, ...]:
        """All tensor names, in model order."""
        return tuple(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the configuration. Raises SourceError for an unknown name."""
        if name not in self.shapes:
            raise SourceError(f"{self.model} has no tensor '{name}'", "use Hugging Face's LLaMA tensor names")
        return self.shapes[name]

    def stored(self, name: str) -> str:  # noqa: ARG002 - the seam's signature
        """Always "": not known."""
        return ""

    def nbytes(self, name: str) -> int:
        """Always raises SourceError: not known."""
        raise self._absent(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:  # noqa: ARG002
        """Always raises SourceError: there is nothing to read."""
        raise self._absent(name)

    def _absent(self, name: str) -> SourceError:
        return SourceError(
            f"{self.model}: cannot read '{name}', because only the configuration was opened", "open it with open_model"
        )
