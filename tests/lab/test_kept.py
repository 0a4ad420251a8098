"""What is kept on a device: pushed once, by content, whole or not at all, within a budget and the room there is."""

from __future__ import annotations

import os
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from edgekit.errors import BundleError, LabError, LinkLost
from edgekit.lab.driver import kept
from edgekit.lab.driver.kept import Item, file_of, keep
from edgekit.lab.driver.python import Python
from edgekit.lab.transport import Finished
from tests.lab.devices import Counted

PYTHON = Python(sys.executable, "3.11.0", "glibc 2.36", "linux", "CPython", "x86_64", 64)


@pytest.fixture
def device(tmp_path):
    return Counted(tmp_path / "device")


@pytest.fixture
def item(tmp_path):
    def make(kind="bundle", **files):
        made = []
        for name, text in files.items():
            path = tmp_path / f"{name}-{sha256(text.encode()).hexdigest()[:8]}"
            path.write_text(text)
            made.append(file_of(f"onnx/{name}", path))
        return Item(kind, tuple(made))

    return make


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def items_of(device):
    return sorted(p.name for p in (device.root / "kept").iterdir())


def test_the_second_time_nothing_is_pushed(device, item):
    one = item(model="weights", data="more")
    (folder,) = keep(device, [one], PYTHON)
    assert sorted(device.put_files) == ["data", "model"]
    found = content(device.root / "kept" / one.name)
    assert found.pop(".files").count("\n") == 2
    assert found == {"onnx/model": "weights", "onnx/data": "more"}
    assert folder == f"{device.home}/kept/{one.name}"
    device.put_files.clear()
    assert keep(device, [one], PYTHON) == (folder,)
    assert device.put_files == []


def test_a_changed_file_alone_is_pushed(device, item):
    keep(device, [item(manifest="old", data="large")], PYTHON)
    device.put_files.clear()
    (folder,) = keep(device, [item(manifest="new", data="large")], PYTHON)
    assert device.put_files == ["manifest"]
    found = content(device.root / "kept" / folder.rpartition("/")[2])
    assert (found["onnx/manifest"], found["onnx/data"]) == ("new", "large")


def test_archives_are_unpacked(device, tmp_path):
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("package/__init__.py", "x = 1")
    (folder,) = keep(device, [Item("site", (file_of("w.whl", wheel),), unpack="zip")], PYTHON)
    assert set(content(device.root / "kept" / folder.rpartition("/")[2])) == {".files", "package/__init__.py"}


def test_a_push_that_broke_off_goes_on_where_it_was(device, item):
    one = item(a="first", b="second")
    whole = device.put

    def lose(source, target, progress):
        if target.endswith("/b"):
            raise LinkLost("gone", "look at it")
        whole(source, target, progress)

    device.put = lose
    with pytest.raises(LinkLost):
        keep(device, [one], PYTHON)
    assert items_of(device) == [f".new-{one.name}"]
    device.put = whole
    device.put_files.clear()
    keep(device, [one], PYTHON)
    assert device.put_files == ["b"]
    assert items_of(device) == [one.name]


def test_what_an_older_push_left_goes(device, item):
    (device.root / "kept/.new-bundle-old/onnx").mkdir(parents=True)
    one = item(a="first")
    keep(device, [one], PYTHON)
    assert items_of(device) == [one.name]


def test_the_longest_unused_go_first(device, item, monkeypatch):
    names = [keep(device, [item(a=text)], PYTHON)[0].rpartition("/")[2] for text in ("one", "two", "six")]
    for age, name in ((300, names[0]), (100, names[1]), (200, names[2])):
        path = device.root / "kept" / name
        os.utime(path, (path.stat().st_atime - age, path.stat().st_mtime - age))
    keep(device, [item(a="one")], PYTHON)  # used again
    monkeypatch.setattr(kept, "BUDGET", 7)
    keep(device, [item(a="new")], PYTHON)
    assert names[2] not in items_of(device)
    assert {names[0], names[1]} <= set(items_of(device))


def with_free(device, kilobytes):
    """A device that says how much is free."""
    run = device.run

    def said(command, give=b"", seconds=None):
        done = run(command, give, seconds)
        lines = [f"free {kilobytes}".encode() if line.startswith(b"free ") else line for line in done.out.split(b"\n")]
        return Finished(done.code, b"\n".join(lines), done.err)

    device.run = said


def test_too_little_room_is_said_before_anything_is_pushed(device, item):
    keep(device, [item(a="old")], PYTHON)
    device.put_files.clear()
    with_free(device, kept.RESERVE // 1024)
    with pytest.raises(LabError, match=r"5 B are to be pushed, and 64.0 MB are free") as caught:
        keep(device, [item(a="a new")], PYTHON)
    assert "free" in caught.value.hint
    assert device.put_files == []
    assert len(items_of(device)) == 1, "what makes too little room is not removed either"


def test_room_is_made_of_what_is_not_in_use(device, item):
    old, used = item(a="0123456789" * 300), item(a="used")
    keep(device, [old], PYTHON)
    keep(device, [used], PYTHON)
    with_free(device, kept.RESERVE // 1024)
    new = item(a="0123456789" * 200)
    keep(device, [used, new], PYTHON)
    assert items_of(device) == sorted([used.name, new.name])


def test_a_file_that_changed_here_is_not_pushed(device, tmp_path):
    path = tmp_path / "model"
    path.write_text("changed")
    with pytest.raises(BundleError, match="has changed"):
        keep(device, [Item("bundle", (file_of("model", path, "0" * 64),))], PYTHON)
    assert device.put_files == []


def test_what_arrives_otherwise_is_said(device, item):
    whole = device.put

    def garble(source, target, progress):
        whole(source, target, progress)
        with Path(target).open("r+b") as file:
            file.write(b"X")

    device.put = garble
    with pytest.raises(LabError, match="did not arrive"):
        keep(device, [item(a="text")], PYTHON)


def test_a_folder_that_cannot_be_written_is_said(tmp_path, item):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LabError, match="local:"):
        keep(Counted(tmp_path / "file" / "device"), [item(a="text")], PYTHON)


def test_a_strangers_list_leads_nowhere(device, item):
    one = item(a="text")
    path = device.root / "kept/bundle-x"
    path.mkdir(parents=True)
    digest = one.files[0].sha256
    (path / ".files").write_text(f"{digest} 4 ../../../etc/passwd\n{digest} 4 $(touch /tmp/x)\nitem $(reboot)\n")
    keep(device, [one], PYTHON)
    assert device.put_files == ["a"]
