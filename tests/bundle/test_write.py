"""A bundle is written whole or not at all."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

import numpy as np
import onnx_ir as ir
import pytest

from edgekit.bundle import external as external_module
from edgekit.bundle import open_bundle, write_bundle
from edgekit.bundle import write as write_module
from edgekit.errors import BundleError, SourceError
from edgekit.host.disk import try_lock
from edgekit.types import Bundle, Manifest, SideFile

Build = Callable[..., Bundle]


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_bundle_opens_as_it_was_finished(tmp_path: Path, build: Build) -> None:
    bundle = build(tmp_path / "deep" / "out")
    assert open_bundle(tmp_path / "deep" / "out") == bundle
    assert bundle.graph.is_file()
    assert {f.path for f in bundle.manifest.files} | {"edgekit.json"} == set(tree(bundle.path))
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]


def test_two_builds_give_the_same_bytes(tmp_path: Path, build: Build) -> None:
    first, second = build(tmp_path / "a"), build(tmp_path / "b")
    assert tree(first.path) == tree(second.path)
    assert first.sha256 == second.sha256


def test_nothing_is_seen_before_finish(tmp_path: Path, make_model: Callable[..., ir.Model]) -> None:
    out = tmp_path / "out"
    with write_bundle(out) as folder:
        folder.write_graph(make_model(), "onnx/model_q4.onnx")
        assert not out.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SourceError("shard 2 is truncated", "copy it again"), MemoryError()]
)
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, build: Build, error: BaseException) -> None:
    def fail() -> ir.TensorProtocol:
        raise error

    with pytest.raises(type(error)):
        build(tmp_path / "out", last=fail)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_replacing_keeps_the_old_bundle(tmp_path: Path, build: Build) -> None:
    def interrupt() -> ir.TensorProtocol:
        raise KeyboardInterrupt

    before = build(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "out", force=True, last=interrupt)
    assert open_bundle(tmp_path / "out") == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@contextmanager
def no_file_larger_than(limit: int) -> Iterator[None]:
    """The kernel refuses to write past ``limit``, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_in_the_middle_of_a_file(tmp_path: Path, build: Build) -> None:
    with no_file_larger_than(4096), pytest.raises(BundleError) as caught:
        build(tmp_path / "out")
    data = tmp_path / "out" / "onnx" / "model_q4.onnx_data"
    assert caught.value.message.startswith(f"{data}: not enough disk space: 7,160 bytes needed, ")
    assert "bytes free" in caught.value.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_while_writing(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch, code: int, weights: dict[str, np.ndarray]
) -> None:
    append = external_module._Sink.append

    def full(sink: external_module._Sink, offset: int, data: memoryview) -> None:
        if offset > 0:
            with external_module.writing(sink.path, sink._total):
                raise OSError(code, os.strerror(code))
        append(sink, offset, data)

    monkeypatch.setattr(external_module._Sink, "append", full)
    with pytest.raises(BundleError, match="not enough disk space: 7,160 bytes needed"):
        build(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_small_is_noticed_before_any_weight_is_read(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never() -> ir.TensorProtocol:
        raise AssertionError("read")

    usage = type("Usage", (), {"free": 7000})
    monkeypatch.setattr("edgekit.bundle.disk.shutil.disk_usage", lambda path: usage)
    with pytest.raises(BundleError, match="7,160 bytes needed, 7,000 bytes free"):
        build(tmp_path / "out", up=never)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path, build: Build) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="file cannot be written: File exists"):
        build(tmp_path / "file" / "out")


def test_a_folder_of_someone_else_is_never_touched(tmp_path: Path, build: Build) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    for force in (False, True):
        with pytest.raises(BundleError, match="exists and is not a bundle"):
            build(out, force=force)
    assert tree(out) == {"thesis.tex": b"x"}


def test_a_file_in_the_way(tmp_path: Path, build: Build) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(BundleError, match="out: is not a folder"):
        build(tmp_path / "out", force=True)


def test_an_empty_folder_is_fine(tmp_path: Path, build: Build) -> None:
    (tmp_path / "out").mkdir()
    assert open_bundle(build(tmp_path / "out").path)


def test_a_bundle_is_replaced_only_by_force(tmp_path: Path, build: Build) -> None:
    build(tmp_path / "out")
    with pytest.raises(BundleError, match="a bundle already exists") as caught:
        build(tmp_path / "out")
    assert "`force`" in caught.value.hint
    other = ir.Tensor(np.ones((7, 50), np.float32))
    after = build(tmp_path / "out", force=True, last=lambda: other)
    assert open_bundle(tmp_path / "out") == after
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_force_does_not_delete_files_that_are_not_the_bundles(tmp_path: Path, build: Build) -> None:
    build(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"notes\.txt is not part of the bundle"):
        build(tmp_path / "out", force=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_force_does_not_replace_what_it_cannot_read(tmp_path: Path, build: Build) -> None:
    (build(tmp_path / "out").path / "edgekit.json").write_text("{")
    with pytest.raises(BundleError, match="not replaced"):
        build(tmp_path / "out", force=True)


def test_the_old_bundle_comes_back_when_the_rename_fails(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build(tmp_path / "out")
    rename = Path.rename

    def refuse(path: Path, to: Path) -> Path:
        if path.name == write_module.BUNDLE:
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, to)

    monkeypatch.setattr(write_module, "exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(BundleError, match="Input/output error"):
        build(tmp_path / "out", force=True)
    monkeypatch.undo()
    assert open_bundle(tmp_path / "out") == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_bundle_is_replaced_where_folders_cannot_change_places(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_module, "exchange", lambda *_: False)
    build(tmp_path / "out")
    after = build(tmp_path / "out", force=True, last=lambda: ir.Tensor(np.ones((7, 50), np.float32)))
    assert open_bundle(tmp_path / "out") == after
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def leave(tmp_path: Path, name: str = "out", mode: int = 0o700) -> Path:
    """What a killed build of ``name`` leaves: nobody holds its lock."""
    left = tmp_path / f".{name}.edgekit-{token_hex(8)}"
    left.mkdir(mode=mode)
    left.chmod(mode)
    (left / "half").write_text("x")
    return left


def test_what_a_killed_build_left_is_removed(tmp_path: Path, build: Build) -> None:
    alive, other, foreign = leave(tmp_path), leave(tmp_path, "other"), tmp_path / ".out.edgekit-notes"
    foreign.mkdir()
    leave(tmp_path)
    lock = try_lock(alive / "lock")
    assert lock is not None
    build(tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {alive.name, other.name, foreign.name, "out"}
    os.close(lock)


def test_a_bundle_set_aside_by_a_killed_build_comes_back(tmp_path: Path, build: Build) -> None:
    before = build(tmp_path / "out")
    (tmp_path / "out").rename(leave(tmp_path) / "replaced")
    with pytest.raises(BundleError, match="a bundle already exists"):
        build(tmp_path / "out")
    assert open_bundle(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a\\evil", "c:evil", "", ".", "a//b"])
def test_a_side_file_cannot_leave_the_bundle(tmp_path: Path, name: str) -> None:
    with write_bundle(tmp_path / "out") as folder, pytest.raises(BundleError, match="not a path inside the bundle"):
        folder.write_file(name, b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["edgekit.json", "onnx/model_q4.onnx"])
def test_a_side_file_cannot_replace_ours(tmp_path: Path, make_model: Callable[..., ir.Model], name: str) -> None:
    with write_bundle(tmp_path / "out") as folder:
        folder.write_graph(make_model(), "onnx/model_q4.onnx")
        with pytest.raises(BundleError, match="two files of the bundle have this name"):
            folder.write_file(name, b"x")


def test_a_checkpoint_without_config_is_refused(
    tmp_path: Path, make_model: Callable[..., ir.Model], manifest: Manifest
) -> None:
    with write_bundle(tmp_path / "out") as folder:
        folder.write_graph(make_model(), "onnx/model_q4.onnx")
        with pytest.raises(BundleError, match=r"config\.json: missing or not JSON"):
            files = (SideFile("tokenizer.json", b"{}"),)
            folder.write_side_files(files, manifest.spec, manifest.target, "onnx/model_q4.onnx", "int4")
