"""What a killed build leaves for the next one: a line for every tensor that it had written.

A line holds the bytes of the data file so far and their sha256. Whatever the disk made of them, the longest prefix that
still has its hash is right, so nothing waits for the disk while a build runs, and a damaged tensor is noticed.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from edgekit.types import RESUMED

if TYPE_CHECKING:
    from pathlib import Path

    from edgekit.types import Progress, Resume

JOURNAL = "unfinished.jsonl"

_CHUNK = 1 << 22


class Journal:
    """The journal of one data file; its first line is the key of the build's inputs."""

    def __init__(self, folder: Path, resume: Resume) -> None:
        self._path = folder / JOURNAL
        self._resume = resume
        self._noted: dict[str, float] = {}

    def adopt(self, leftover: Path, name: str) -> None:
        """Take over the journal and the file ``name`` from the folder of a killed build, if its inputs were ours."""
        old = leftover / JOURNAL
        lines = _lines(old)
        if self._path.exists() or not lines or lines[0].get("key") != self._resume.key:
            return
        data = self._path.parent / name
        data.parent.mkdir(parents=True, exist_ok=True)
        try:
            (leftover / name).rename(data)
            old.rename(self._path)
        except OSError:  # another build was faster
            return

    def recover(self, data: Path, total: int, progress: Progress) -> tuple[int, Any]:
        """The bytes at the start of ``data`` that are finished, and their hash so far; begins the journal anew."""
        lines = _lines(self._path)[1:] if data.is_file() else []
        digest, done, kept = sha256(), 0, []
        found = sha256()
        if lines:
            with data.open("rb", buffering=0) as file:
                for line in lines:
                    if not _read(file, line["bytes"] - done, found) or found.hexdigest() != line["sha256"]:
                        break
                    done, digest = line["bytes"], found.copy()
                    kept.append(line)
                    progress(f"checking what is there of {data.name}", done, total)
        with self._path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in ({"key": self._resume.key}, *kept))
        for line in kept:
            self._resume.errors.update(line["errors"])
        self._noted = dict(self._resume.errors)
        if done:
            progress(RESUMED, done, total)
        return done, digest

    def note(self, done: int, digest: str) -> None:
        """The first ``done`` bytes are written."""
        errors = {k: v for k, v in self._resume.errors.copy().items() if k not in self._noted}
        self._noted |= errors
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"bytes": done, "sha256": digest, "errors": errors}) + "\n")


def _read(file: Any, count: int, digest: Any) -> bool:
    """Hash ``count`` bytes more; False when the file ends before."""
    buffer = memoryview(bytearray(min(count, _CHUNK)))
    while count:
        n = file.readinto(buffer[: min(count, _CHUNK)])
        if not n:
            return False
        digest.update(buffer[:n])
        count -= n
    return True


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal; the one that was being written is left out."""
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except (OSError, ValueError):
        return []
