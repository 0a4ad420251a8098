"""Where a bundle may be made, and whose leftovers are gone on with."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgekit.bundle import open_bundle, write_bundle
from edgekit.bundle.disk import inside
from edgekit.errors import BundleError
from edgekit.types import LEFT_ALONE, Bundle, Resume

Build = Callable[..., Bundle]
Make = Callable[..., ir.Model]

GRAPH = "onnx/model_q4.onnx"


def refusal(build: Build, out: Path | str, *, force: bool = True) -> str:
    with pytest.raises(BundleError) as caught:
        build(out, force=force)
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "cannot be a bundle's folder"),
        ("/", "cannot be a bundle's folder"),
        ("n" * 300, "the name has 300 bytes"),
        ("\u00e4" * 120, "the name has 240 bytes"),
        ("a\0b", "a null character"),
        ("\udcff", "surrogates not allowed"),
    ],
)
def test_a_name_that_no_bundle_can_have(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refusal(build, name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["n" * 200, "with [brackets]*", "spaces and \u00e4", "-o", ".hidden"])
def test_a_name_that_a_bundle_can_have(tmp_path: Path, build: Build, name: str) -> None:
    build(tmp_path / name)
    after = build(tmp_path / name, force=True)
    assert open_bundle(tmp_path / name) == after
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_dots_are_followed(tmp_path: Path, build: Build) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert build(tmp_path / "a" / "b" / ".." / "out").path == tmp_path / "a" / "out"
    (tmp_path / "c" / "d").mkdir(parents=True)
    (tmp_path / "c" / "d").rmdir()
    assert build(tmp_path / "c" / "d" / "..").path == tmp_path / "c"


def test_parents_may_be_links(tmp_path: Path, build: Build) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert build(tmp_path / "link" / "out").path == tmp_path / "real" / "out"
    assert [p.name for p in (tmp_path / "real").iterdir()] == ["out"]


def test_a_bundle_is_not_written_or_deleted_through_a_link(tmp_path: Path, build: Build) -> None:
    before = build(tmp_path / "real")
    for name, to in (("link", "real"), ("dangling", "none"), ("circle", "circle")):
        (tmp_path / name).symlink_to(to)
        assert "is a link" in refusal(build, tmp_path / name)
    assert "cannot be" in refusal(build, tmp_path / "circle" / "out")
    assert open_bundle(tmp_path / "real") == before


def test_links_in_the_old_bundle_are_deleted_and_not_followed(tmp_path: Path, build: Build) -> None:
    old = build(tmp_path / "out")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "config.json").write_text("mine")
    (old.path / "config.json").unlink()
    (old.path / "config.json").symlink_to(precious / "config.json")
    build(tmp_path / "out", force=True)
    assert (precious / "config.json").read_text() == "mine"
    (tmp_path / "out" / "more").symlink_to(precious)
    assert "more is not part of the bundle" in refusal(build, tmp_path / "out")


@pytest.mark.parametrize("kind", ["file", "pipe", "device"])
def test_what_is_no_folder_is_not_replaced(tmp_path: Path, build: Build, kind: str) -> None:
    out = tmp_path / "out" if kind != "device" else Path("/dev/null")
    if kind == "file":
        out.write_text("x")
    elif kind == "pipe":
        os.mkfifo(out)
    assert "is not a folder" in refusal(build, out)
    assert "cannot be written" in refusal(build, out / "deeper")


def test_a_folder_that_may_not_be_written(tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    closed = tmp_path / "closed"
    closed.mkdir()
    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write everywhere
    assert "Permission denied" in refusal(build, closed / "out")


def test_a_bundle_has_the_mode_that_the_umask_leaves_and_keeps_it(tmp_path: Path, build: Build) -> None:
    before = os.umask(0o027)
    try:
        path = build(tmp_path / "out").path
        assert stat.S_IMODE(path.stat().st_mode) == 0o750
        assert {stat.S_IMODE(p.stat().st_mode) for p in path.rglob("*") if p.is_file()} == {0o640}
        path.chmod(0o755)
        build(tmp_path / "out", force=True)
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
    finally:
        os.umask(before)


def test_nobody_else_looks_into_a_bundle_in_the_making(tmp_path: Path) -> None:
    with write_bundle(tmp_path / "out") as folder:
        (hidden,) = tmp_path.iterdir()
        assert stat.S_IMODE(hidden.stat().st_mode) == 0o700
        assert folder.folder.parent == hidden


@pytest.mark.parametrize("names", [("Read.txt", "read.TXT"), ("a/b", "A/b"), ("EDGEKIT.json", "")])
def test_files_that_differ_by_case_alone_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    with (
        pytest.raises(BundleError, match="two files of the bundle have this name"),
        write_bundle(tmp_path / "out") as folder,
    ):
        for name in names:
            folder.write_file(name, b"x")


@pytest.mark.parametrize("name", ["a" * 256, "a/" * 100 + "a", "\ud800", "b/" + "\u00e4" * 128])
def test_a_file_name_that_no_disk_takes(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="is not a path inside the bundle") as caught:
        inside(tmp_path, name)
    assert caught.value.hint
    assert len(caught.value.message) < 700


def test_a_link_in_a_circle_leaves_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("a")
    with pytest.raises(BundleError, match="leaves the bundle"):
        inside(tmp_path, "a")


class Leftover:
    """A killed build of a place, as this user or another could have made it."""

    def __init__(self, tmp_path: Path, make_model: Make) -> None:
        self.make_model = make_model
        self.out = tmp_path / "out"
        with write_bundle(tmp_path / "first") as folder:
            folder.write_graph(make_model(), GRAPH, resume=Resume("key", {}))
            (hidden,) = (p for p in tmp_path.iterdir() if p.name.startswith("."))
            self.path = tmp_path / hidden.name.replace("first", "out")
            os.system(f"cp -a '{hidden}' '{self.path}'")
        self.data = self.path / "bundle" / f"{GRAPH}_data"

    def resumed(self) -> tuple[int, int]:
        """Build again: the bytes gone on with, and the leftovers left alone."""
        said = {}
        with write_bundle(self.out) as folder:
            folder.write_graph(
                self.make_model(),
                GRAPH,
                resume=Resume("key", {}),
                progress=lambda task, done, total, unit="B": said.update({task: done}),
            )
        return said.get("resumed", 0), said.get(LEFT_ALONE, 0)


@pytest.fixture
def left(tmp_path: Path, make_model: Make) -> Leftover:
    return Leftover(tmp_path, make_model)


def test_ones_own_leftover_is_gone_on_with(left: Leftover) -> None:
    assert left.resumed() == (7160, 0)
    assert not left.path.exists()


def test_another_users_leftover_is_left_alone(left: Leftover, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(left.path, 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert left.resumed() == (0, 1)
    assert left.data.exists()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o755])
def test_a_leftover_that_others_could_reach_is_left_alone(left: Leftover, mode: int) -> None:
    left.path.chmod(mode)
    assert left.resumed() == (0, 1)


def test_a_leftover_that_is_a_link_is_left_alone(left: Leftover, tmp_path: Path) -> None:
    left.path.rename(tmp_path / "elsewhere")
    left.path.symlink_to(tmp_path / "elsewhere")
    assert left.resumed() == (0, 1)
    assert (tmp_path / "elsewhere" / "bundle").is_dir()


@pytest.mark.parametrize("which", ["data", "journal"])
@pytest.mark.parametrize("kind", ["link", "hard link", "pipe"])
def test_a_file_of_a_leftover_that_is_no_plain_file_is_not_written_through(
    left: Leftover, tmp_path: Path, which: str, kind: str
) -> None:
    path = left.data if which == "data" else left.path / "unfinished.jsonl"
    victim = tmp_path / "victim"
    path.rename(victim)
    before = victim.read_bytes()
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "hard link":
        path.hardlink_to(victim)
    else:
        os.mkfifo(path)
    assert left.resumed() == (0, 0)
    assert victim.read_bytes() == before


NEGATIVE, LARGE = (f'{{"bytes":{n},"sha256":"0","errors":[]}}' for n in (-5, 9_999_999_999))


@pytest.mark.parametrize("line", [NEGATIVE, LARGE, "[]", "{", "\udcff"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_journal_that_makes_no_sense_is_believed_up_to_there(left: Leftover, line: str, at: int) -> None:
    journal = left.path / "unfinished.jsonl"
    lines = journal.read_text().splitlines()
    lines[at:at] = [line]
    journal.write_bytes("".join(f"{line}\n" for line in lines).encode(errors="surrogateescape"))
    resumed, alone = left.resumed()
    assert alone == 0
    assert (resumed > 0) == (at == 2 and line != "\udcff")


def test_a_pipe_in_place_of_the_lock_is_not_waited_for(left: Leftover) -> None:
    (left.path / "lock").unlink()
    os.mkfifo(left.path / "lock")
    assert left.resumed()[0] in (0, 7160)


def test_the_old_bundle_is_whole_when_another_build_was_faster(
    tmp_path: Path, build: Build, make_model: Make, manifest: object
) -> None:
    with pytest.raises(BundleError, match="a bundle already exists"), write_bundle(tmp_path / "out") as folder:
        folder.write_graph(make_model(last=lambda: ir.Tensor(np.ones((7, 50), np.float32))), GRAPH)
        before = build(tmp_path / "out")
        folder.finish(manifest)  # type: ignore[arg-type]
    assert open_bundle(tmp_path / "out") == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
