"""Read the header of a GGUF file: metadata and where tensors are.

The header is parsed here with the constants of the ``gguf`` package, because its GGUFReader makes several arrays
for every token (3.5 s and 160 MB for 49,152 tokens) and maps the whole file.
"""

from __future__ import annotations

import io
import os
import struct
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize

from edgekit.errors import SourceError
from edgekit.source.fields import MAX_NAME, shown
from edgekit.source.tensors import Extent, row_bytes
from edgekit.strangers import open_plain, reading

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
_DAMAGED = "download the file again"


# Smallest size in bytes of a metadata entry, a tensor entry, and a string in an array.
_LEAST_ENTRY, _LEAST_TENSOR, _LEAST_TEXT = 13, 32, 8

MAX_ENTRIES = 2**16
"""Most metadata entries, and most tensors; the largest published file has about a thousand."""

MAX_ITEMS = 2**22
"""Most elements in all metadata arrays: tokens, scores, types, merges. The largest published has 1.5 million."""

MAX_HEADER = 128 << 20
"""Most bytes of the header; the largest published has 30 MB."""

MAX_TEXT = 4 << 20
"""Most bytes of a metadata string, such as a licence or a chat template."""

MAX_ALIGNMENT = 1 << 20


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file's header: metadata by key, and tensors by llama.cpp's names with shapes [rows, columns].

    Metadata is untrusted: the getters check types and ranges.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Extent]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return self.text("general.architecture") or ""

    def count(self, key: str, default: int | None = None) -> int:
        """A metadata entry of the architecture: a positive whole number of at most 31 bits."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        value = default if value is None else value
        if type(value) is not int or not 0 < value < 2**31:
            raise self._error(f"{self.architecture}.{key}", value, "a positive whole number of at most 31 bits")
        return value

    def number(self, key: str) -> float | None:
        """A metadata entry of the architecture: a finite number; None if it is absent."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        if value is not None and (type(value) not in (int, float) or not abs(value) <= 1e12):
            raise self._error(f"{self.architecture}.{key}", value, "a number")
        return value

    def text(self, key: str) -> str | None:
        """A metadata entry by its full name: a string; None if it is absent."""
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, str):
            raise self._error(key, value, "text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A metadata entry by its full name: a bool; ``default`` if it is absent."""
        value = self.metadata.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self._error(key, value, "true or false")
        return value

    def items(self, key: str, kind: type, count: int | None = None) -> list[Any]:
        """A metadata entry by its full name: a list of one type; empty if it is absent.

        Args:
            key: its name.
            kind: str, int or float.
            count: required length, if the entry is there.
        """
        value = self.metadata.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or any(type(item) is not kind for item in value):
            raise self._error(key, value, f"a list of {kind.__name__}")
        if count is not None and len(value) != count:
            raise self._error(key, value, f"a list of {count} entries")
        return value

    def token(self, key: str) -> int | None:
        """The value of ``tokenizer.ggml.<key>_token_id``; None if it is absent."""
        name = f"tokenizer.ggml.{key}_token_id"
        value = self.metadata.get(name)
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        known = len(tokens) if isinstance(tokens, list) else MAX_ITEMS
        if value is not None and (type(value) is not int or not 0 <= value < known):
            raise SourceError(
                f"{self.path}: '{name}' is {shown(value)}, but there are {known} tokens",
                "convert the model again, or download the file again",
            )
        return value

    def _error(self, key: str, value: object, wanted: str) -> SourceError:
        said = "is missing; it must be" if value is None else f"is {shown(value)}, not"
        hint = "models whose layers differ in size are not supported" if isinstance(value, list) else _DAMAGED
        return SourceError(f"{self.path}: '{key}' {said} {wanted}", hint)


def read_gguf(path: Path) -> GgufFile:
    """Read a GGUF file's header (versions 2 and 3, little-endian). No tensor is read.

    Raises:
        SourceError: the file is truncated, not GGUF, split, has a number out of range, duplicate keys or tensors,
            tensors that overlap or leave holes, or a type that cannot be dequantized.
    """
    with io.BufferedReader(open_plain(path, error=SourceError), 1 << 20) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with reading(path, error=SourceError):
                return _read_header(_Header(file, size), path)
        except (struct.error, EOFError):
            raise SourceError(f"{path} is truncated: it ends inside its header", _DAMAGED) from None
        except (ValueError, LookupError) as error:
            raise SourceError(f"{path} has a damaged header: {error}", _DAMAGED) from error


_COUNT = struct.Struct("<Q")


class _Header:
    """A sequential reader of a file's header, bounded by the size of the file and by MAX_HEADER."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.size = size
        self.at = 0
        self._items = 0

    def take(self, count: int) -> bytes:
        if self.at + count > self.size:
            raise EOFError
        self.at += count
        if self.at > MAX_HEADER:
            raise ValueError(f"it has more than {MAX_HEADER:,} bytes")
        data = self._file.read(count)
        if len(data) < count:
            raise EOFError
        return data

    def number(self, code: str) -> Any:
        value = struct.unpack("<" + code, self.take(struct.calcsize(code)))[0]
        # The shortest decimal that is this float32: 1e-05, not 9.999999747378752e-06.
        return float(str(np.float32(value))) if code == "f" else value

    def count(self, code: str, most: int, least_bytes: int, what: str) -> int:
        """A count of ``what``, at most ``most``; at ``least_bytes`` each they must fit into the rest of the file."""
        value = int(self.number(code))
        if value > most:
            raise ValueError(f"{value:,} {what} (at most {most:,})")
        if self.at + value * least_bytes > self.size:
            raise EOFError
        return value

    def string(self, most: int) -> str:
        return self.take(self.count("Q", most, 1, "bytes in a string")).decode("utf-8")

    def value(self, kind: GGUFValueType, depth: int = 0) -> Any:
        if kind == GGUFValueType.STRING:
            return self.string(MAX_TEXT)
        if kind != GGUFValueType.ARRAY:
            return self.number(_SCALARS[kind])
        inner = GGUFValueType(self.number("I"))
        code = _SCALARS.get(inner, "")
        length = self.count("Q", MAX_ITEMS, struct.calcsize(code) if code else _LEAST_TEXT, "elements in an array")
        self._items += length
        if self._items > MAX_ITEMS or depth > 2:
            raise ValueError(f"its arrays have more than {MAX_ITEMS:,} elements, or are nested")
        if code:
            return list(struct.unpack(f"<{length}{code}", self.take(length * struct.calcsize(code))))
        if inner == GGUFValueType.STRING:
            return self._strings(length)
        return [self.value(inner, depth + 1) for _ in range(length)]

    def _strings(self, length: int) -> list[str]:
        """``string`` inlined for a whole vocabulary: for 100,000 strings the calls would dominate."""
        texts: list[str] = []
        for _ in range(length):
            (count,) = _COUNT.unpack(self._file.read(_COUNT.size))
            if count > MAX_TEXT:
                raise ValueError(f"{count:,} bytes in a string (at most {MAX_TEXT:,})")
            self.at += _COUNT.size + count
            if self.at > self.size:
                raise EOFError
            if self.at > MAX_HEADER:
                raise ValueError(f"it has more than {MAX_HEADER:,} bytes")
            data = self._file.read(count)
            if len(data) < count:
                raise EOFError
            texts.append(data.decode("utf-8"))
        return texts


def _read_header(header: _Header, path: Path) -> GgufFile:
    magic, version = struct.unpack("<4sI", header.take(8))
    if magic == b"vers":
        raise SourceError(f"{path} is a Git LFS pointer, not the file itself", "download the file itself: git lfs pull")
    if magic != b"GGUF":
        raise SourceError(f"{path} is not a GGUF file", "pass a .gguf file or a Hugging Face folder")
    if version not in (2, 3):
        big = version & 0xFFFF == 0
        raise SourceError(
            f"{path} is {'big-endian' if big else f'GGUF version {version}'}; edgekit reads little-endian 2 and 3",
            "convert the model again with a current llama.cpp",
        )
    tensor_count = header.count("Q", MAX_ENTRIES, _LEAST_TENSOR, "tensors")
    entry_count = header.count("Q", MAX_ENTRIES, _LEAST_ENTRY, "metadata entries")
    metadata: dict[str, Any] = {}
    for _ in range(entry_count):
        key = header.string(MAX_NAME)
        if key in metadata:
            raise ValueError(f"duplicate key {shown(key)}")
        metadata[key] = header.value(GGUFValueType(header.number("I")))
    parts = metadata.get("split.count", 1)
    if parts not in (0, 1):
        raise SourceError(
            f"{path} is one of {shown(parts)} parts", "join the parts with llama.cpp's llama-gguf-split --merge"
        )
    entries: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(tensor_count):
        name = header.string(MAX_NAME)
        if name in entries:
            raise ValueError(f"duplicate tensor {shown(name)}")
        n = header.number("I")
        if not 1 <= n <= 4:
            raise ValueError(f"tensor {shown(name)} has {n} dimensions")
        dimensions = struct.unpack(f"<{n}Q", header.take(8 * n))
        entries[name] = (dimensions[::-1], header.number("I"), header.number("Q"))
    alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise ValueError(f"'general.alignment' is {shown(alignment)}, not a power of two up to {MAX_ALIGNMENT}")
    return GgufFile(path, metadata, _place(path, entries, header.at, alignment, header.size))


def _place(
    path: Path, entries: Mapping[str, tuple[tuple[int, ...], int, int]], start: int, alignment: int, size: int
) -> dict[str, Extent]:
    """The tensors' extents. As in llama.cpp, each must begin at the aligned end of the one before it."""
    start = _up(start, alignment)
    at, end, tensors = 0, start, {}
    for name, (shape, kind, offset) in entries.items():
        stored = _encoding(path, name, kind)
        if min(shape) < 1:
            raise ValueError(f"tensor {shown(name)} of shape {list(shape)} is empty")
        nbytes = prod(shape[:-1]) * row_bytes(stored, shape[-1])
        end = start + offset + nbytes
        if end > size:
            raise SourceError(f"{path} is truncated at {size} bytes: tensor {shown(name)} ends at {end}", _DAMAGED)
        if offset != at:
            raise SourceError(
                f"{path}: tensor {shown(name)} begins at {offset}, but the one before it ends at {at}: they overlap, "
                "leave a hole, or have the wrong type",
                _DAMAGED,
            )
        at = _up(offset + nbytes, alignment)
        tensors[name] = Extent(path, start + offset, nbytes, tuple(shape), stored)
    if size > max(start + at, end):
        raise SourceError(f"{path} has {size - start - at} extra bytes after the last tensor", _DAMAGED)
    return tensors


def _up(number: int, alignment: int) -> int:
    return -(-number // alignment) * alignment


def _encoding(path: Path, tensor: str, kind: int) -> str:
    """The name of a tensor's encoding. Raises SourceError if the gguf package cannot dequantize it."""
    try:
        known = GGMLQuantizationType(kind)
        dequantize(np.zeros((1, GGML_QUANT_SIZES[known][1]), np.uint8), known)
    except (ValueError, NotImplementedError):
        name = GGMLQuantizationType(kind).name if kind in set(GGMLQuantizationType) else f"number {kind}"
        raise SourceError(
            f"{path}: tensor {shown(tensor)} has GGUF type {name}, which the gguf package cannot dequantize",
            "use another quantization of the model; F16, BF16, Q8_0 and the K-quants all work",
        ) from None
    return str(known.name)
