"""The journal that lets the next build resume a killed one: one line for every tensor written.

A line holds the size of the data file so far and its sha256. The longest prefix whose hash still matches is reused, so
a build never waits for the disk, and damaged data is detected.
"""

from __future__ import annotations

import stat
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from edgekit.record import from_json, to_json
from edgekit.types import RESUMED

if TYPE_CHECKING:
    from pathlib import Path

    from edgekit.types import Progress, Resume

JOURNAL = "unfinished.jsonl"

_CHUNK = 1 << 22


@dataclass(frozen=True)
class _First:
    """The key of all inputs."""

    key: str


@dataclass(frozen=True)
class _Line:
    """The hash of the first ``bytes`` of the data file; ``errors`` are those of the tensors since the previous line."""

    bytes: int
    sha256: str
    errors: tuple[tuple[str, float], ...]


class Journal:
    """The journal of one data file; its first line is the key of the build's inputs."""

    def __init__(self, folder: Path, resume: Resume) -> None:
        self._path = folder / JOURNAL
        self._resume = resume
        self._noted: dict[str, float] = {}

    def adopt(self, leftover: Path, name: Path) -> None:
        """Take over the journal and the file ``name`` from a killed build's folder, if its inputs were the same.

        The folder belongs to this user (see write.py); the file's contents are only trusted if the hashes match.
        """
        old, data = leftover / JOURNAL, self._path.parent / name
        if self._path.exists() or not (is_plain(old) and is_plain(leftover / name)):
            return
        if _read_journal(old)[0] != self._resume.key:
            return
        with suppress(OSError):  # then the build starts over
            data.parent.mkdir(parents=True, exist_ok=True)
            (leftover / name).rename(data)
            old.rename(self._path)

    def recover(self, data: Path, total: int, progress: Progress) -> tuple[int, Any]:
        """Return how many bytes of ``data`` are valid and their hash state; rewrites the journal accordingly."""
        lines = _read_journal(self._path)[1] if is_plain(data) else ()
        digest, done, kept = sha256(), 0, []
        found = sha256()
        if lines:
            with data.open("rb", buffering=0) as file:
                for line in lines:
                    if line.bytes > total or not _read(file, line.bytes - done, found):
                        break
                    if found.hexdigest() != line.sha256:
                        break
                    done, digest = line.bytes, found.copy()
                    kept.append(line)
                    progress(f"checking {data.name} of the killed build", done, total)
        with self._path.open("w", encoding="utf-8") as file:
            file.writelines(to_json(line) + "\n" for line in (_First(self._resume.key), *kept))
        for line in kept:
            self._resume.errors.update(line.errors)
        self._noted = dict(self._resume.errors)
        if done:
            progress(RESUMED, done, total)
        return done, digest

    def note(self, done: int, digest: str) -> None:
        """Record that the first ``done`` bytes are written."""
        errors = {k: v for k, v in self._resume.errors.copy().items() if k not in self._noted}
        self._noted |= errors
        with self._path.open("a", encoding="utf-8") as file:
            file.write(to_json(_Line(done, digest, tuple(errors.items()))) + "\n")


def _read(file: Any, count: int, digest: Any) -> bool:
    """Hash the next ``count`` bytes; False if the file is shorter."""
    buffer = memoryview(bytearray(min(count, _CHUNK)))
    while count:
        n = file.readinto(buffer[: min(count, _CHUNK)])
        if not n:
            return False
        digest.update(buffer[:n])
        count -= n
    return True


def is_plain(path: Path) -> bool:
    """Whether a path is a regular file with a single name: no link, no pipe, no hard link."""
    try:
        facts = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1


def _read_journal(path: Path) -> tuple[str, tuple[_Line, ...]]:
    """The key and the lines of a journal, up to the first invalid one; the last may have been cut off."""
    lines: list[_Line] = []
    try:
        text = path.read_text(encoding="utf-8")
        first, *rest = text[: text.rfind("\n") + 1].splitlines()
        key = from_json(_First, first).key
    except (OSError, ValueError):
        return "", ()
    with suppress(ValueError):
        for word in rest:
            line = from_json(_Line, word)
            if line.bytes <= (lines[-1].bytes if lines else 0):
                break
            lines.append(line)
    return key, tuple(lines)
