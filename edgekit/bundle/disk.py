"""What the disk may answer, in words: where a bundle's files may lie, and why one could not be written."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from edgekit.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def inside(root: Path, name: str) -> Path:
    """The path of a bundle's file ``name``, which must lie in ``root``.

    Raises:
        BundleError: the name is empty, absolute, not in normal form, or leaves the bundle (``..`` or a symbolic link).
    """
    path = PurePosixPath(name)
    clean = bool(name) and not path.is_absolute() and ".." not in path.parts and str(path) == name
    if not clean or name == "." or any(c in name for c in "\\:\0"):
        raise BundleError(f"{root}: the file name {name!r} is not a path inside the bundle", "do not trust this bundle")
    full = root / path
    if not full.resolve().is_relative_to(root.resolve()):
        raise BundleError(
            f"{root}: {name} is a link that leaves the bundle", "copy the bundle with its links followed (cp -rL)"
        )
    return full


def require_space(path: Path, needed: int) -> None:
    """Raise BundleError unless ``needed`` bytes fit on the disk of the folder ``path``."""
    free = shutil.disk_usage(path).free
    if needed > free:
        raise _full(path, needed, free)


@contextmanager
def writing(path: Path, needed: int) -> Iterator[None]:
    """Turn an OSError of the block into a BundleError that names ``path`` and, on a full disk, the bytes.

    Args:
        path: the file or folder that is written.
        needed: the bytes that the block wants to write in all.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _full(path, needed, shutil.disk_usage(_existing(path)).free) from error
        raise BundleError(f"{path}: cannot be written: {error.strerror or error}", "choose another folder") from error


def hash_file(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def _full(path: Path, needed: int, free: int) -> BundleError:
    return BundleError(
        f"{path}: no room: {needed:,} bytes needed, {free:,} bytes free",
        "free some space, raise the quota, or choose a folder on another disk",
    )
