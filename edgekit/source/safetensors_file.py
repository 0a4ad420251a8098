"""A safetensors file: its header, and where each tensor's bytes lie.

The header is read here, because the safetensors library maps the whole file and does not say where a
tensor's bytes lie. What it refuses is refused here too: holes, overlaps, sizes that do not fit the shape.
"""

from __future__ import annotations

import os
from math import prod
from typing import TYPE_CHECKING, Any, TypeGuard

from edgekit.errors import SourceError
from edgekit.source.fields import MAX_NAME, Fields, shown
from edgekit.source.tensors import Extent
from edgekit.strangers import parse_json

if TYPE_CHECKING:
    from pathlib import Path

    from edgekit.source.folder import Folder

_DAMAGED = "download the file again"
_OTHERS = {
    b"version ": ("a Git LFS pointer, not the file that it stands for", "fetch the file itself: git lfs pull"),
    b"PK\x03\x04": ("a pickle under another name", "use the safetensors files of the model, or convert in a sandbox"),
    b"\x80\x02": ("a pickle under another name", "use the safetensors files of the model, or convert in a sandbox"),
    b"GGUF": ("a GGUF file under another name", "name it .gguf and give its path"),
    b"<": ("a web page, not the file that was asked for", "log in where it is kept, and download the file again"),
}
"""How files begin that are found under the name of a safetensors file, what they are, and what to do."""
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32}
_BITS |= {"U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_BITS |= dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)

MAX_HEADER = 64 << 20
"""Bytes of a safetensors header. The format allows 100,000,000; the largest published have under 2,000,000."""

MAX_TENSORS = 2**18
"""Of one file; the largest published dense model has 1,138."""


def read_shard(folder: Folder, name: str) -> dict[str, Extent]:
    """The tensors of a safetensors file: 8 bytes of header length, a JSON header, then the data, without a gap.

    All of them, of whatever shape and type: only those that the model needs have to be of a kind that is read.

    Raises:
        SourceError: the header is damaged or too long, the file shorter or longer than it says, or tensors overlap or
            leave a hole.
    """
    path = folder.path / name
    with folder.open(name) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            first = file.read(8)
            length = int.from_bytes(first, "little")
            if size < 8 or length > size - 8:
                what, hint = next((v for k, v in _OTHERS.items() if first.startswith(k)), ("", ""))
                told = f"is {what}" if what else f"is truncated or not a safetensors file ({size} bytes)"
                raise SourceError(f"{path} {told}", hint or _DAMAGED)
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
    if 8 * (last - first) != prod(shape) * _BITS[kind]:
        raise SourceError(
            f"{path}: tensor '{name}' of shape {shown(shape)} and type {kind} cannot take {last - first} bytes",
            _DAMAGED,
        )
    return (name, tuple(shape), kind), first, last


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)
