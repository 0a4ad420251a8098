"""Read the header of a safetensors file, and where each tensor's bytes are.

The header is parsed here because the safetensors library maps the whole file and does not expose the offsets.
The same defects are refused: holes, overlaps, sizes that do not match the shape.
"""

from __future__ import annotations

import os
from math import prod
from typing import TYPE_CHECKING, Any, TypeGuard

from edgekit.errors import SourceError
from edgekit.source.fields import MAX_NAME, Fields, shown
from edgekit.source.tensors import Extent
from edgekit.strangers import parse_json, reading

if TYPE_CHECKING:
    from pathlib import Path

    from edgekit.source.folder import Folder

_DAMAGED = "download the file again"
_OTHERS = {
    b"version ": ("a Git LFS pointer, not the file itself", "download the file itself: git lfs pull"),
    b"PK\x03\x04": ("a pickle", "use the safetensors files of the model, or convert it in a sandbox"),
    b"\x80\x02": ("a pickle", "use the safetensors files of the model, or convert it in a sandbox"),
    b"GGUF": ("a GGUF file", "rename it to .gguf and pass its path"),
    b"<": ("a web page", "log in to the site if it requires that, and download the file again"),
}
"""First bytes of other files found with a safetensors name, what they are, and the hint."""
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32}
_BITS |= {"U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_BITS |= dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)

MAX_HEADER = 64 << 20
"""Most bytes of a header. The format allows 100,000,000; the largest published have under 2,000,000."""

MAX_TENSORS = 2**18
"""Most tensors of a file; the largest published dense model has 1,138."""


def read_shard(folder: Folder, name: str) -> dict[str, Extent]:
    """Read the tensors of a safetensors file: 8 bytes of header length, a JSON header, then the data without gaps.

    Tensors of any shape and type are returned; only those that the model uses must have a readable type.

    Raises:
        SourceError: the header is damaged or too long, the file does not match it in size, or tensors overlap or
            leave a hole.
    """
    path = folder.path / name
    with folder.open(name) as file, reading(path, error=SourceError):
        size = os.fstat(file.fileno()).st_size
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if size < 8 or length > size - 8:
            what, hint = next((v for k, v in _OTHERS.items() if first.startswith(k)), ("", ""))
            fault = f"is {what}" if what else f"is truncated or not a safetensors file ({size} bytes)"
            raise SourceError(f"{path} {fault}", hint or _DAMAGED)
        if length > MAX_HEADER:
            raise SourceError(f"{path} has a damaged header: {length:,} bytes (at most {MAX_HEADER:,})", _DAMAGED)
        data = file.read(length)
    entries = parse_json(data, f"{path} has a damaged header: it", error=SourceError)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SourceError(f"{path} has a damaged header: '__metadata__' is not an object of strings", _DAMAGED)
    return _place(path, entries, start=8 + length, size=size)


def _place(path: Path, entries: dict[str, Any], *, start: int, size: int) -> dict[str, Extent]:
    """The extents of a header's tensors, in file order."""
    if len(entries) > MAX_TENSORS:
        raise SourceError(f"{path} lists {len(entries):,} tensors (at most {MAX_TENSORS:,})", _DAMAGED)
    read = sorted((_read_entry(path, name, entry) for name, entry in entries.items()), key=lambda e: (e[1], e[2]))
    end = max((last for *_, last in read), default=0)
    if size < start + end:
        raise SourceError(f"{path} is truncated: it has {size} bytes, but its header lists {start + end}", _DAMAGED)
    at, tensors = 0, {}
    for extent, first, last in read:
        if first != at:
            how = "overlaps the tensor before it" if first < at else f"leaves a hole of {first - at} bytes before it"
            raise SourceError(f"{path}: tensor {shown(extent[0])} {how}", _DAMAGED)
        at = last
        name, shape, kind = extent
        tensors[name] = Extent(path, start + first, last - first, shape, kind)
    if size != start + at:
        raise SourceError(f"{path} has {size - start - at} extra bytes after the last tensor", _DAMAGED)
    return tensors


def _read_entry(path: Path, name: str, entry: object) -> tuple[tuple[str, tuple[int, ...], str], int, int]:
    """Name, shape and type of a tensor, and the start and end of its bytes after the header."""
    if len(name) > MAX_NAME:
        raise SourceError(
            f"{path}: tensor {shown(name)} has a name of {len(name)} characters (at most {MAX_NAME})", _DAMAGED
        )
    if not isinstance(entry, dict):
        raise SourceError(f"{path} has a damaged header: tensor {shown(name)} is not an object", _DAMAGED)
    fields = Fields(entry, f"{path}: tensor {shown(name)}")
    kind, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(kind, str) or kind not in _BITS:
        raise fields.error("dtype", kind, f"one of {', '.join(_BITS)}")
    if not _are_sizes(shape) or len(shape) > 8:
        raise fields.error("shape", shape, "a list of at most 8 sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise fields.error("data_offsets", offsets, "a start and an end offset")
    first, last = offsets
    if 8 * (last - first) != prod(shape) * _BITS[kind]:
        raise SourceError(
            f"{path}: tensor '{name}' has {last - first} bytes, which does not match shape {shown(shape)} of {kind}",
            _DAMAGED,
        )
    return (name, tuple(shape), kind), first, last


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)
