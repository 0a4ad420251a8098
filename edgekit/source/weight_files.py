"""Which files of a folder make the model: those that transformers reads, or a refusal where there are two models.

transformers (modeling_utils, _get_resolved_checkpoint_files) reads the file that config.json names as
``transformers_weights``, else model.safetensors, else the shards of model.safetensors.index.json, else pickles. Of
shards it reads every tensor, wherever the index places it.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from edgekit.errors import SourceError
from edgekit.source.fields import shown
from edgekit.source.reasons import adapter_error, is_buffer
from edgekit.source.safetensors_file import MAX_TENSORS, read_shard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edgekit.source.folder import Folder
    from edgekit.source.tensors import Extent

    Found = tuple[dict[str, Extent], tuple[Path, ...]]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SHARD = re.compile(r".*-(\d{5})-of-(\d{5})\.safetensors")
_OWN_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".bin.index.json")
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state).*")
"""Pickles that a trainer leaves beside a model."""
_OTHER_FRAMEWORKS = {".h5": "TensorFlow", ".msgpack": "Flax", ".ot": "Rust", ".onnx": "ONNX", ".npz": "MLX"}

MAX_SHARDS = 1024

PICKLE_REASON = "pickle checkpoints run code when they are opened, so edgekit never reads them"
PICKLE_HINT = (
    "use the safetensors files of the same model, or convert once in a sandbox: load it with transformers and "
    "call save_pretrained(folder, safe_serialization=True)"
)
_ONE_ONLY = "delete or move the files that are not meant, so that one model is left"


def is_pickle(name: str) -> bool:
    """Whether a file of this name holds weights as a pickle, or is the index of such files."""
    return name.endswith(_PICKLES) and not _NO_WEIGHTS.fullmatch(name)


def find_tensors(folder: Folder, config: Mapping[str, Any]) -> Found:
    """All tensors of a folder by name, and the files they lie in.

    Args:
        folder: the checkpoint's.
        config: its config.json.

    Raises:
        SourceError: there are no weights, or two models, or a file or index is damaged or leads out of the folder.
    """
    names = folder.names()
    if (named := config.get("transformers_weights")) is not None:
        return _read_named(folder, named)
    own = {name for name in names if _OWN_SHARD.fullmatch(name)}
    if _INDEX not in names and _SINGLE not in names:
        return _read_only(folder, names)
    where = _read_map(folder, _INDEX) if _INDEX in names else {}
    shards = set(where.values())
    if _SINGLE in names and _SINGLE not in shards:
        if others := sorted((shards | own) & set(names)):
            raise SourceError(
                f"{folder.path} holds two models: {_SINGLE}, and one in shards ({_listed(others)})", _ONE_ONLY
            )
        return _read_files(folder, [_SINGLE])
    if others := sorted(own - shards):
        raise SourceError(
            f"{folder.path} holds shards that {_INDEX} does not name, so perhaps of another model ({_listed(others)})",
            _ONE_ONLY,
        )
    return _read_index(folder, _INDEX, where)


def _read_named(folder: Folder, named: object) -> Found:
    """The file or index that config.json names."""
    where = folder.path / "config.json"
    if not isinstance(named, str) or not _is_plain(named):
        raise SourceError(
            f"{where}: 'transformers_weights' is {shown(named)}, not the name of a file beside it",
            "correct it, and do not use this checkpoint unless you trust its origin",
        )
    if not folder.has(named):
        raise SourceError(f"{where} names the weights {shown(named)}, which are missing", "download the missing file")
    if named.endswith(".safetensors.index.json"):
        return _read_index(folder, named, _read_map(folder, named))
    if not named.endswith(".safetensors"):
        raise SourceError(f"{where} names the weights {shown(named)}: {PICKLE_REASON}", PICKLE_HINT)
    return _read_files(folder, [named])


def _read_only(folder: Folder, names: Sequence[str]) -> Found:
    """The one safetensors file of a folder, whatever its name; a refusal of anything else."""
    found = [name for name in names if name.endswith(".safetensors")]
    if adapter := next((name for name in names if name.startswith("adapter_model.")), None):
        raise adapter_error(str(folder.path), adapter)
    pickles = [name for name in names if is_pickle(name)]
    if not found:
        raise _none_found(folder, names, pickles)
    if pickles:
        raise SourceError(
            f"{folder.path}: transformers reads {pickles[0]} here, not {_listed(found)}; {PICKLE_REASON}",
            f"if the safetensors files are the model, move {pickles[0]} away; otherwise {PICKLE_HINT}",
        )
    if len(found) > 1:
        raise SourceError(
            f"{folder.path} has {len(found)} safetensors files and no {_INDEX}: {_listed(found)}",
            "for shards download the index, which says what lies where; of several models or variants of one keep one",
        )
    part = _SHARD.fullmatch(found[0])
    if part and int(part[2]) > 1:
        raise SourceError(
            f"{folder.path / found[0]} is one shard of {int(part[2])}, and the others and {_INDEX} are missing",
            "download the checkpoint again, with all of its files",
        )
    return _read_files(folder, found)


def _none_found(folder: Folder, names: Sequence[str], pickles: Sequence[str]) -> SourceError:
    """Why a folder has no weights that are read: what it has instead."""
    if pickles:
        return SourceError(f"{folder.path / pickles[0]}: {PICKLE_REASON}", PICKLE_HINT)
    if ggufs := [name for name in names if name.endswith(".gguf")]:
        return SourceError(f"{folder.path} has no safetensors files, but {_listed(ggufs)}", gguf_hint(folder, ggufs))
    below = [f"{name}/{file}" for name in names for file in folder.names_in(name)]
    if pickle := next((name for name in below if is_pickle(name)), None):
        return SourceError(f"{folder.path} has no safetensors files, but {shown(pickle)}: {PICKLE_REASON}", PICKLE_HINT)
    for name in (*names, *below):
        framework = next((f for end, f in _OTHER_FRAMEWORKS.items() if name.endswith(end)), None)
        if framework:
            return SourceError(
                f"{folder.path} has no safetensors files; {shown(name)} holds the weights for {framework}",
                "use the safetensors files of the same model",
            )
    return SourceError(
        f"{folder.path} has no safetensors files", "download the checkpoint again, with all of its files"
    )


def gguf_hint(folder: Folder, names: Sequence[str]) -> str:
    """What to do with a folder of GGUF files: one is given by its path; projectors of images are no models."""
    models = [name for name in names if not name.startswith("mmproj")] or list(names)
    which = "the GGUF file" if len(models) == 1 else "the one GGUF file that is meant"
    return f"for {which} give its path: {folder.path / models[0]}"


def _read_map(folder: Folder, index: str) -> dict[str, str]:
    """The ``weight_map`` of an index: tensor names to the names of files beside it."""
    path = folder.path / index
    where = folder.read_json(index, limit=_INDEX).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise SourceError(f"{path} has no 'weight_map' of tensor names to file names", "download the index again")
    names = sorted(set(where.values()))
    if len(names) > MAX_SHARDS or len(where) > MAX_TENSORS:
        raise SourceError(
            f"{path} names {len(where):,} tensors in {len(names):,} files; {MAX_TENSORS:,} in {MAX_SHARDS:,} are read",
            "download the index again",
        )
    for name in names:
        if not _is_plain(name):
            raise SourceError(
                f"{path} names the file {shown(name)}, which is not inside the folder",
                "an index must name plain files beside it; do not use this checkpoint unless you trust its origin",
            )
        if not name.endswith(".safetensors"):
            raise SourceError(f"{path} names the file {shown(name)}, which is no safetensors file", PICKLE_HINT)
    return where


def _is_plain(name: str) -> bool:
    return PurePosixPath(name).name == name and not set("\\\0") & set(name) and name not in ("", ".", "..")


def _read_index(folder: Folder, index: str, where: Mapping[str, str]) -> Found:
    path = folder.path / index
    names = sorted(set(where.values()))
    for name in names:
        if not folder.has(name):
            raise SourceError(f"{path} names the shard {shown(name)}, which is missing", "download the missing file")
    found, files = _read_files(folder, names)
    lost = next((tensor for tensor in where if tensor not in found and not is_buffer(tensor)), None)
    if lost is not None:
        raise SourceError(
            f"{path} says that tensor {shown(lost)} is in '{where[lost]}', and it is not there",
            "the index and the shards are not of the same model; download both again",
        )
    return found, files


def _read_files(folder: Folder, names: Sequence[str]) -> Found:
    found: dict[str, Extent] = {}
    for name in names:
        for tensor, extent in read_shard(folder, name).items():
            if tensor in found and not is_buffer(tensor):
                raise SourceError(
                    f"{extent.file} and {found[tensor].file.name} both hold tensor {shown(tensor)}",
                    "the shards are not of one model; download them again, with their index",
                )
            found[tensor] = extent
    return found, tuple(folder.path / name for name in names)


def _listed(names: Sequence[str]) -> str:
    """Names for a message: the first three."""
    return ", ".join(shown(name) for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
