"""Where checkpoints lie on this machine, by their sha256. The user's cache remembers it; no bundle says it.

A bundle travels: a path in it would tell strangers who built it where, and would choose what `verify` opens elsewhere.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cache import cache_folder, make_own, require_own
from edgekit.disk import write_whole
from edgekit.errors import ConfigError

if TYPE_CHECKING:
    from edgekit.types import Provenance

_SHA256 = re.compile(r"[0-9a-f]{64}")


def remember_origin(provenance: Provenance) -> None:
    """Keep where a checkpoint lies, for the next ``verify``. A cache that cannot be written is no error."""
    place = _place(provenance)
    if place is None or not provenance.location:
        return
    with suppress(OSError, ConfigError):
        make_own(place.parent)
        write_whole(place, os.fsencode(provenance.location))


def find_origin(provenance: Provenance) -> str:
    """What to open for the checkpoint that a bundle was made of: where it lay, or a name that is good anywhere.

    Returns:
        A path, a hub id or a packaged name; "" where only a person can say.
    """
    place = _place(provenance)
    if place is not None:
        with suppress(OSError, ConfigError):
            path = os.fsdecode(require_own(place).read_bytes())
            if Path(path).exists():
                return path
    named = provenance.kind in ("hub", "packaged") or (provenance.kind == "optimum" and "/" in provenance.id)
    return provenance.id if named and not Path(provenance.id).exists() else ""


def _place(provenance: Provenance) -> Path | None:
    return cache_folder() / "origins" / provenance.sha256 if _SHA256.fullmatch(provenance.sha256) else None
