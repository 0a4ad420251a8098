"""Limit the memory that glibc's allocator holds beyond what is used. Does nothing on other systems.

glibc gives threads up to eight arenas per core, and each keeps its free pages: a server with a thread per request grew
by half a megabyte a minute. So there are few arenas, and their free pages are returned periodically.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

ARENAS = 4
_M_ARENA_MAX = -8
"""Parameter of mallopt(3), from glibc's malloc.h."""


def share_arenas() -> None:
    """Let all future threads share a few arenas."""
    glibc = _glibc()
    if glibc:
        glibc.mallopt(_M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Return free pages to the system, which takes milliseconds."""
    glibc = _glibc()
    if glibc:
        glibc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
