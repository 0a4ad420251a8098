"""How files are written: whole or not at all, under names that nobody can guess, and never through a link.

Every file that edgekit writes for longer than a process goes through ``write_whole`` or ``add_line``; who changes what
others may change at the same time holds ``locked``.
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
"""Seconds to wait for a lock: who holds one writes a file or renames a folder, no more."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNLOCKABLE = (errno.EBADF, errno.EINVAL, errno.EISDIR, errno.ENOLCK, errno.EOPNOTSUPP)
_SCRAP = re.compile(r"\.edgekit-([0-9a-f]{16}|lock)")
_LOCK = ".edgekit-lock"
_NO_FILE = "there is something that is not a file"
_HINTS = {
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EACCES: "choose a folder that you may write",
    errno.EPERM: "choose a folder that you may write",
    errno.EROFS: "the file system is read-only: choose another place",
    errno.ETIMEDOUT: "wait until the other process is done, or end it",
}


def scrap_name() -> str:
    """A name for what is in the making; no other process can know it before it is there."""
    return f".edgekit-{token_hex(8)}"


def is_scrap(name: str) -> bool:
    """Whether a file of this name is what a killed process was making, or a lock: nobody's content."""
    return _SCRAP.fullmatch(name) is not None


def write_whole(path: Path, data: bytes) -> None:
    """Put a file in its place in one stroke: who opens ``path`` finds what was there or all of ``data``.

    A link at ``path`` is replaced, not followed. The mode stays that of the file that was there; a new one gets what
    the umask leaves. A folder, a pipe or a device keeps its place.

    Raises:
        OSError: it cannot be written; nothing is left.
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
    """Add a line to the end of a file, all of it or nothing, not through a link; lines of two processes do not mix.

    Args:
        path: the file; it is made if it is not there.
        line: without its end.
        mend: a last line without its end is what a killed process was writing, and is cut off.

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
    """What a file of lines holds, which is made if it is not there, up to the end of its last whole line.

    Raises:
        OSError: it cannot be read and written.
    """
    with _lines(path) as file:
        content = file.readall()
    return content[: content.rfind(b"\n") + 1]


def make_private(path: Path) -> None:
    """Make an empty file that only this user can read, unless there is one of this user's already.

    Raises:
        OSError: it cannot be made; what is there is a link, not a file, or another user's.
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
    """A file to read and to add to, locked."""
    # Without O_NONBLOCK a named pipe would be waited for.
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    with FileIO(handle, "rb+") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, _NO_FILE, str(path))
        _acquire(handle, time.monotonic() + PATIENCE)
        yield file


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_parent(path: Path) -> None:
    """Make the folder that ``path`` will lie in."""
    path.parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def writing(path: Path, needed: int = 0, kind: type[EdgekitError] = EdgekitError) -> Iterator[None]:
    """Turn an OSError of the block into an error that names ``path`` and, on a full disk, the bytes.

    Args:
        path: the file or folder that is written.
        needed: the bytes that the block wants to write in all.
        kind: of the error.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise say_full(path, needed, shutil.disk_usage(_existing(path)).free, kind) from error
        hint = _HINTS.get(error.errno or 0, "choose another folder")
        raise kind(f"{path}: cannot be written: {error.strerror or error}", hint) from error


def say_full(path: Path, needed: int, free: int, kind: type[EdgekitError] = EdgekitError) -> EdgekitError:
    """The error of a full disk."""
    return kind(
        f"{path}: no room: {needed:,} bytes needed, {free:,} bytes free",
        "free some space, raise the quota, or choose a folder on another disk",
    )


@contextmanager
def locked(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the only lock of what is at ``folder`` now, for the block. It ends with the process, however that ends.

    The folder itself is locked, and nothing is written for it, but on file systems that lock files alone (NFS): there
    a hidden file in it.

    Raises:
        OSError: there is no such folder; ETIMEDOUT: another process held it for ``patience`` seconds.
    """
    deadline = time.monotonic() + patience
    while True:
        handle, place = _lock(folder, deadline)
        try:
            if is_at(handle, place):  # otherwise it was replaced while we waited
                yield
                return
        finally:
            os.close(handle)


def try_lock(path: Path) -> int | None:
    """Lock the file ``path``, which is made if need be: an open handle that holds the lock, None where another has it.

    Raises:
        OSError: its folder is gone, or it is a link.
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
    """Whether what is open is what lies at ``path`` now."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one stroke; False where the system cannot. Linux can, on most file systems."""
    import ctypes

    call = getattr(ctypes.CDLL(None), "renameat2", None)
    at, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of linux/fs.h
    return call is not None and call(at, os.fsencode(one), at, os.fsencode(other), swap) == 0


def _lock(folder: Path, deadline: float) -> tuple[int, Path]:
    """An open handle that holds the lock, and what it is of."""
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
    raise AssertionError("the second of two either returns or raises")


def _acquire(handle: int, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "another process is writing there") from None
        time.sleep(0.01)


def _mode(path: Path) -> int | None:
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        return None


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if os.path.exists(p))  # noqa: PTH110 - Path's raises for names that are too long
