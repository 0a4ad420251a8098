"""A file is written whole or not at all, under a name that nobody can guess, and never through a link."""

import errno
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.errors import BundleError, EdgekitError
from edgekit.host import disk


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_new_file_gets_what_the_umask_leaves_and_an_old_one_keeps_its_mode(tmp_path):
    (tmp_path / "old").write_text("x")
    (tmp_path / "old").chmod(0o640)
    before = os.umask(0o027)
    try:
        disk.write_whole(tmp_path / "new", b"1")
        disk.write_whole(tmp_path / "old", b"2")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert modes == {"new": 0o640, "old": 0o640}
    assert (tmp_path / "old").read_bytes() == b"2"


def test_a_link_is_replaced_and_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name, to in (("link", victim), ("dangling", tmp_path / "nowhere")):
        (tmp_path / name).symlink_to(to)
        disk.write_whole(tmp_path / name, b"new")
        assert (tmp_path / name).read_bytes() == b"new"
        assert not (tmp_path / name).is_symlink()
    assert victim.read_text() == "mine"
    assert names(tmp_path) == ["dangling", "link", "victim"]


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_not_a_file_keeps_its_place(tmp_path, kind):
    path = tmp_path / "there"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    for write, words in ((disk.write_whole, (b"x",)), (disk.add_line, ("x",)), (disk.read_lines, ())):
        with pytest.raises(OSError, match=r"not a regular file|directory"):
            write(path, *words)
    assert names(tmp_path) == ["there"]
    assert not path.is_file()


def test_a_file_that_does_not_fit_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")

    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(BundleError, match="not enough disk space: 3 bytes needed") as caught,
        disk.writing(tmp_path, 3, BundleError),
    ):
        disk.write_whole(tmp_path / "file", b"new")
    assert caught.value.hint
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_name_that_is_too_long_is_an_error_with_a_hint(tmp_path):
    path = tmp_path / ("n" * 300)
    with pytest.raises(EdgekitError, match="File name too long") as caught, disk.writing(path):
        disk.write_whole(path, b"x")
    assert caught.value.hint == "choose a shorter name"
    assert names(tmp_path) == []


def test_lines_are_not_added_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        disk.add_line(tmp_path / "link", "x")
    assert victim.read_text() == "mine\n"


def test_half_a_line_is_mended_only_where_it_is_ours(tmp_path):
    path = tmp_path / "lines"
    path.write_text("one\nhal")
    assert disk.read_lines(path) == b"one\n"
    disk.add_line(path, "two", mend=True)
    assert path.read_text() == "one\ntwo\n"
    path.write_text("one")
    disk.add_line(path, "two", mend=True)
    assert path.read_text() == "two\n"


def test_a_line_that_does_not_fit_is_taken_back(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "lines"
    disk.add_line(path, "x" * 60)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            disk.add_line(path, "y" * 60)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "x" * 60 + "\n"


ADD = """
import sys
from pathlib import Path
from edgekit.host.disk import add_line
for n in range(200):
    add_line(Path(sys.argv[1]), f"{sys.argv[2]}{n} " + sys.argv[2] * 3000)
"""


def test_lines_of_two_processes_do_not_mix(tmp_path):
    path = tmp_path / "lines"
    writers = [subprocess.Popen([sys.executable, "-c", ADD, str(path), word]) for word in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    lines = path.read_text().splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(f"{word}{n}" for word in "ab" for n in range(200))
    assert all(set(line.split()[1]) == {line[0]} for line in lines)


HOLD = """
import sys, time
from pathlib import Path
from edgekit.host.disk import locked
with locked(Path(sys.argv[1])):
    print(flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_lock_is_waited_for_and_then_an_error(tmp_path, holder):
    caught = pytest.raises(EdgekitError, match="locked by another process")
    with caught as error, disk.writing(tmp_path), disk.locked(tmp_path, patience=0.1):
        pass
    assert "wait for the other process" in error.value.hint
    assert names(tmp_path) == []


def test_a_lock_ends_with_its_process(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    with disk.locked(tmp_path, patience=60):
        assert holder.wait() == -signal.SIGKILL


def test_where_folders_cannot_be_locked_a_hidden_file_is(tmp_path, monkeypatch):
    """As NFS has it: a lock needs a file that is open for writing."""
    flock = disk.fcntl.flock

    def files_only(handle, how):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(handle, how)

    monkeypatch.setattr(disk.fcntl, "flock", files_only)
    with disk.locked(tmp_path):
        assert [disk.is_scrap(name) for name in names(tmp_path)] == [True]
        with pytest.raises(TimeoutError), disk.locked(tmp_path, patience=0):
            pass


def test_two_folders_change_places(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if disk.exchange(tmp_path / "a", tmp_path / "b"):
        assert (names(tmp_path / "a"), names(tmp_path / "b")) == (["b"], ["a"])
    assert not disk.exchange(tmp_path / "a", tmp_path / "none")
    assert names(tmp_path) == ["a", "b"]


def test_a_private_file_is_this_users_and_no_link(tmp_path):
    disk.make_private(tmp_path / "new")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    disk.make_private(tmp_path / "new")
    (tmp_path / "link").symlink_to(tmp_path / "new")
    with pytest.raises(OSError, match="not a regular file"):
        disk.make_private(tmp_path / "link")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    with pytest.raises(OSError, match="not a regular file"):
        disk.make_private(tmp_path / "dangling")
    assert not Path(tmp_path / "none").exists()


def test_another_users_file_is_not_taken_for_a_private_one(tmp_path, monkeypatch):
    disk.make_private(tmp_path / "file")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(PermissionError, match="another user"):
        disk.make_private(tmp_path / "file")


PRIVATE_FOLDERS = {
    "bundle/external.py", "bundle/journal.py", "bundle/mlprogram.py", "bundle/write.py", "graph/optimum.py",
    "lab/driver/system.py", "lab/native/building.py", "lab/transports/adb.py", "lab/transports/ssh.py",
    "learn/student.py", "quantize/kept.py",
    "run/arm64.py", "run/npu/child.py", "run/npu/compiling.py", "run/npu/emulating.py", "run/wheels.py",
    "source/packaged.py", "verify/arm.py",
}  # fmt: skip
"""What they write lies in a folder, or under a name, that was made for this process alone."""
OTHERS = {"graph/probes.py", "measure/environment.py", "testing.py"}
"""Files of edgekit's own tree, of /proc, and of tests."""


def test_whatever_outlives_a_process_is_written_by_this_module():
    root = Path(disk.__file__).parents[1]
    plain = re.compile(
        r"""\.(write_text|write_bytes|touch|savefig)\((?!picture|text)|open\((["'](w|a|x|r\+)|.*["'][wax]b?["'])"""
    )
    found = {p.relative_to(root).as_posix() for p in root.rglob("*.py") if plain.search(p.read_text(encoding="utf-8"))}
    assert found - {"host/disk.py"} == PRIVATE_FOLDERS | OTHERS
