"""Tensors as external data: bytes, layout, sharing, and how much memory they take."""

from __future__ import annotations

import errno
import gc
import weakref
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit.bundle import external
from edgekit.bundle.external import ALIGNMENT, INLINE_BYTES, SHARED_WITH, write_model
from edgekit.errors import BundleError
from edgekit.run.runtime import onnxruntime


def entry(path: Path, name: str) -> dict[str, str]:
    model = onnx.load(path, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    return {e.key: e.value for e in tensor.external_data}


def single(tensor: ir.TensorProtocol, *more: ir.TensorProtocol) -> ir.Model:
    """A model that holds tensors and uses none."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    node = ir.Node("", "Identity", [x])
    node.outputs[0].name = "y"
    values = [ir.Value(name=t.name, const_value=t) for t in (tensor, *more)]
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=values, opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)


def test_every_tensor_comes_back_and_the_model_keeps_none(
    tmp_path: Path, make_model: Callable[..., ir.Model], weights: dict[str, np.ndarray]
) -> None:
    model = make_model()
    graph, data = write_model(model, tmp_path / "m.onnx")
    assert (graph.path.name, data.path.name) == ("m.onnx", "m.onnx_data")
    for written in (graph, data):
        content = written.path.read_bytes()
        assert (len(content), sha256(content).hexdigest()) == (written.bytes, written.sha256)
    loaded = onnx.load(graph.path)
    for tensor in loaded.graph.initializer:
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), weights[tensor.name])
    assert all(isinstance(v.const_value, ir.ExternalTensor) for v in model.graph.initializers.values())
    assert graph.bytes < 1200


def test_offsets_are_aligned_and_in_graph_order(tmp_path: Path, make_model: Callable[..., ir.Model]) -> None:
    write_model(make_model(), tmp_path / "m.onnx")
    offsets = [int(entry(tmp_path / "m.onnx", name)["offset"]) for name in ("up", "down", "last")]
    assert offsets == sorted(offsets)
    assert all(o % ALIGNMENT == 0 for o in offsets)
    assert entry(tmp_path / "m.onnx", "up")["location"] == "m.onnx_data"


def test_small_tensors_stay_inline(tmp_path: Path) -> None:
    small = ir.Tensor(np.arange(INLINE_BYTES // 4, dtype=np.float32), name="small")
    assert len(write_model(single(small), tmp_path / "m.onnx")) == 1
    assert not (tmp_path / "m.onnx_data").exists()
    loaded = onnx.load(tmp_path / "m.onnx")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(loaded.graph.initializer[0]), small.numpy())


def test_a_small_tensor_of_another_file_comes_inline(tmp_path: Path) -> None:
    array = np.arange(5, dtype=np.float32)
    (tmp_path / "elsewhere").write_bytes(array.tobytes())
    tensor = ir.ExternalTensor(
        "elsewhere", 0, array.nbytes, ir.DataType.FLOAT, shape=ir.Shape([5]), name="t", base_dir=tmp_path
    )
    (graph,) = write_model(single(tensor), tmp_path / "m.onnx")
    (tmp_path / "elsewhere").unlink()
    assert entry(graph.path, "t") == {}
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(onnx.load(graph.path).graph.initializer[0]), array)


def test_shared_bytes_are_stored_once_under_two_shapes(tmp_path: Path) -> None:
    codes = np.random.default_rng(1).integers(0, 256, (64, 32), dtype=np.uint8)
    first = ir.Tensor(codes, name="embed.codes")

    def never() -> ir.TensorProtocol:
        raise AssertionError("a shared tensor must not be evaluated")

    second = ir.LazyTensor(
        never, ir.DataType.UINT8, ir.Shape([64, 1, 32]), name="head.codes", metadata_props={SHARED_WITH: "embed.codes"}
    )
    # The one that shares may come first.
    _, data = write_model(single(second, first), tmp_path / "m.onnx")
    assert data.bytes == codes.nbytes
    loaded = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "m.onnx").graph.initializer}
    np.testing.assert_array_equal(loaded["embed.codes"], codes)
    np.testing.assert_array_equal(loaded["head.codes"], codes.reshape(64, 1, 32))


def test_onnx_runtime_reads_shared_bytes_under_both_shapes(tmp_path: Path) -> None:
    table = np.random.default_rng(4).standard_normal((64, 32)).astype(np.float32)
    first, second = ir.Tensor(table, name="a"), ir.Tensor(table.reshape(2, 1024), name="b")
    second.metadata_props[SHARED_WITH] = "a"
    model = single(first, second)
    model.graph.outputs.clear()
    for value in model.graph.initializers.values():
        node = ir.Node("", "Neg", [value])
        node.outputs[0].name = f"minus.{value.name}"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.append(node)
        model.graph.outputs.append(node.outputs[0])
    graph, data = write_model(model, tmp_path / "m.onnx")
    assert data.bytes == table.nbytes
    session = onnxruntime.InferenceSession(graph.path, providers=["CPUExecutionProvider"])
    a, b = session.run(None, {"x": np.zeros(1, np.float32)})
    np.testing.assert_array_equal(a, -table)
    np.testing.assert_array_equal(b, -table.reshape(2, 1024))


def test_sharing_another_size_is_refused(tmp_path: Path) -> None:
    first = ir.Tensor(np.zeros((64, 32), np.uint8), name="a")
    second = ir.Tensor(np.zeros((64, 33), np.uint8), name="b", metadata_props={SHARED_WITH: "a"})
    with pytest.raises(ValueError, match="b: cannot share the bytes of a"):
        write_model(single(first, second), tmp_path / "m.onnx")


@pytest.mark.parametrize("dtype", [ir.DataType.UINT4, ir.DataType.INT4])
@pytest.mark.parametrize("packed", [True, False])
def test_four_bit_tensors_are_packed(tmp_path: Path, dtype: ir.DataType, packed: bool) -> None:
    raw = np.random.default_rng(2).integers(0, 256, 2048, dtype=np.uint8)
    whole = ir.PackedTensor(raw, dtype, shape=[64, 64], name="w")
    tensor = whole if packed else ir.Tensor(whole.numpy(), dtype=dtype, name="w")
    write_model(single(tensor), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx_data").read_bytes() == raw.tobytes()


def test_float16_and_higher_rank_views(tmp_path: Path) -> None:
    array = np.random.default_rng(3).standard_normal((8, 12, 10)).astype(np.float16).transpose(2, 0, 1)
    write_model(single(ir.Tensor(array, name="w")), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx_data").read_bytes() == np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize("waiting", [0, 2])
def test_memory_holds_few_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: int) -> None:
    """At most the tensor being made, the one being written and those that may wait are alive; each is made once."""
    arrays: list[weakref.ref[np.ndarray]] = []
    most = 0

    def alive() -> int:
        gc.collect()
        return sum(array() is not None for array in arrays)

    def make() -> ir.TensorProtocol:
        nonlocal most
        array = np.zeros((256, 256), np.float32)
        arrays.append(weakref.ref(array))
        most = max(most, alive())
        return ir.Tensor(array)

    monkeypatch.setattr(external, "WAITING", waiting * 256 * 256 * 4)
    lazy = [ir.LazyTensor(make, ir.DataType.FLOAT, ir.Shape([256, 256]), name=f"w{i}") for i in range(6)]
    write_model(single(*lazy), tmp_path / "m.onnx")
    assert len(arrays) == 6
    assert most <= 2 + waiting
    assert alive() == 0


def test_the_next_tensors_are_evaluated_while_one_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, third = external._Sink.append, Event()
    monkeypatch.setattr(external, "WAITING", 16 * 300)

    def append(sink: external._Sink, offset: int, data: memoryview) -> None:
        assert third.wait(20), "the third tensor waits for the first, which is larger than what may wait"
        original(sink, offset, data)

    def make(i: int, size: int) -> ir.TensorProtocol:
        if i == 2:
            third.set()
        return ir.Tensor(np.full(size, i, np.float32))

    monkeypatch.setattr(external._Sink, "append", append)
    lazy = [
        ir.LazyTensor(partial(make, i, size), ir.DataType.FLOAT, ir.Shape([size]), name=f"w{i}")
        for i, size in enumerate((1 << 16, 300, 300))
    ]
    graph, _ = write_model(single(*lazy), tmp_path / "m.onnx")
    values = ir.load(graph.path).graph.initializers
    assert [values[f"w{i}"].const_value.numpy()[0] for i in range(3)] == [0, 1, 2]  # type: ignore[union-attr]


def test_nothing_is_written_behind_a_tensor_that_could_not_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors wait to be written. A journal would call a file finished that has a hole in it."""
    noted: list[int] = []

    class Notes:
        def recover(self, *_: object) -> tuple[int, object]:
            return 0, sha256()

        def note(self, done: int, _: str) -> None:
            noted.append(done)

    class Full:
        """A file whose disk is full for one tensor."""

        def __init__(self, file: BinaryIO) -> None:
            self.file = file

        def write(self, part: memoryview) -> int:
            if bytes(part[:4]) == np.float32(1).tobytes():
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(part)

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    plain = external._Sink.__init__

    def open_full(sink: external._Sink, *arguments: object) -> None:
        plain(sink, *arguments)  # type: ignore[arg-type]
        sink._file = Full(sink._file)  # type: ignore[assignment]

    monkeypatch.setattr(external._Sink, "__init__", open_full)
    tensors = [ir.Tensor(np.full(512, i, np.float32), name=f"w{i}") for i in range(4)]
    with pytest.raises(BundleError):
        write_model(single(*tensors), tmp_path / "m.onnx", journal=Notes())  # type: ignore[arg-type]
    assert noted == [2048]
    assert (tmp_path / "m.onnx_data").stat().st_size == 2048


def test_bytes_that_contradict_the_shape_are_refused(tmp_path: Path, make_model: Callable[..., ir.Model]) -> None:
    model = make_model(up=lambda: ir.Tensor(np.zeros((8, 94), np.float32)))
    with pytest.raises(ValueError, match="up: 3008 bytes, but its type and shape need 3040"):
        write_model(model, tmp_path / "m.onnx")


def test_progress_counts_the_bytes_written(tmp_path: Path, make_model: Callable[..., ir.Model]) -> None:
    said: list[tuple[str, int, int]] = []
    _, data = write_model(
        make_model(), tmp_path / "m.onnx", progress=lambda t, done, total, unit="B": said.append((t, done, total))
    )
    assert [d for _, d, _ in said] == sorted(d for _, d, _ in said)
    assert said[-1] == ("writing m.onnx_data", data.bytes, data.bytes)


def test_no_two_gigabyte_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tensors of 2 GiB; the file is sparse and the zeros are never touched."""

    def leave_a_hole(sink: external._Sink, offset: int, data: memoryview) -> None:
        sink._file.seek(offset + len(data) - 1)
        sink._file.write(data[-1:])
        sink.bytes = offset + len(data)

    monkeypatch.setattr(external._Sink, "append", leave_a_hole)
    monkeypatch.setattr(external, "require_space", lambda path, needed: None)
    size = 1 << 31
    lazy = [
        ir.LazyTensor(lambda: ir.Tensor(np.zeros(size, np.uint8)), ir.DataType.UINT8, ir.Shape([size]), name=f"w{i}")
        for i in range(3)
    ]
    graph, data = write_model(single(*lazy), tmp_path / "m.onnx")
    assert data.bytes == data.path.stat().st_size == 3 * size
    assert graph.bytes < 1000
    assert entry(graph.path, "w2")["offset"] == str(2 * size)
    assert ir.load(graph.path).graph.initializers["w2"].const_value.numpy().shape == (size,)  # type: ignore[union-attr]
