"""Write files atomically, under unpredictable temporary names, and never through a link.

Every file that outlives the process is written with ``write_whole`` or ``add_line``; concurrent changes are guarded
with ``locked``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
import time
from contextlib import contextmanager
from io import FileIO
from secrets import token_hex
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = 30.0
"""Seconds to wait for a lock, which is only held to write a file or rename a folder."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNLOCKABLE = (errno.EBADF, errno.EINVAL, errno.EISDIR, errno.ENOLCK, errno.EOPNOTSUPP)
_SCRAP = re.compile(r"\.edgekit-([0-9a-f]{16}|lock)")
_LOCK = ".edgekit-lock"
_NO_FILE = "not a regular file"
_HINTS = {
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EACCES: "choose a folder that you can write to",
    errno.EPERM: "choose a folder that you can write to",
    errno.EROFS: "choose a folder on a writable file system",
    errno.ETIMEDOUT: "wait for the other process to finish, or stop it",
}


def scrap_name() -> str:
    """An unpredictable temporary name."""
    return f".edgekit-{token_hex(8)}"


def is_scrap(name: str) -> bool:
    """Whether the name is that of a temporary file or a lock."""
    return _SCRAP.fullmatch(name) is not None


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically: readers of ``path`` see either the old content or all of ``data``.

    A link at ``path`` is replaced, not followed. An existing file's mode is kept; a new file's follows the umask. A
    folder, pipe or device is not replaced.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    mode = _mode(path)
    if mode is not None and not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise OSError(errno.EINVAL, _NO_FILE, str(path))
    made = path.parent / scrap_name()
    handle = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            if mode is not None and stat.S_ISREG(mode):
                os.fchmod(handle, mode & 0o777)
            file.write(data)
            file.flush()
            os.fsync(handle)
        made.replace(path)
    except BaseException:
        made.unlink(missing_ok=True)
        raise
    sync(path.parent)


def add_line(path: Path, line: str, *, mend: bool = False) -> None:
    """Append a line to a file, completely or not at all, never through a link; lines of two processes do not mix.

    Args:
        path: the file; created if missing.
        line: the line, without a newline.
        mend: remove a last line without newline, left by a killed process, first.

    Raises:
        OSError: it cannot be written.
    """
    with _lines(path) as file:
        before = os.fstat(file.fileno()).st_size
        if mend and before and os.pread(file.fileno(), 1, before - 1) != b"\n":
            before = file.readall().rfind(b"\n") + 1
            file.truncate(before)
        rest = memoryview(f"{line}\n".encode())
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except BaseException:
            file.truncate(before)
            raise


def read_lines(path: Path) -> bytes:
    """Read a file up to the end of its last complete line; the file is created if missing.

    Raises:
        OSError: it cannot be read and written.
    """
    with _lines(path) as file:
        content = file.readall()
    return content[: content.rfind(b"\n") + 1]


def make_private(path: Path) -> None:
    """Create an empty file that only this user can read, unless this user already has one there.

    Raises:
        OSError: it cannot be created, or there is a link, a non-file, or another user's file.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, _NO_FILE, str(path)) from None
        if facts.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it belongs to another user", str(path)) from None


@contextmanager
def _lines(path: Path) -> Iterator[FileIO]:
    """Open and lock a file for reading and appending."""
    # O_NONBLOCK: do not wait for a named pipe.
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    with FileIO(handle, "rb+") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, _NO_FILE, str(path))
        _acquire(handle, time.monotonic() + PATIENCE)
        yield file


def sync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_parent(path: Path) -> None:
    """Create the parent folder of ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def writing(path: Path, needed: int = 0, kind: type[EdgekitError] = EdgekitError) -> Iterator[None]:
    """Turn an OSError in the block into an error that names ``path`` and, on a full disk, the bytes.

    Args:
        path: the file or folder being written.
        needed: total bytes that the block writes.
        kind: class of the error.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise say_full(path, needed, shutil.disk_usage(_existing(path)).free, kind) from error
        hint = _HINTS.get(error.errno or 0, "choose another folder")
        raise kind(f"{path} cannot be written: {error.strerror or error}", hint) from error


def say_full(path: Path, needed: int, free: int, kind: type[EdgekitError] = EdgekitError) -> EdgekitError:
    """The error of a full disk."""
    return kind(
        f"{path}: not enough disk space: {needed:,} bytes needed, {free:,} bytes free",
        "free some space, raise the quota, or choose a folder on another disk",
    )


@contextmanager
def locked(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold an exclusive lock on a folder for the block. The lock ends with the process, however that ends.

    The folder itself is locked without writing anything; on file systems that only lock files (NFS), a hidden file in
    it is locked.

    Raises:
        OSError: there is no such folder, or (ETIMEDOUT) another process held the lock for ``patience`` seconds.
    """
    deadline = time.monotonic() + patience
    while True:
        handle, place = _lock(folder, deadline)
        try:
            if is_at(handle, place):  # otherwise it was replaced during the wait
                yield
                return
        finally:
            os.close(handle)


def try_lock(path: Path) -> int | None:
    """Lock a file, created if missing. Returns the open handle with the lock, None if another process holds it.

    Raises:
        OSError: its folder does not exist, or it is a link.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_at(handle, path):
            return handle
    except BlockingIOError:
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def is_at(handle: int, path: Path) -> bool:
    """Whether the open file is the one that is at ``path`` now."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def exchange(one: Path, other: Path) -> bool:
    """Swap two folders atomically; False if the system cannot. Linux can, on most file systems."""
    import ctypes

    call = getattr(ctypes.CDLL(None), "renameat2", None)
    at, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of linux/fs.h
    return call is not None and call(at, os.fsencode(one), at, os.fsencode(other), swap) == 0


def _lock(folder: Path, deadline: float) -> tuple[int, Path]:
    """Return an open handle with the lock, and the path that is locked."""
    for path, flags in (
        (folder, os.O_RDONLY | os.O_DIRECTORY),
        (folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW),
    ):
        handle = os.open(path, flags, 0o666)
        try:
            _acquire(handle, deadline)
        except OSError as error:
            os.close(handle)
            if path == folder and error.errno in _UNLOCKABLE:
                continue
            raise
        return handle, path
    raise AssertionError("unreachable: the second path returns or raises")


def _acquire(handle: int, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "locked by another process") from None
        time.sleep(0.01)


def _mode(path: Path) -> int | None:
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        return None


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if os.path.exists(p))  # noqa: PTH110 - Path.exists raises for long names
