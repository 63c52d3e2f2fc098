"""Vectors of sequences on disk, shared by processes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esm2_features._cache.cache import Cache
    from esm2_features._cache.opening import open_cache

__all__ = ["Cache", "open_cache"]


def __getattr__(name: str) -> object:
    # The command line imports the reports alone, without NumPy and SQLite.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "cache" if name == "Cache" else "opening"
    return getattr(import_module(f"{__name__}.{home}"), name)
