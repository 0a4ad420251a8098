"""Where a bundle's files may be, and file system errors as BundleErrors."""

from __future__ import annotations

import os
import shutil
from functools import partial, wraps
from hashlib import file_digest
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar, cast

from edgekit.errors import BundleError
from edgekit.host import disk

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

_ATTEMPTS = 5

NAME_BYTES = 200
"""Maximum length of a bundle's name: file systems allow 255, and the build's hidden folder has a longer name."""

_DISTRUST = "do not trust this bundle"

writing = partial(disk.writing, kind=BundleError)
"""``disk.writing`` that raises BundleError."""


def resolve_place(out: Path | str) -> Path:
    """The absolute path of a bundle to be made, with links in its parents resolved. It need not exist.

    Raises:
        BundleError: it has no name or one that no runtime can open, or it is a link itself.
    """
    try:
        path = Path(out)
        whole = path.name in ("", "..")
        place = path.resolve() if whole else path.parent.resolve() / path.name
        if b"\0" in str(place).encode():
            raise ValueError("it contains a null character")
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a NUL, a name that is not UTF-8
        raise BundleError(f"{str(out)!r}: cannot be a bundle's folder: {error}", "choose another name") from error
    if not os.fspath(out) or not place.name:
        raise BundleError(f"{str(out)!r}: cannot be a bundle's folder", "choose another name")
    size = len(os.fsencode(place.name))
    if size > NAME_BYTES:
        raise BundleError(
            f"{place.name[:40]}...: the name has {size} bytes, at most {NAME_BYTES} are allowed",
            "choose a shorter name",
        )
    if place.is_symlink():
        raise BundleError(f"{place}: is a link", "pass the path it points to")
    return place


def undisturbed(opening: F) -> F:
    """Decorate a function that opens a bundle: retry if the bundle is replaced, turn OSError into BundleError."""

    @wraps(opening)
    def opened(path: Path | str, **options: Any) -> Any:
        for left in reversed(range(_ATTEMPTS)):
            before = _identity(path)
            try:
                return opening(path, **options)
            except (BundleError, OSError) as error:
                if left and _identity(path) != before:
                    continue
                if isinstance(error, BundleError):
                    raise
                reason = error.strerror or str(error)
                raise BundleError(
                    f"{error.filename or path}: cannot be read: {reason}", "check the folder and its permissions"
                ) from error
        raise AssertionError("the last attempt either returns or raises")

    return cast("F", opened)


def _identity(path: Path | str) -> tuple[int, int] | None:
    """The device and inode of the folder at ``path``, None if there is none."""
    try:
        facts = Path(path).stat()
    except (OSError, ValueError):
        return None
    return facts.st_dev, facts.st_ino


def inside(root: Path, name: str) -> Path:
    """The path of a bundle's file ``name``, which must be inside ``root``.

    Raises:
        BundleError: the name is empty, absolute, not in normal form, or leaves the bundle (``..`` or a symbolic link).
    """
    path = PurePosixPath(name)
    clean = bool(name) and not path.is_absolute() and ".." not in path.parts and str(path) == name
    if not clean or name == "." or any(c in name for c in "\\:\0") or not _has_file_names(path):
        shown = name if len(name) < 300 else f"{name[:40]}..."
        raise BundleError(f"{root}: the file name {shown!r} is not a path inside the bundle", _DISTRUST)
    full = root / path
    try:
        leaves = not full.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # links in a circle
        leaves = True
    if leaves:
        raise BundleError(
            f"{root}: {name} is a link that leaves the bundle", "copy the bundle with cp -rL, which follows links"
        )
    return full


def _has_file_names(path: PurePosixPath) -> bool:
    """Whether a file system accepts each part: UTF-8, at most 255 bytes."""
    try:
        return all(len(part.encode()) <= 255 for part in path.parts) and len(path.parts) < 64
    except UnicodeEncodeError:
        return False


def require_space(path: Path, needed: int) -> None:
    """Raise BundleError unless ``needed`` bytes fit on the disk of the folder ``path``."""
    free = shutil.disk_usage(path).free
    if needed > free:
        raise disk.say_full(path, needed, free, BundleError)


def hash_file(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
