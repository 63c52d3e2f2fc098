"""`open_cache`: what users pass as ``cache=`` becomes a `Cache`."""

from __future__ import annotations

import os
from pathlib import Path

from esm2_features._cache.cache import Cache

# One cache for each folder, so that all users of it share its connections, what it has warned of,
# and for how long it leaves a failing disk alone.
_OPEN: dict[Path, Cache] = {}


def open_cache(cache: str | os.PathLike[str] | Cache | None) -> Cache | None:
    """Turn what users pass as ``cache=`` into a `Cache`."""
    if cache is None or isinstance(cache, Cache):
        return cache
    if not isinstance(cache, str | os.PathLike):
        raise TypeError(f'Got cache={cache!r}; pass None, "auto", the path of a folder, or a Cache')
    opened = Cache(None if cache == "auto" else cache)
    return _OPEN.setdefault(opened.path, opened)
