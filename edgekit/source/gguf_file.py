"""GGUF files: the header, and the model it describes as a config.json.

The header is read here, with the ``gguf`` package's constants: its GGUFReader makes several arrays for every
token of the vocabulary (3.5 s and 160 MB for 49,152 tokens) and maps the whole file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize

from edgekit.errors import SourceError
from edgekit.source.tensors import Extent, row_bytes

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


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file's header: metadata by key, and tensors by llama.cpp's names, rows first."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Extent]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.metadata.get("general.architecture"))

    def get(self, key: str) -> Any:
        """A metadata entry of the architecture: ``block_count`` reads ``llama.block_count``."""
        return self.metadata.get(f"{self.architecture}.{key}")

    def count(self, key: str, default: int | None = None) -> int:
        """A metadata entry of the architecture that must be a positive integer."""
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            said = "is missing" if value is None else f"is {str(value)[:60]}"
            raise SourceError(
                f"{self.path}: '{self.architecture}.{key}' {said}, not one positive number",
                "models whose layers differ in size are not supported" if isinstance(value, list) else _DAMAGED,
            )
        return value


def read_gguf(path: Path) -> GgufFile:
    """Read a GGUF file's header (versions 2 and 3, little-endian). No tensor is read.

    Raises:
        SourceError: when the file is truncated, not GGUF, split, or holds a type that cannot be dequantized.
    """
    try:
        with path.open("rb", buffering=1 << 20) as file:
            return _read_header(file, path, path.stat().st_size)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error}", "check the file and its permissions") from error
    except (struct.error, EOFError):
        raise SourceError(f"{path} is truncated: it ends inside its header", _DAMAGED) from None
    except (ValueError, TypeError, LookupError, ArithmeticError, MemoryError, RecursionError) as error:
        raise SourceError(f"{path} has a damaged header: {error}", _DAMAGED) from error


def _read_header(file: BinaryIO, path: Path, size: int) -> GgufFile:
    magic, version = struct.unpack("<4sI", file.read(8))
    if magic != b"GGUF":
        raise SourceError(f"{path} is not a GGUF file", "give a .gguf file, or a Hugging Face folder")
    if version not in (2, 3):
        big = version & 0xFFFF == 0
        raise SourceError(
            f"{path} is {'big-endian' if big else f'GGUF version {version}'}, and edgekit reads little-endian 2 and 3",
            "convert the model again with a current llama.cpp",
        )
    tensor_count, entry_count = struct.unpack("<QQ", file.read(16))
    metadata = {}
    for _ in range(entry_count):
        key = _string(file)
        metadata[key] = _value(file, GGUFValueType(_number(file, "I")))
    if metadata.get("split.count", 1) > 1:
        raise SourceError(
            f"{path} is one part of {metadata['split.count']}",
            "join the parts with llama.cpp's llama-gguf-split --merge",
        )
    entries = []
    for _ in range(tensor_count):
        name = _string(file)
        dimensions = struct.unpack(f"<{(n := _number(file, 'I'))}Q", file.read(8 * n))
        kind, offset = struct.unpack("<IQ", file.read(12))
        entries.append((name, dimensions[::-1], kind, offset))
    alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    start = -(-file.tell() // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in entries:
        stored = _encoding(path, name, kind)
        nbytes = prod(shape[:-1]) * row_bytes(stored, shape[-1])
        if start + offset + nbytes > size:
            raise SourceError(
                f"{path} is truncated: {size} bytes, and tensor '{name}' ends at {start + offset + nbytes}", _DAMAGED
            )
        tensors[name] = Extent(path, start + offset, nbytes, tuple(shape), stored)
    return GgufFile(path, metadata, tensors)


def _number(file: BinaryIO, code: str) -> Any:
    data = file.read(struct.calcsize(code))
    value = struct.unpack("<" + code, data)[0]
    # The shortest decimal that is this float32: 1e-05, not 9.999999747378752e-06.
    return float(str(np.float32(value))) if code == "f" else value


def _string(file: BinaryIO) -> str:
    length = _number(file, "Q")
    data = file.read(length)
    if len(data) < length:
        raise EOFError
    return data.decode("utf-8")


def _value(file: BinaryIO, kind: GGUFValueType) -> Any:
    if kind == GGUFValueType.STRING:
        return _string(file)
    if kind != GGUFValueType.ARRAY:
        return _number(file, _SCALARS[kind])
    inner, length = GGUFValueType(_number(file, "I")), _number(file, "Q")
    if inner in (GGUFValueType.STRING, GGUFValueType.ARRAY):
        return [_value(file, inner) for _ in range(length)]
    code = _SCALARS[inner]
    return list(struct.unpack(f"<{length}{code}", file.read(length * struct.calcsize(code))))


def _encoding(path: Path, tensor: str, kind: int) -> str:
    """The name of a tensor's encoding. Raises SourceError when the gguf package cannot dequantize it."""
    try:
        known = GGMLQuantizationType(kind)
        dequantize(np.zeros((1, GGML_QUANT_SIZES[known][1]), np.uint8), known)
    except (ValueError, NotImplementedError):
        name = GGMLQuantizationType(kind).name if kind in set(GGMLQuantizationType) else f"number {kind}"
        raise SourceError(
            f"{path}: tensor '{tensor}' has the GGUF type {name}, which the gguf package cannot dequantize",
            "use another quantization of the model; F16, BF16, Q8_0 and the K-quants all work",
        ) from None
    return str(known.name)
