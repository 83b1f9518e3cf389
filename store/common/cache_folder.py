"""The folder of this user's cache: flat maps, records, reports, and games of the random policy."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from wsa.store.common.errors import UsageError


def cache_folder() -> Path:
    """Return `WSA_CACHE`, or wsa's folder in the user's cache.

    Raises:
        UsageError: If neither exists, or `WSA_CACHE` is a URL.
    """
    if named := os.environ.get("WSA_CACHE"):
        if "://" in named:
            raise UsageError(f"WSA_CACHE={named} is a URL; give a local folder.")
        return Path(named)
    try:
        return platformdirs.user_cache_path("wsa")
    except RuntimeError:
        raise UsageError(
            "There is no home folder here to hold wsa's cache. Set WSA_CACHE to a folder that "
            "you can write to.",
        ) from None
