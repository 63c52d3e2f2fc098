"""Vectors of sequences on disk, shared by processes."""

from esm2_features._cache.cache import Cache, open_cache

__all__ = ["Cache", "open_cache"]
