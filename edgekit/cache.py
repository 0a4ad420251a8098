"""Where what is fetched, or worked out once a machine, is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """EDGEKIT_CACHE, or the user's own cache folder. It may not exist yet."""
    if chosen := os.environ.get("EDGEKIT_CACHE"):
        return Path(chosen)
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("edgekit"))
