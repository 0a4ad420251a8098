"""An onnx_ir.Model to ``<file>.onnx`` and ``<file>.onnx_data``: few tensors in memory at a time, hashed on the way.

Tensors are evaluated in graph order while those before are written and hashed by a second thread, so memory holds the
one that is evaluated, the one that is written, and what WAITING allows. There is no 2 GB limit: the protobuf keeps
names and offsets only.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from edgekit import __version__
from edgekit.bundle.disk import require_space, writing
from edgekit.types import EXPANDED, INSIDE, SHARED_WITH, Progress, silent

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from edgekit.bundle.journal import Journal

INLINE_BYTES = 1024
"""Vectors up to this size stay in the protobuf: shapes and axes, which ONNX Runtime reads while it loads the graph."""

ALIGNMENT = 64
"""Offsets are multiples of a cache line. ONNX Runtime maps the file and rounds to pages itself."""

WAITING = 1 << 26
"""Bytes that may wait behind the tensor that is being written, while the next one is evaluated."""

DIRTY = 1 << 28
"""Bytes after which the kernel is asked to begin to write them."""

_TRANSPOSE_ROWS = 64


@dataclass(frozen=True)
class Written:
    """A file as it was written."""

    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Slot:
    offset: int
    length: int


def write_model(
    model: ir.Model,
    path: Path,
    *,
    beside: Collection[str] = (),
    journal: Journal | None = None,
    progress: Progress = silent,
) -> tuple[Written, ...]:
    """Write a model; its large initializers become external tensors, in the file and in ``model`` itself.

    An initializer whose metadata has ``edgekit.shared_with`` is not written: it points at the bytes of the one named.
    The same model gives the same bytes.

    Args:
        model: changed in place; every lazy tensor is evaluated once and dropped.
        path: the ``.onnx`` file. Its folder exists.
        beside: data files in the same folder that tensors of ``model`` may stay in.
        journal: of a build that may be gone on with: tensors that it finds finished are not evaluated again.
        progress: told the bytes of tensors written.

    Returns:
        The graph and, when any tensor is large, its data file.

    Raises:
        BundleError: the disk is full or the folder cannot be written.
        ValueError: a tensor's bytes are not what its type and shape say, or it shares the bytes of another size.
    """
    values = [v for v in _large(model) if not _stays(v, path, beside)]
    for value in model.graph.initializers.values():
        # An exporter may have put a small tensor into a file of its own, which does not ship.
        if isinstance(value.const_value, ir.ExternalTensor) and not (_is_large(value) or _stays(value, path, beside)):
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    slots = _lay_out(values)
    total = max((s.offset + s.length for s in slots.values()), default=0)
    data = path.with_name(f"{path.name}_data")
    taken = data.stat().st_size if journal and data.exists() else 0  # a killed build's, gone on with
    require_space(path.parent, total - taken)
    written = (_write_data(values, slots, total, data, journal, progress),) if values else ()
    proto = _serialize(model)
    with writing(path, total + len(proto)):
        path.write_bytes(proto)
    return (Written(path, len(proto), sha256(proto).hexdigest()), *written)


def predict_bytes(model: ir.Model, path: Path) -> tuple[int, int]:
    """Bytes of the graph and of its data file that ``write_model`` would write; no tensor is evaluated.

    Args:
        model: changed in place: its lazy tensors become external ones or, where they are small, zeros.
        path: the ``.onnx`` file that is not written; the graph holds its name.
    """
    data = path.with_name(f"{path.name}_data")
    slots = _lay_out(_large(model))
    for value in model.graph.initializers.values():
        if _name(value) in slots:
            _point(value, slots[_name(value)], data)
        elif isinstance(value.const_value, ir.LazyTensor):
            shape, dtype = value.const_value.shape.numpy(), value.const_value.dtype
            kept = dict(value.const_value.metadata_props)
            zeros = np.zeros(shape, dtype.numpy())
            value.const_value = ir.Tensor(zeros, dtype=dtype, name=value.name, metadata_props=kept)
    return len(_serialize(model)), max((s.offset + s.length for s in slots.values()), default=0)


def _serialize(model: ir.Model) -> bytes:
    model.producer_name, model.producer_version = "edgekit", __version__
    return bytes(ir.serde.serialize_model(model).SerializeToString(deterministic=True))


def _write_data(
    values: Sequence[ir.Value],
    slots: Mapping[str, _Slot],
    total: int,
    path: Path,
    journal: Journal | None,
    progress: Progress,
) -> Written:
    """Write the tensors that own their bytes and put external tensors in the place of all."""
    task = f"writing {path.name}"
    with closing(_Sink(path, total, journal, progress)) as sink, ThreadPoolExecutor(1) as pool:
        waiting: deque[tuple[Future[None], int]] = deque()
        finished = sink.bytes
        for value in values:
            slot, tensor = slots[_name(value)], _tensor(value)
            if _owner(value) is None and slot.offset + slot.length > finished:
                data = _contents(tensor)
                if len(data) != slot.length:
                    raise ValueError(f"{_name(value)}: {len(data)} bytes, its type and shape say {slot.length}")
                while waiting and sum(size for _, size in list(waiting)[1:]) + slot.length > WAITING:
                    waiting.popleft()[0].result()
                progress(task, sink.bytes, total)
                waiting.append((pool.submit(sink.append, slot.offset, data), slot.length))
                del data
            del tensor
            _point(value, slot, path)
        for future, _ in waiting:
            future.result()
    progress(task, total, total)
    return sink.written()


def _point(value: ir.Value, slot: _Slot, path: Path) -> None:
    """Put an external tensor in the place of a value's tensor."""
    tensor = _tensor(value)
    value.const_value = ir.ExternalTensor(
        path.name,
        slot.offset,
        slot.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=_name(value),
        metadata_props=dict(tensor.metadata_props),
        base_dir=path.parent,
    )


class _Sink:
    """A file that is appended to and hashed in the same stroke."""

    def __init__(self, path: Path, total: int, journal: Journal | None, progress: Progress) -> None:
        self.path = path
        self._total = total
        self._asked = 0
        self._broken = False
        self._journal = journal
        with writing(path, total):
            self._hash: Any
            self.bytes, self._hash = journal.recover(path, total, progress) if journal else (0, sha256())
            self._file = path.open("r+b" if self.bytes else "wb", buffering=0)
            self._file.truncate(self.bytes)
            self._file.seek(self.bytes)

    def append(self, offset: int, data: memoryview) -> None:
        """Fill up to ``offset`` with zeros and append ``data``; nothing more once something could not be written."""
        if self._broken:
            return
        self._broken = True
        for part in (memoryview(bytes(offset - self.bytes)), data):
            self._hash.update(part)
            rest = part
            with writing(self.path, self._total):
                while rest:
                    rest = rest[self._file.write(rest) :]
        self._broken = False
        self.bytes = offset + len(data)
        if self.bytes - self._asked >= DIRTY and hasattr(os, "posix_fadvise"):
            # Linux begins to write such pages at once; the wait for the disk at the end is shorter by them.
            os.posix_fadvise(self._file.fileno(), self._asked, self.bytes - self._asked, os.POSIX_FADV_DONTNEED)
            self._asked = self.bytes
        if self._journal:
            with writing(self.path, self._total):
                self._journal.note(self.bytes, self._hash.copy().hexdigest())

    def written(self) -> Written:
        """What the file has become."""
        return Written(self.path, self.bytes, self._hash.hexdigest())

    def close(self) -> None:
        """Close the file, whatever is in it."""
        self._file.close()


def _lay_out(values: Sequence[ir.Value]) -> dict[str, _Slot]:
    """Where the bytes of each tensor lie: one after another in graph order, shared ones once."""
    slots: dict[str, _Slot] = {}
    end = 0
    for value in values:
        if _owner(value) is None:
            offset = -(-end // ALIGNMENT) * ALIGNMENT
            slots[_name(value)] = _Slot(offset, _tensor(value).nbytes)
            end = offset + _tensor(value).nbytes
    for value in values:
        owner = _owner(value)
        if owner is not None:
            if owner not in slots or slots[owner].length != _tensor(value).nbytes:
                raise ValueError(f"{_name(value)}: cannot share the bytes of {owner}: not as many")
            slots[_name(value)] = slots[owner]
    return slots


def _contents(tensor: ir.TensorProtocol) -> memoryview:
    """The bytes of a tensor as ONNX stores them: little-endian, rows first, two 4-bit values a byte."""
    while isinstance(tensor, ir.LazyTensor):
        tensor = tensor.raw()
    if isinstance(tensor, ir.PackedTensor):
        array: NDArray[np.generic] = tensor.numpy_packed()
    elif tensor.dtype.bitwidth % 8 or sys.byteorder == "big":
        array = np.frombuffer(tensor.tobytes(), np.uint8)
    else:
        array = _rows_first(tensor.numpy())
    return array.reshape(-1).view(np.uint8).data


def _rows_first(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """The array in C order. A transposed matrix is copied a band of rows at a time, which stays in the cache."""
    if array.flags.c_contiguous or array.ndim != 2:
        return np.ascontiguousarray(array)
    out = np.empty(array.shape, array.dtype)
    for row in range(0, len(array), _TRANSPOSE_ROWS):
        out[row : row + _TRANSPOSE_ROWS] = array[row : row + _TRANSPOSE_ROWS]
    return out


def _large(model: ir.Model) -> list[ir.Value]:
    """In the order in which the graph uses them, which is the source's too."""
    known = model.graph.initializers
    used = (v for node in model.graph for v in node.inputs if v is not None and known.get(str(v.name)) is v)
    return [v for v in dict.fromkeys([*used, *known.values()]) if _is_large(v)]


def _is_large(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.dtype == ir.DataType.STRING or INSIDE in value.metadata_props:
        return False
    return tensor.nbytes > INLINE_BYTES or len(tensor.shape) > 1


def _stays(value: ir.Value, path: Path, beside: Collection[str]) -> bool:
    """Whether the bytes lie in one of the files ``beside`` already, or are made by the runner."""
    tensor = value.const_value
    if not isinstance(tensor, ir.ExternalTensor):
        return False
    return tensor.location == EXPANDED or (tensor.location in beside and Path(tensor.base_dir) == path.parent)


def _owner(value: ir.Value) -> str | None:
    return _tensor(value).metadata_props.get(SHARED_WITH) or value.metadata_props.get(SHARED_WITH)


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name
