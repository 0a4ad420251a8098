"""The cache for downloads and per-machine results, and the check that no other user could have written to it.

Cached files are executed (interpreters) or trusted (results), so every folder from the cache's root to them must belong
to this user or to root, and must not be writable by others.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from edgekit.errors import ConfigError


def cache_folder() -> Path:
    """EDGEKIT_CACHE, or the user's cache folder. It may not exist yet."""
    if chosen := os.environ.get("EDGEKIT_CACHE"):
        return Path(chosen)
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("edgekit"))


def make_own(path: Path) -> Path:
    """Make a folder of the cache and its parents, accessible only to this user; return it.

    Raises:
        ConfigError: as require_own.
        OSError: it cannot be made.
    """
    require_own(path)
    cache_folder().parent.mkdir(parents=True, exist_ok=True)
    for folder in _way(path):
        folder.mkdir(mode=0o700, exist_ok=True)
    return path


def require_own(path: Path) -> Path:
    """Return ``path``, which is in the cache, if no other user could have written it. It need not exist.

    Raises:
        ConfigError: it, or a folder between it and the cache's root, belongs to another user or is writable by
            others; such a folder is a link; it is neither file nor folder.
    """
    if reason := foreign(path):
        raise ConfigError(reason, "remove it, or set EDGEKIT_CACHE to a folder of your own")
    return path


def foreign(path: Path) -> str:
    """Return why a path in the cache is not safe because another user could have written it; "" if it is safe.

    The root may be a link, as to another disk, and so may ``path`` itself, as in Python's environments.
    """
    way = _way(path)
    for at in (*way, way[0].resolve()) if way[0].is_symlink() else way:
        try:
            facts = at.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            return f"{at} cannot be read: {error.strerror}"
        link = stat.S_ISLNK(facts.st_mode)
        if facts.st_uid not in (os.geteuid(), 0):
            return f"{at} belongs to another user (uid {facts.st_uid})"
        if link and at not in (way[0], path):
            return f"{at} is a link, not a folder"
        if not link and _others_write(facts):
            return f"{at} is writable by others (mode {stat.S_IMODE(facts.st_mode):o})"
        if not (link or stat.S_ISDIR(facts.st_mode) or stat.S_ISREG(facts.st_mode)):
            return f"{at} is neither a file nor a folder"
    return ""


def _way(path: Path) -> tuple[Path, ...]:
    """All paths from the cache's root to ``path``."""
    root = cache_folder()
    parts = path.relative_to(root).parts
    return tuple(root.joinpath(*parts[:n]) for n in range(len(parts) + 1))


def _others_write(facts: os.stat_result) -> bool:
    """Whether others may write to it. A group that contains only this user does not count."""
    if facts.st_mode & stat.S_IWOTH:
        return True
    return bool(facts.st_mode & stat.S_IWGRP) and not _is_private(facts.st_gid)


def _is_private(gid: int) -> bool:
    import grp
    import pwd

    try:
        me, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return gid == me.pw_gid and group.gr_name == me.pw_name and not set(group.gr_mem) - {me.pw_name}
