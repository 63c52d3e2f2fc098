"""`CacheSession`: the cache during one run, and the vectors that go out of it and into it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm2_features._cache import Cache
from esm2_features._cache.claims import Claims
from esm2_features._cache.keys import KeyedVectors, Spec, computation_keys

if TYPE_CHECKING:
    from esm2_features._checkpoints import Checkpoint

_SECONDS_BETWEEN_WRITES = 1.0
"""A killed run loses at most what was computed since the last write."""

_MOST_UNWRITTEN = 1 << 26
"""Bytes of vectors that wait for the next write."""

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5
"""Seconds between two looks at what others are computing."""


class Columns(NamedTuple):
    """What the columns of a row hold: a layer and a pooling each."""

    wanted: Sequence[tuple[int, str]]  # those of the result
    computed: Sequence[tuple[int, str]]  # those that a forward pass gives, all of which are kept
    width: int  # numbers in a column
    dtype: str = "float32"  # what vectors are rounded to, and kept in

    @property
    def picked(self) -> list[int]:
        """Where the wanted columns are among the computed ones."""
        return [self.computed.index(column) for column in self.wanted]

    def rows_within(self, bytes_: int, *, most: int) -> int:
        """Count the rows that fit into some memory, at least 1 and at most ``most``."""
        return max(1, min(most, bytes_ // (4 * len(self.wanted) * self.width)))


def open_session(
    cache: Cache | None,
    checkpoint: Checkpoint,
    precision: str,
    views: Sequence[str],
    columns: Columns,
    rows: NDArray[np.float32],
    identity: str | None = None,  # of the weights, if they are not the checkpoint's
) -> CacheSession:
    """Open the session of a run; without a cache, everything is missing."""
    specs: list[list[Spec]] = [[], []]
    if cache is not None:  # the identity of the weights may cost a reading of their file
        of_weights = checkpoint.identity if identity is None else identity
        specs = [
            [
                Spec(of_weights, layer, pooling, precision, columns.dtype, checkpoint.name)
                for layer, pooling in some
            ]
            for some in (columns.wanted, columns.computed)
        ]
    return CacheSession(cache, views, wanted=specs[0], stored=specs[1], rows=rows)


class CacheSession:
    """The vectors of some views, on their way out of a cache and into it.

    Views are given by their numbers. `close` has to be called, also after an error or Ctrl-C: it
    writes everything that was computed, and releases all claims.
    """

    def __init__(
        self,
        cache: Cache | None,
        views: Sequence[str],  # all different
        *,
        wanted: Sequence[Spec],  # columns of `rows`
        stored: Sequence[Spec],
        rows: NDArray[np.float32],  # filled by `read`
    ) -> None:
        self._cache = cache
        self._views = views
        self._wanted = [] if cache is None else [(spec, spec.keys(views)) for spec in wanted]
        self._stored = stored
        self._rows = rows
        self._claims = None if cache is None else Claims(cache.path)
        self._others: list[int] = []
        self._unwritten: list[tuple[list[int], NDArray[np.float32]]] = []
        self._unwritten_bytes = 0
        self._failed = False
        self._written = time.monotonic()
        self._lock = threading.Lock()  # several devices claim; one thread does all the rest

    def close(self) -> None:
        """Write what was computed, and release all claims."""
        try:
            self._write(last_chance=True)
        finally:
            if self._claims is not None:
                self._claims.close()

    def read(self, which: Sequence[int]) -> list[int]:
        """Fill in the rows that the cache has; return the views that lack a vector."""
        if self._cache is None or not len(which):
            return list(which)
        at = np.asarray(which)
        everything = np.array_equal(at, np.arange(len(self._rows)))  # read in place, not copied
        complete = np.ones(len(at), np.bool_)
        for column, (spec, keys) in enumerate(self._wanted):
            out = self._rows[:, column] if everything else self._rows[at, column]
            hit = self._cache._get_many(spec, keys if everything else keys[at], out)
            if not everything:
                self._rows[at[hit], column] = out[hit]
            complete &= hit
        missing: list[int] = at[~complete].tolist()
        return missing

    def missing(self) -> list[int]:
        """List the views that lack a vector, by a look at the keys alone."""
        complete = np.full(len(self._views), self._cache is not None)
        for spec, keys in self._wanted:
            assert self._cache is not None
            complete &= self._cache._listed_many(spec, keys)
        numbers: list[int] = np.flatnonzero(~complete).tolist()
        return numbers

    def claim(self, which: Sequence[int]) -> list[int]:
        """Claim views for this run; return those that nobody else computes or has stored by now."""
        if self._claims is None:
            return list(which)
        with self._lock:
            granted = self._claims.claim(self._computations(which))
            mine = [i for i, is_mine in zip(which, granted, strict=True) if is_mine]
            self._others += [i for i, is_mine in zip(which, granted, strict=True) if not is_mine]
            missing = self.read(mine)  # which may have been stored since it was last looked for
            if len(missing) < len(mine):
                self._claims.release(self._computations(sorted(set(mine).difference(missing))))
        return missing

    def add(self, which: Sequence[int], vectors: NDArray[np.float32]) -> None:
        """Take vectors, (views, computed, width), and write them about once a second.

        A write costs a synchronised file, more than the forward pass of a batch of peptides.
        """
        if self._cache is None:
            return
        self._unwritten.append((list(which), vectors))
        self._unwritten_bytes += vectors.nbytes
        is_time = time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES
        if is_time or self._unwritten_bytes > _MOST_UNWRITTEN:
            self._write()

    def wait_for_others(self) -> list[int]:
        """Wait for views that others claimed; return those that they gave up, or nothing."""
        self._write()
        pause = _SHORTEST_PAUSE
        while self._others:
            assert self._claims is not None
            missing = self.read(self._others)
            free = self._claims.unclaimed(self._computations(missing))
            left = [i for i, is_free in zip(missing, free, strict=True) if is_free]
            self._others = [i for i, is_free in zip(missing, free, strict=True) if not is_free]
            if left:
                return left
            if self._others:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        return []

    def _computations(self, which: Sequence[int]) -> NDArray[np.uint8]:
        spec = self._stored[0]
        views = [self._views[i] for i in which]
        return computation_keys(spec.checkpoint, spec.precision, views)

    def _write(self, *, last_chance: bool = False) -> None:
        if self._cache is not None and self._claims is not None and self._unwritten:
            which = [i for some, _ in self._unwritten for i in some]
            views = [self._views[i] for i in which]
            stored = self._cache._put_many(
                [
                    KeyedVectors(
                        spec,
                        spec.keys(views),
                        np.concatenate([vectors[:, column] for _, vectors in self._unwritten]),
                    )
                    for column, spec in enumerate(self._stored)
                ],
                # If it failed before, this is another try; if not, it may claim its time.
                last_chance=last_chance and self._failed,
            )
            self._failed = not stored
            # What could not be stored now may be stored later, unless it is too much to keep.
            if stored or self._unwritten_bytes > _MOST_UNWRITTEN:
                self._unwritten = []
                self._unwritten_bytes = 0
            with self._lock:
                self._claims.release(self._computations(which))
        self._written = time.monotonic()
