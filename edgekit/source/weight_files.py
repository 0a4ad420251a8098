"""Find the weight files of a folder: those that transformers would read. Ambiguous folders are refused.

transformers (modeling_utils, _get_resolved_checkpoint_files) reads the file that config.json names as
``transformers_weights``, else model.safetensors, else the shards of model.safetensors.index.json, else pickles. It
reads every tensor of a shard, wherever the index places it.
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
"""Pickles that trainers write next to a model."""
_OTHER_FRAMEWORKS = {".h5": "TensorFlow", ".msgpack": "Flax", ".ot": "Rust", ".onnx": "ONNX", ".npz": "MLX"}

MAX_SHARDS = 1024

PICKLE_REASON = "pickle checkpoints run code when they are opened, so edgekit never reads them"
PICKLE_HINT = (
    "use the safetensors files of the same model, or convert once in a sandbox: load it with transformers and "
    "call save_pretrained(folder, safe_serialization=True)"
)
_ONE_ONLY = "delete or move files so that only one model is left"


def is_pickle(name: str) -> bool:
    """Whether the name is that of a pickle with weights, or of an index of such files."""
    return name.endswith(_PICKLES) and not _NO_WEIGHTS.fullmatch(name)


def find_tensors(folder: Folder, config: Mapping[str, Any]) -> Found:
    """Return all tensors of a folder by name, and the files they are in.

    Args:
        folder: the checkpoint folder.
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
                f"{folder.path} holds two models: {_SINGLE} and a sharded one ({_listed(others)})", _ONE_ONLY
            )
        return _read_files(folder, [_SINGLE])
    if others := sorted(own - shards):
        raise SourceError(
            f"{folder.path} holds shards that {_INDEX} does not list, perhaps of another model ({_listed(others)})",
            _ONE_ONLY,
        )
    return _read_index(folder, _INDEX, where)


def _read_named(folder: Folder, named: object) -> Found:
    """Read the file or index that config.json names."""
    where = folder.path / "config.json"
    if not isinstance(named, str) or not _is_plain(named):
        raise SourceError(
            f"{where}: 'transformers_weights' is {shown(named)}, not the name of a file in the same folder",
            "correct it, and do not use this checkpoint unless you trust its origin",
        )
    if not folder.has(named):
        raise SourceError(f"{where} names weights {shown(named)}, which are missing", "download the missing file")
    if named.endswith(".safetensors.index.json"):
        return _read_index(folder, named, _read_map(folder, named))
    if not named.endswith(".safetensors"):
        raise SourceError(f"{where} names weights {shown(named)}: {PICKLE_REASON}", PICKLE_HINT)
    return _read_files(folder, [named])


def _read_only(folder: Folder, names: Sequence[str]) -> Found:
    """Read the only safetensors file of a folder, whatever its name. Raises SourceError for anything else."""
    found = [name for name in names if name.endswith(".safetensors")]
    if adapter := next((name for name in names if name.startswith("adapter_model.")), None):
        raise adapter_error(str(folder.path), adapter)
    pickles = [name for name in names if is_pickle(name)]
    if not found:
        raise _none_found(folder, names, pickles)
    if pickles:
        raise SourceError(
            f"{folder.path}: transformers would read {pickles[0]}, not {_listed(found)}; {PICKLE_REASON}",
            f"if the safetensors files are the model, move {pickles[0]} away; otherwise {PICKLE_HINT}",
        )
    if len(found) > 1:
        raise SourceError(
            f"{folder.path} has {len(found)} safetensors files and no {_INDEX}: {_listed(found)}",
            f"if they are shards, download {_INDEX}; if they are different models, keep only one",
        )
    part = _SHARD.fullmatch(found[0])
    if part and int(part[2]) > 1:
        raise SourceError(
            f"{folder.path / found[0]} is one of {int(part[2])} shards; the others and {_INDEX} are missing",
            "download all files of the checkpoint again",
        )
    return _read_files(folder, found)


def _none_found(folder: Folder, names: Sequence[str], pickles: Sequence[str]) -> SourceError:
    """The error for a folder without readable weights: it names what is there instead."""
    if pickles:
        return SourceError(f"{folder.path / pickles[0]}: {PICKLE_REASON}", PICKLE_HINT)
    if ggufs := [name for name in names if name.endswith(".gguf")]:
        return SourceError(
            f"{folder.path} has no safetensors files, but has {_listed(ggufs)}", gguf_hint(folder, ggufs)
        )
    below = [f"{name}/{file}" for name in names for file in folder.names_in(name)]
    if pickle := next((name for name in below if is_pickle(name)), None):
        what = f"{folder.path} has no safetensors files, but has {shown(pickle)}"
        return SourceError(f"{what}: {PICKLE_REASON}", PICKLE_HINT)
    for name in (*names, *below):
        framework = next((f for end, f in _OTHER_FRAMEWORKS.items() if name.endswith(end)), None)
        if framework:
            return SourceError(
                f"{folder.path} has no safetensors files; {shown(name)} holds {framework} weights",
                "use the safetensors files of the same model",
            )
    return SourceError(f"{folder.path} has no safetensors files", "download all files of the checkpoint again")


def gguf_hint(folder: Folder, names: Sequence[str]) -> str:
    """The hint for a folder of GGUF files; files named mmproj are image projectors, not models."""
    models = [name for name in names if not name.startswith("mmproj")] or list(names)
    which = "the GGUF file" if len(models) == 1 else "one of the GGUF files"
    return f"to use {which}, pass its path: {folder.path / models[0]}"


def _read_map(folder: Folder, index: str) -> dict[str, str]:
    """Read the ``weight_map`` of an index: tensor names to file names in the same folder."""
    path = folder.path / index
    where = folder.read_json(index, limit=_INDEX).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise SourceError(f"{path} has no 'weight_map' of tensor names to file names", "download the index again")
    names = sorted(set(where.values()))
    if len(names) > MAX_SHARDS or len(where) > MAX_TENSORS:
        raise SourceError(
            f"{path} lists {len(where):,} tensors in {len(names):,} files (at most {MAX_TENSORS:,} in {MAX_SHARDS:,})",
            "download the index again",
        )
    for name in names:
        if not _is_plain(name):
            raise SourceError(
                f"{path} names the file {shown(name)}, which is not inside the folder",
                "an index must name files in its own folder; do not use this checkpoint unless you trust its origin",
            )
        if not name.endswith(".safetensors"):
            raise SourceError(f"{path} names the file {shown(name)}, which is not a safetensors file", PICKLE_HINT)
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
            f"{path} places tensor {shown(lost)} in '{where[lost]}', which does not hold it",
            "the index and the shards belong to different models; download both again",
        )
    return found, files


def _read_files(folder: Folder, names: Sequence[str]) -> Found:
    found: dict[str, Extent] = {}
    for name in names:
        for tensor, extent in read_shard(folder, name).items():
            if tensor in found and not is_buffer(tensor):
                raise SourceError(
                    f"{extent.file} and {found[tensor].file.name} both hold tensor {shown(tensor)}",
                    "the shards belong to different models; download them and their index again",
                )
            found[tensor] = extent
    return found, tuple(folder.path / name for name in names)


def _listed(names: Sequence[str]) -> str:
    """The first three names, for a message."""
    return ", ".join(shown(name) for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
