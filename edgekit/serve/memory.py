"""What the process holds beyond what it uses.

glibc gives threads arenas of their own, eight for each core, and each keeps its holes: a server with a thread a request
grew by half a megabyte a minute of holes alone. Two arenas have few, and what they have is given back now and then.
Elsewhere nothing is done.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

ARENAS = 2
_M_ARENA_MAX = -8
"""Of mallopt(3): glibc's malloc.h."""


def share_arenas() -> None:
    """Let all threads that are still to come share a few arenas."""
    glibc = _glibc()
    if glibc:
        glibc.mallopt(_M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Give pages that nothing lies on back to the system: milliseconds."""
    glibc = _glibc()
    if glibc:
        glibc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
