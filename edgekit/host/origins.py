"""Locations of checkpoints on this machine, by the sha256 of a bundle built from them and by that of their weights.

They are kept in the user's cache, not in bundles: a path in a bundle would reveal who built it where, and would let it
choose what `verify` opens. Two folders may hold the same weights with another config or tokenizer; the bundle's own
hash distinguishes them.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import ConfigError
from edgekit.host.cache import cache_folder, make_own, require_own
from edgekit.host.disk import write_whole

if TYPE_CHECKING:
    from edgekit.types import Provenance

_SHA256 = re.compile(r"[0-9a-f]{64}")


def remember_origin(provenance: Provenance, bundle_sha256: str = "") -> None:
    """Save the location of a bundle's checkpoint for the next ``verify``. Failure to write the cache is ignored."""
    if not provenance.location:
        return
    for place in _places(provenance, bundle_sha256):
        with suppress(OSError, ConfigError):
            make_own(place.parent)
            write_whole(place, os.fsencode(provenance.location))


def find_origin(provenance: Provenance, bundle_sha256: str = "") -> str:
    """Find the checkpoint that a bundle was built from: its location on this machine, or a name valid anywhere.

    Args:
        provenance: the bundle's provenance.
        bundle_sha256: the bundle's own hash; without it, any checkpoint with the same weights matches.

    Returns:
        A path, a hub id or a packaged name; "" if it is not known.
    """
    for place in _places(provenance, bundle_sha256):
        with suppress(OSError, ConfigError):
            path = os.fsdecode(require_own(place).read_bytes())
            if Path(path).exists():
                return path
    named = provenance.kind in ("hub", "packaged") or (provenance.kind == "optimum" and "/" in provenance.id)
    return provenance.id if named and not Path(provenance.id).exists() else ""


def _places(provenance: Provenance, bundle_sha256: str) -> list[Path]:
    names = [name for name in (bundle_sha256, provenance.sha256) if _SHA256.fullmatch(name)]
    return [cache_folder() / "origins" / name for name in names]
