"""Where checkpoints lie on this machine, by the sha256 of a bundle made of them, and by that of their weights.

The user's cache remembers it; no bundle says it. Two folders may hold the same weights with another config or
tokenizer: the bundle's own hash tells them apart.

A bundle travels: a path in it would tell strangers who built it where, and would choose what `verify` opens elsewhere.
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
    """Keep where a bundle's checkpoint lies, for the next ``verify``. A cache that cannot be written is no error."""
    if not provenance.location:
        return
    for place in _places(provenance, bundle_sha256):
        with suppress(OSError, ConfigError):
            make_own(place.parent)
            write_whole(place, os.fsencode(provenance.location))


def find_origin(provenance: Provenance, bundle_sha256: str = "") -> str:
    """What to open for the checkpoint that a bundle was made of: where it lay, or a name that is good anywhere.

    Args:
        provenance: the bundle's.
        bundle_sha256: the bundle's own hash; without it, any checkpoint with its source's weights will do.

    Returns:
        A path, a hub id or a packaged name; "" where only a person can say.
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
