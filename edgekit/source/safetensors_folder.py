"""Open Hugging Face folders: config.json and one or more safetensors files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.errors import SourceError
from edgekit.source.architectures import FAMILIES, parse_config
from edgekit.source.fields import shown
from edgekit.source.folder import Folder
from edgekit.source.layout import match_tensors, split_fused
from edgekit.source.reasons import adapter_error, refuse_other_kinds
from edgekit.source.sidefiles import collect_files
from edgekit.source.weight_files import find_tensors, gguf_hint
from edgekit.types import Checkpoint, Provenance

if TYPE_CHECKING:
    from pathlib import Path

    from edgekit.types import ModelSpec


def open_folder(path: Path, provenance: Provenance, *, data_only: bool = False) -> Checkpoint:
    """Open a Hugging Face folder. Only headers and small files are read. ``data_only`` as in open_model.

    Raises:
        SourceError: anything is missing, damaged, contradictory, out of range or unknown.
    """
    folder = Folder(path)
    config, spec = read_spec(folder)
    where = str(folder.path / "config.json")
    found, files = find_tensors(folder, config)
    refuse_other_kinds(found, config.get("architectures"), str(folder.path))
    if FAMILIES[spec.architecture].fused:
        found = split_fused(spec, found)
    spec, weights = match_tensors(spec, found, files, where)
    side_files, spec = collect_files(folder, config, spec, data_only=data_only)
    return Checkpoint(spec, weights, side_files, provenance, weights.left_aside)


def read_spec(folder: Folder) -> tuple[dict[str, Any], ModelSpec]:
    """Read config.json of a Hugging Face folder; return it and the spec.

    Raises:
        SourceError: config.json is missing, or it or generation_config.json is invalid.
    """
    path = folder.path
    if folder.has("edgekit.json"):
        raise SourceError(f"{path} is an edgekit bundle, not a checkpoint", "pass the checkpoint it was built from")
    _refuse_adapter(folder)
    if not folder.has("config.json"):
        gguf = [name for name in folder.names() if name.endswith(".gguf")]
        if gguf:
            raise SourceError(f"{path} has no config.json, but has {shown(gguf[0])}", gguf_hint(folder, gguf))
        if folder.has("params.json"):
            raise SourceError(
                f"{path} has no config.json, but has params.json: it is the model's original release",
                "use the checkpoint in the format of transformers (config.json and model.safetensors)",
            )
        below = next((name for name in folder.names() if folder.has(f"{name}/config.json")), None)
        hint = f"pass its subfolder {shown(below)}, which has one" if below else "pass the folder of a checkpoint"
        raise SourceError(f"{path} has no config.json", hint)
    config = folder.read_json("config.json")
    return config, parse_config(config, str(path / "config.json"), folder.optional_json("generation_config.json"))


def _refuse_adapter(folder: Folder) -> None:
    """Raise SourceError for a folder with adapter_config.json, an adapter for transformers whatever else is there."""
    if folder.has("adapter_config.json"):
        beside = any(folder.has(name) for name in ("model.safetensors", "model.safetensors.index.json"))
        raise adapter_error(str(folder.path), "adapter_config.json", beside=beside)
