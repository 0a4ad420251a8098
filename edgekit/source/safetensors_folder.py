"""Hugging Face folders: config.json and one or many safetensors shards.

The header of a shard is read here, because the safetensors library maps the whole file and does not say where a
tensor's bytes lie. What it refuses is refused here too: holes, overlaps, sizes that do not fit the shape.
"""

from __future__ import annotations

import os
from math import prod
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeGuard

from edgekit.errors import SourceError
from edgekit.source.architectures import FAMILIES, parse_config
from edgekit.source.fields import MAX_NAME, Fields, shown
from edgekit.source.folder import Folder
from edgekit.source.layout import match_tensors, split_fused
from edgekit.source.sidefiles import collect_files
from edgekit.source.tensors import Extent
from edgekit.strangers import parse_json
from edgekit.types import Checkpoint, Provenance

if TYPE_CHECKING:
    from pathlib import Path

    from edgekit.types import ModelSpec

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_DAMAGED = "download the file again"
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16}
_BITS |= {"U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64}
_READ = ("F32", "F16", "BF16")
_UNUSED = "rotary_emb.inv_freq"
"""Old checkpoints hold a table that follows from the config."""

MAX_HEADER = 64 << 20
"""Bytes of a safetensors header. The format allows 100,000,000; the largest published have under 2,000,000."""

MAX_SHARDS = 1024
MAX_TENSORS = 2**18
"""Of one file; the largest published dense model has 1,138."""

PICKLE_REASON = "pickle checkpoints run code when they are opened, so edgekit never reads them"
PICKLE_HINT = (
    "use the safetensors files of the same model, or convert once in a sandbox: load it with transformers and "
    "call save_pretrained(folder, safe_serialization=True)"
)


def open_folder(path: Path, provenance: Provenance, *, data_only: bool = False) -> Checkpoint:
    """Open a Hugging Face folder. Only headers and small files are read. ``data_only`` as in open_model.

    Raises:
        SourceError: for anything that is missing, damaged, contradictory, out of range or unknown.
    """
    folder = Folder(path)
    config, spec = read_spec(folder)
    where = str(folder.path / "config.json")
    found, files = _find_tensors(folder)
    if FAMILIES[spec.architecture].fused:
        found = split_fused(spec, found)
    spec, weights = match_tensors(spec, found, files, where)
    side_files, spec = collect_files(folder, config, spec, data_only=data_only)
    return Checkpoint(spec, weights, side_files, provenance)


def read_spec(folder: Folder) -> tuple[dict[str, Any], ModelSpec]:
    """config.json of a Hugging Face folder and what it says. Says what the folder is when it has none.

    Raises:
        SourceError: there is no config.json, or it, or generation_config.json, is not what it must be.
    """
    path = folder.path
    if folder.has("edgekit.json"):
        raise SourceError(f"{path} is an edgekit bundle, not a checkpoint", "give the checkpoint it was built from")
    if not folder.has("config.json"):
        gguf = [name for name in folder.names() if name.endswith(".gguf")]
        if gguf:
            raise SourceError(f"{path} has no config.json", f"for the GGUF file give its path: {path / gguf[0]}")
        if folder.has("adapter_config.json"):
            raise SourceError(
                f"{path} is an adapter, not a model", "merge it into its base model first (peft's merge_and_unload)"
            )
        raise SourceError(f"{path} has no config.json", "a checkpoint folder has config.json and safetensors files")
    config = folder.read_json("config.json")
    return config, parse_config(config, str(path / "config.json"), folder.optional_json("generation_config.json"))


def _find_tensors(folder: Folder) -> tuple[dict[str, Extent], tuple[Path, ...]]:
    """All tensors of a folder by name, and the shards they lie in."""
    if folder.has(_INDEX):
        return _read_index(folder)
    if folder.has(_SINGLE):
        return read_shard(folder, _SINGLE), (folder.path / _SINGLE,)
    names = folder.names()
    shards = [name for name in names if name.endswith(".safetensors")]
    if len(shards) == 1:
        return read_shard(folder, shards[0]), (folder.path / shards[0],)
    if shards:
        raise SourceError(
            f"{folder.path} has {len(shards)} safetensors files and no {_INDEX}",
            "download the index file, which says what lies where",
        )
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        raise SourceError(f"{folder.path / pickles[0]}: {PICKLE_REASON}", PICKLE_HINT)
    raise SourceError(f"{folder.path} has no safetensors files", "download the checkpoint again, with all of its files")


def _read_index(folder: Folder) -> tuple[dict[str, Extent], tuple[Path, ...]]:
    index = folder.path / _INDEX
    where = folder.read_json(_INDEX).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise SourceError(f"{index} has no 'weight_map' of tensor names to file names", "download the index again")
    names = sorted(set(where.values()))
    if len(names) > MAX_SHARDS or len(where) > MAX_TENSORS:
        raise SourceError(
            f"{index} names {len(where):,} tensors in {len(names):,} files; {MAX_TENSORS:,} in {MAX_SHARDS:,} are read",
            "download the index again",
        )
    shards: dict[str, dict[str, Extent]] = {}
    for name in names:
        if PurePosixPath(name).name != name or "\\" in name or "\0" in name or name in ("", ".", ".."):
            raise SourceError(
                f"{index} names the file {shown(name)}, which is not inside the folder",
                "an index must name plain files beside it; do not use this checkpoint unless you trust its origin",
            )
        if not name.endswith(".safetensors"):
            raise SourceError(f"{index} names the file {shown(name)}, which is no safetensors file", PICKLE_HINT)
        if not folder.has(name):
            raise SourceError(f"{index} names the shard {shown(name)}, which is missing", "download the missing file")
        shards[name] = read_shard(folder, name)
    found: dict[str, Extent] = {}
    for tensor, name in where.items():
        if tensor.endswith(_UNUSED):
            continue
        if tensor not in shards[name]:
            raise SourceError(
                f"{index} says that tensor {shown(tensor)} is in '{name}', and it is not there",
                "the index and the shards are not of the same model; download both again",
            )
        found[tensor] = shards[name][tensor]
    for name, tensors in shards.items():
        for tensor in tensors:
            if tensor not in found or where[tensor] != name:
                raise SourceError(
                    f"{folder.path / name} holds tensor {shown(tensor)}, which {index} does not place there",
                    "the index and the shards are not of the same model; download both again",
                )
    return found, tuple(folder.path / name for name in shards)


def read_shard(folder: Folder, name: str) -> dict[str, Extent]:
    """The tensors of a safetensors file: 8 bytes of header length, a JSON header, then the data, without a gap.

    Raises:
        SourceError: the header is damaged or too long, the file shorter or longer than it says, tensors overlap or
            leave a hole, or a type is not F32, F16 or BF16.
    """
    path = folder.path / name
    with folder.open(name) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise SourceError(f"{path} is truncated or not a safetensors file ({size} bytes)", _DAMAGED)
            if length > MAX_HEADER:
                raise SourceError(f"{path} has a damaged header: {length:,} bytes, at most {MAX_HEADER:,}", _DAMAGED)
            data = file.read(length)
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error}", "check the file and its permissions") from error
    entries = parse_json(data, f"{path} has a damaged header: it", error=SourceError)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SourceError(f"{path} has a damaged header: '__metadata__' is no object of texts", _DAMAGED)
    return _place(path, entries, start=8 + length, size=size)


def _place(path: Path, entries: dict[str, Any], *, start: int, size: int) -> dict[str, Extent]:
    """The extents of a header's tensors, in the order of the file."""
    if len(entries) > MAX_TENSORS:
        raise SourceError(f"{path} lists {len(entries):,} tensors; {MAX_TENSORS:,} are the most", _DAMAGED)
    read = sorted((_read_entry(path, name, entry) for name, entry in entries.items()), key=lambda e: (e[1], e[2]))
    end = max((last for *_, last in read), default=0)
    if size < start + end:
        raise SourceError(f"{path} is truncated: {size} bytes, and its header lists {start + end}", _DAMAGED)
    at, tensors = 0, {}
    for extent, first, last in read:
        if first != at:
            how = "overlaps the tensor before it" if first < at else f"leaves a hole of {first - at} bytes before it"
            raise SourceError(f"{path}: tensor {shown(extent[0])} {how}", _DAMAGED)
        at = last
        name, shape, kind = extent
        if name.endswith(_UNUSED):
            continue
        if kind not in _READ:
            raise SourceError(
                f"{path}: tensor '{name}' is stored as {kind}", "edgekit reads F32, F16 and BF16 checkpoints"
            )
        if not shape or 0 in shape:
            raise SourceError(f"{path}: tensor '{name}' of shape {list(shape)} holds nothing to multiply", _DAMAGED)
        tensors[name] = Extent(path, start + first, last - first, shape, kind)
    if size != start + at:
        raise SourceError(f"{path} has {size - start - at} bytes that belong to no tensor", _DAMAGED)
    return tensors


def _read_entry(path: Path, name: str, entry: object) -> tuple[tuple[str, tuple[int, ...], str], int, int]:
    """Name, shape and type of a tensor, and where its bytes begin and end behind the header."""
    if len(name) > MAX_NAME:
        raise SourceError(f"{path}: tensor {shown(name)} has a name of {len(name)} letters", _DAMAGED)
    if not isinstance(entry, dict):
        raise SourceError(f"{path} has a damaged header: tensor {shown(name)} is no object", _DAMAGED)
    fields = Fields(entry, f"{path}: tensor {shown(name)}")
    kind, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(kind, str) or kind not in _BITS:
        raise fields.error("dtype", kind, f"one of {', '.join(_BITS)}")
    if not _are_sizes(shape) or len(shape) > 8:
        raise fields.error("shape", shape, "a list of at most 8 sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise fields.error("data_offsets", offsets, "where it begins and ends")
    first, last = offsets
    if last - first != prod(shape) * _BITS[kind] // 8:
        raise SourceError(
            f"{path}: tensor '{name}' of shape {shown(shape)} and type {kind} cannot take {last - first} bytes",
            _DAMAGED,
        )
    return (name, tuple(shape), kind), first, last


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)
