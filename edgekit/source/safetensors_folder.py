"""Hugging Face folders: config.json and one or many safetensors shards.

The header of a shard is read here in ten lines, because the safetensors library maps the whole file and
does not say where a tensor's bytes lie.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from edgekit.errors import SourceError
from edgekit.source.architectures import FAMILIES, parse_config
from edgekit.source.fields import read_json
from edgekit.source.layout import match_tensors, split_fused
from edgekit.source.sidefiles import collect_files
from edgekit.source.tensors import Extent, row_bytes
from edgekit.types import Checkpoint, Provenance

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PICKLE_REASON = "pickle checkpoints run code when they are opened, so edgekit never reads them"
PICKLE_HINT = (
    "use the safetensors files of the same model, or convert once in a sandbox: load it with transformers and "
    "call save_pretrained(folder, safe_serialization=True)"
)


def open_folder(folder: Path, provenance: Provenance) -> Checkpoint:
    """Open a Hugging Face folder. Only headers and small files are read.

    Raises:
        SourceError: for anything that is missing, damaged, contradictory or unknown.
    """
    config = read_config(folder)
    generation = folder / "generation_config.json"
    stops = read_json(generation) if generation.is_file() else {}
    spec = parse_config(config, str(folder / "config.json"), stops)
    found, files = _find_tensors(folder)
    if FAMILIES[spec.architecture].fused:
        found = split_fused(spec, found)
    spec, weights = match_tensors(spec, found, files, str(folder / "config.json"))
    side_files, spec = collect_files(folder, config, spec)
    return Checkpoint(spec, weights, side_files, provenance)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a Hugging Face folder. Raises SourceError that says what the folder is when it has none."""
    if (folder / "edgekit.json").is_file():
        raise SourceError(f"{folder} is an edgekit bundle, not a checkpoint", "give the checkpoint it was built from")
    if not (folder / "config.json").is_file():
        gguf = sorted(folder.glob("*.gguf"))
        if gguf:
            raise SourceError(f"{folder} has no config.json", f"for the GGUF file give its path: {gguf[0]}")
        if (folder / "adapter_config.json").is_file():
            raise SourceError(
                f"{folder} is an adapter, not a model", "merge it into its base model first (peft's merge_and_unload)"
            )
        raise SourceError(f"{folder} has no config.json", "a checkpoint folder has config.json and safetensors files")
    return read_json(folder / "config.json")


def _find_tensors(folder: Path) -> tuple[dict[str, Extent], tuple[Path, ...]]:
    """All tensors of a folder by name, and the shards they lie in."""
    if (folder / _INDEX).is_file():
        return _read_index(folder)
    if (folder / _SINGLE).is_file():
        return read_shard(folder / _SINGLE), (folder / _SINGLE,)
    shards = sorted(folder.glob("*.safetensors"))
    if len(shards) == 1:
        return read_shard(shards[0]), (shards[0],)
    if shards:
        raise SourceError(
            f"{folder} has {len(shards)} safetensors files and no {_INDEX}",
            "download the index file, which says what lies where",
        )
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    if pickles:
        raise SourceError(f"{folder / pickles[0]}: {PICKLE_REASON}", PICKLE_HINT)
    raise SourceError(f"{folder} has no safetensors files", "download the checkpoint again, with all of its files")


def _read_index(folder: Path) -> tuple[dict[str, Extent], tuple[Path, ...]]:
    index = folder / _INDEX
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise SourceError(f"{index} has no 'weight_map' of tensor names to file names", "download the index again")
    shards: dict[str, dict[str, Extent]] = {}
    for name in sorted(set(where.values())):
        if PurePosixPath(name).name != name or "\\" in name or name in ("", ".", ".."):
            raise SourceError(
                f"{index} names the file '{name}', which is not inside the folder",
                "an index must name plain files beside it; do not use this checkpoint unless you trust its origin",
            )
        if not (folder / name).is_file():
            raise SourceError(f"{index} names the shard '{name}', which is missing", "download the missing file")
        shards[name] = read_shard(folder / name)
    found: dict[str, Extent] = {}
    for tensor, name in where.items():
        if tensor not in shards[name]:
            raise SourceError(
                f"{index} says that tensor '{tensor}' is in '{name}', and it is not there",
                "the index and the shards are not of the same model; download both again",
            )
        found[tensor] = shards[name][tensor]
    return found, tuple(folder / name for name in shards)


def read_shard(path: Path) -> dict[str, Extent]:
    """The tensors of a safetensors file: 8 bytes of header length, a JSON header, then the data.

    Raises SourceError when the header is damaged, the file shorter than it says, or a type is not F32, F16 or BF16.
    """
    damaged = "download the file again"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise SourceError(f"{path} is truncated or not a safetensors file ({size} bytes)", damaged)
            header = json.loads(file.read(length))
        start = 8 + length
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        spans = {
            name: (int(entry["data_offsets"][0]), int(entry["data_offsets"][1])) for name, entry in entries.items()
        }
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in entries.items()}
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error}", "check the file and its permissions") from error
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise SourceError(f"{path} has a damaged header: {error}", damaged) from error
    end = start + max((stop for _, stop in spans.values()), default=0)
    if size < end:
        raise SourceError(f"{path} is truncated: {size} bytes, and its header lists {end}", damaged)
    tensors = {}
    for name, (first, last) in spans.items():
        kind = str(entries[name]["dtype"])
        if name.endswith("rotary_emb.inv_freq"):
            continue
        if kind not in ("F32", "F16", "BF16"):
            raise SourceError(
                f"{path}: tensor '{name}' is stored as {kind}", "edgekit reads F32, F16 and BF16 checkpoints"
            )
        wanted = row_bytes(kind, 1)
        for n in shapes[name]:
            wanted *= n
        if not shapes[name] or first < 0 or last - first != wanted:
            raise SourceError(
                f"{path}: tensor '{name}' of shape {list(shapes[name])} cannot take {last - first} bytes", damaged
            )
        tensors[name] = Extent(path, start + first, wanted, shapes[name], kind)
    return tensors
