"""An index of keys in memory: the first bytes of each key, sorted, at 16 bytes a vector.

A database index over random keys would be slow to fill, and slower to ask than to read the vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MOST_RUNS = 8
SLOTS = 1 << 16
"""A place is a block's number times this, plus the position in the block."""


class Index:
    """Places of keys, added block by block; of equal keys, the latest counts."""

    def __init__(self) -> None:
        self.last = 0
        self._runs: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []

    def add(self, blocks: Sequence[int], keys: Sequence[NDArray[np.uint8]]) -> None:
        """Add blocks in the order of their numbers."""
        if not blocks:
            return
        prefixes = np.concatenate([prefixes_of(k) for k in keys])
        places = np.concatenate(
            [
                block * SLOTS + np.arange(len(k), dtype=np.int64)
                for block, k in zip(blocks, keys, strict=True)
            ]
        )
        if len(prefixes):
            self._runs.append(_sorted(prefixes, places))
        self.last = blocks[-1]
        if len(self._runs) > _MOST_RUNS:
            merged = (np.concatenate(parts) for parts in zip(*self._runs, strict=True))
            self._runs = [_sorted(*merged)]

    def find(self, keys: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the place where each key should be (n,), -1 for unknown keys."""
        wanted = prefixes_of(keys)
        found = np.full(len(keys), -1, np.int64)
        for prefixes, places in self._runs:  # later runs overwrite earlier ones
            # Of equal prefixes, the rightmost is the latest.
            at = np.searchsorted(prefixes, wanted, side="right") - 1
            there = (at >= 0) & (prefixes[at] == wanted)
            found[there] = places[at[there]]
        return found


def prefixes_of(keys: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """First eight bytes of each key, as a number."""
    return np.ascontiguousarray(keys[:, :8]).view("<u8").ravel()


def _sorted(
    prefixes: NDArray[np.uint64], places: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    order = np.argsort(prefixes, kind="stable")
    return prefixes[order], places[order]
