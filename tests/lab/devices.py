"""Devices for the tests: folders of this machine, whose Python is the tests' own and whose wheels are empty."""

from __future__ import annotations

import sys
import zipfile
from dataclasses import dataclass, field

from edgekit.lab.driver import device
from edgekit.lab.transports.local import Local


def python_at(folder, body=""):
    """A ``python3`` in a folder, which runs the tests' Python, or the given script."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "python3"
    program.write_text(f'#!/bin/sh\n{body or f"exec {sys.executable} "}"$@"\n' if not body else f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return folder


def empty_wheel(folder):
    """A wheel without anything that matters, for a Python that has numpy and onnxruntime already."""
    wheel = folder / "empty-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("empty/__init__.py", "")
    return wheel


def pretend(tmp_path, monkeypatch):
    """Make this machine a device with a Python that has numpy and onnxruntime, and needs no wheels; its address."""
    monkeypatch.setenv("PATH", f"{python_at(tmp_path / 'bin')}:/usr/bin:/bin")
    wheel = empty_wheel(tmp_path)
    monkeypatch.setattr(device, "find_wheels", lambda *_: (wheel,))
    return f"local:{tmp_path / 'device'}"


@dataclass
class Counted(Local):
    """A local transport that counts what is put, and can refuse."""

    root: object
    put_files: list = field(default_factory=list)

    def __post_init__(self):
        super().__init__(f"local:{self.root}", self.root)

    def put(self, source, target, progress=lambda *_: None):
        self.put_files.append(target.rpartition("/")[2])
        super().put(source, target, progress)

    __hash__ = object.__hash__
