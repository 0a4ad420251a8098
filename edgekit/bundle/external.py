"""Write an onnx_ir.Model to ``<file>.onnx`` and ``<file>.onnx_data``, hashed while writing, few tensors in memory.

Tensors are evaluated in graph order while a second thread hashes and writes the previous ones, so memory holds the
tensor being evaluated, the one being written, and up to WAITING bytes in between. There is no 2 GB limit: the protobuf
holds only names and offsets.
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
"""Bytes that may be queued for writing while the next tensor is evaluated."""

DIRTY = 1 << 28
"""Bytes after which the kernel is asked to start writing them back."""

_TRANSPOSE_ROWS = 64


@dataclass(frozen=True)
class Written:
    """A written file, its size and its hash."""

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

    An initializer with ``edgekit.shared_with`` in its metadata is not written but points to the bytes of that tensor.
    The output is deterministic.

    Args:
        model: changed in place; every lazy tensor is evaluated once and dropped.
        path: the ``.onnx`` file. Its folder exists.
        beside: data files in the same folder that tensors of ``model`` may stay in.
        journal: of a resumable build; tensors that a killed build finished are not evaluated again.
        progress: called with the bytes of tensors written.

    Returns:
        The graph and, if any tensor is large, its data file.

    Raises:
        BundleError: the disk is full or the folder is not writable.
        ValueError: the size of a tensor's data does not match its type and shape, or that of the tensor it shares.
    """
    values = [v for v in _large(model) if not _stays(v, path, beside)]
    for value in model.graph.initializers.values():
        # An exporter may have put a small tensor into a file that does not ship.
        if isinstance(value.const_value, ir.ExternalTensor) and not (_is_large(value) or _stays(value, path, beside)):
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    slots = _lay_out(values)
    total = max((s.offset + s.length for s in slots.values()), default=0)
    data = path.with_name(f"{path.name}_data")
    taken = data.stat().st_size if journal and data.exists() else 0  # from a killed build that is resumed
    require_space(path.parent, total - taken)
    written = (_write_data(values, slots, total, data, journal, progress),) if values else ()
    proto = _serialize(model)
    with writing(path, total + len(proto)):
        path.write_bytes(proto)
    return (Written(path, len(proto), sha256(proto).hexdigest()), *written)


def predict_bytes(model: ir.Model, path: Path) -> tuple[int, int]:
    """The sizes of the graph and data file that ``write_model`` would write; no tensor is evaluated.

    Args:
        model: changed in place: its lazy tensors become external ones or, if small, zeros.
        path: the ``.onnx`` file, whose name is in the graph; it is not written.
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
    """Write the tensors that own their bytes and replace all by external tensors."""
    task = f"writing {path.name}"
    with closing(_Sink(path, total, journal, progress)) as sink, ThreadPoolExecutor(1) as pool:
        waiting: deque[tuple[Future[None], int]] = deque()
        finished = sink.bytes
        for value in values:
            slot, tensor = slots[_name(value)], _tensor(value)
            if _owner(value) is None and slot.offset + slot.length > finished:
                data = _contents(tensor)
                if len(data) != slot.length:
                    raise ValueError(f"{_name(value)}: {len(data)} bytes, but its type and shape need {slot.length}")
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
    """Replace a value's tensor by an external tensor."""
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
    """A file that is hashed while it is appended to."""

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
        """Fill up to ``offset`` with zeros and append ``data``; does nothing after a failed write."""
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
            # Linux starts writing these pages at once, which shortens the final sync.
            os.posix_fadvise(self._file.fileno(), self._asked, self.bytes - self._asked, os.POSIX_FADV_DONTNEED)
            self._asked = self.bytes
        if self._journal:
            with writing(self.path, self._total):
                self._journal.note(self.bytes, self._hash.copy().hexdigest())

    def written(self) -> Written:
        """The file's size and hash."""
        return Written(self.path, self.bytes, self._hash.hexdigest())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _lay_out(values: Sequence[ir.Value]) -> dict[str, _Slot]:
    """Assign each tensor its place in the data file, in graph order; shared bytes get one place."""
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
                raise ValueError(f"{_name(value)}: cannot share the bytes of {owner}: the sizes differ")
            slots[_name(value)] = slots[owner]
    return slots


def _contents(tensor: ir.TensorProtocol) -> memoryview:
    """The bytes of a tensor as ONNX stores them: little-endian, row-major, two 4-bit values per byte."""
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
    """The array in C order. A transposed matrix is copied in bands of rows that fit the cache."""
    if array.flags.c_contiguous or array.ndim != 2:
        return np.ascontiguousarray(array)
    out = np.empty(array.shape, array.dtype)
    for row in range(0, len(array), _TRANSPOSE_ROWS):
        out[row : row + _TRANSPOSE_ROWS] = array[row : row + _TRANSPOSE_ROWS]
    return out


def _large(model: ir.Model) -> list[ir.Value]:
    """The large initializers in the order in which the graph uses them, which is also the source's."""
    known = model.graph.initializers
    used = (v for node in model.graph for v in node.inputs if v is not None and known.get(str(v.name)) is v)
    return [v for v in dict.fromkeys([*used, *known.values()]) if _is_large(v)]


def _is_large(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.dtype == ir.DataType.STRING or INSIDE in value.metadata_props:
        return False
    return tensor.nbytes > INLINE_BYTES or len(tensor.shape) > 1


def _stays(value: ir.Value, path: Path, beside: Collection[str]) -> bool:
    """Whether the bytes are already in one of the files ``beside``, or are computed by the runner."""
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
