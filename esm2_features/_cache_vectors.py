"""The vectors in the file of a cache: found by their keys, read, and replaced.

Never here: what to do when something fails, how vectors lie in the file.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from esm2_features import _cache_blocks as store
from esm2_features import _upkeep
from esm2_features._cache_blocks import Block
from esm2_features._cache_file import Connection, snapshot, transaction
from esm2_features._cache_index import SLOTS, Index
from esm2_features._spec import Part, Spec
from esm2_features._upkeep import Conflict


class Vectors:
    """What is in one file. It remembers where keys are, and checks what it remembers.

    Parameters
    ----------
    max_bytes : int or None
        Size that the file may reach.
    """

    def __init__(self, max_bytes: int | None) -> None:
        self._max_bytes = max_bytes
        self._indexes: defaultdict[bytes, Index] = defaultdict(Index)
        self._indexed: object = None

    def read(
        self,
        connection: Connection,
        spec: Spec,
        keys: NDArray[np.uint8],
        out: NDArray[np.float32],
        hit: NDArray[np.bool_],
    ) -> bool:
        """Fill in what is there, and mend what is damaged.

        Parameters
        ----------
        connection : Connection
        spec : Spec
        keys : ndarray of shape (n, 32), uint8
        out : ndarray of shape (n, dim), float32
            Filled with the vectors that are found.
        hit : ndarray of shape (n,), bool
            Set where one is found.

        Returns
        -------
        damaged : bool
            Whether a block that was read holds a damaged vector.
        """
        with snapshot(connection):
            used, damaged = self._fetch(connection, spec, keys, out, hit)
        if used:
            store.renew(connection, used)
        if damaged:
            with suppress(sqlite3.Error), transaction(connection):
                for number in damaged:
                    store.rewrite_block(connection, spec, number)
        return bool(damaged)

    def write(self, connection: Connection, parts: Sequence[Part]) -> None:
        """Write vectors over what is there, all or none.

        Parameters
        ----------
        connection : Connection
        parts : sequence of Part
            Where a key repeats, its last row stays.
        """
        with self._writing(connection):
            for part in parts:
                self._insert(connection, part)

    def merge(
        self, connection: Connection, part: Part, *, replace: bool = False
    ) -> tuple[int, int, list[Conflict]]:
        """Add vectors to what is there, all or none.

        Parameters
        ----------
        connection : Connection
        part : Part
            Where a key repeats, its first row counts, and the others are compared with it.
        replace : bool, default=False
            Whether a vector that contradicts the one that is there takes its place.

        Returns
        -------
        added, present : int
            Number of vectors that are new, and that agree with what was there.
        conflicts : list of Conflict
        """
        spec, keys, rows = part
        rows = rows.astype(store.stored_dtype(spec.dtype)).astype(np.float32)
        first: dict[bytes, int] = {}
        taken = np.array([first.setdefault(key.tobytes(), i) for i, key in enumerate(keys)])
        there, hit = rows[taken], np.zeros(len(keys), np.bool_)
        with self._writing(connection):
            self._fetch(connection, spec, keys, there, hit)
            contradicting = _upkeep.contradicting(spec, there, rows)
            new = ~hit & (taken == np.arange(len(keys)))
            written = new | (contradicting if replace else False)
            if written.any():
                self._insert(connection, Part(spec, keys[written], rows[written]))
        conflicts = [
            Conflict(spec, keys[i].tobytes().hex(), float(np.abs(there[i] - rows[i]).max()))
            for i in np.flatnonzero(contradicting)
        ]
        return int(new.sum()), len(keys) - int(new.sum()) - len(conflicts), conflicts

    def _fetch(
        self,
        connection: Connection,
        spec: Spec,
        keys: NDArray[np.uint8],
        out: NDArray[np.float32],
        hit: NDArray[np.bool_],
    ) -> tuple[list[int], list[int]]:
        """Fill `out` and `hit`; the blocks that were not used before today, or are damaged."""
        used, damaged = [], []
        for block, slots, at in self._located(connection, spec, keys):
            intact = block.intact(spec)
            if not intact.all():
                damaged.append(block.id)
            elif block.day < store.today():
                used.append(block.id)
            if block.vectors is None or block.vectors.shape[1] != out.shape[1]:
                continue
            good = (block.keys[slots] == keys[at]).all(axis=1) & intact[slots]
            if not good.all():
                slots, at = slots[good], at[good]
            # Places are sorted, so as many different slots as the block has are all in order.
            whole = len(slots) == len(block.keys) and bool((slots[1:] > slots[:-1]).all())
            out[at] = block.vectors if whole else block.vectors[slots]
            hit[at] = True
        return used, damaged

    def _located(
        self, connection: Connection, spec: Spec, keys: NDArray[np.uint8]
    ) -> Iterator[tuple[Block, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield the blocks where keys should be, with their slots there and their numbers here."""
        space = store.space_of(connection, spec)
        if space is None:
            return
        places = self._index(connection, space, spec).find(keys)
        at = np.flatnonzero(places >= 0)
        at = at[np.argsort(places[at], kind="stable")]
        places = places[at]
        numbers, starts = np.unique(places // SLOTS, return_index=True)
        bounds = dict(zip(numbers.tolist(), pairwise([*starts.tolist(), len(at)]), strict=True))
        for block in store.read_blocks(connection, numbers.tolist(), spec.dtype):
            some = slice(*bounds[block.id])
            slots = places[some] % SLOTS
            there = slots < len(block.keys)  # of a damaged block, fewer may be left
            yield block, slots[there], at[some][there]

    def _index(self, connection: Connection, space: int, spec: Spec) -> Index:
        """Bring the index of a space up to date."""
        file = store.file_id(connection)
        if self._indexed != file:
            self._indexes.clear()
            self._indexed = file
        index = self._indexes[spec.digest]
        if index.last > store.last_block(connection):  # an older copy of the file is back
            index = self._indexes[spec.digest] = Index()
        for numbers, keys in store.listed(connection, space, index.last):
            index.add(numbers, keys)
        return index

    @contextmanager
    def _writing(self, connection: Connection) -> Iterator[None]:
        """Write all or nothing, and remember nothing of what was taken back."""
        try:
            with transaction(connection):
                yield
        except BaseException:
            self._indexes.clear()
            raise

    def _insert(self, connection: Connection, part: Part) -> None:
        """Write a part over what is there, in a transaction that is open."""
        spec, keys, rows = part
        last = {key.tobytes(): i for i, key in enumerate(keys)}
        if len(last) < len(keys):
            keep = sorted(last.values())
            keys, rows = keys[keep], rows[keep]
        for block, slots, at in self._located(connection, spec, keys):
            there = (block.keys[slots] == keys[at]).all(axis=1)
            if there.any():
                store.rewrite_block(connection, spec, block.id, without=slots[there])
        space = store.space_of(connection, spec) or store.new_space(connection, spec)
        step = (
            len(keys)
            if self._max_bytes is None
            else store.rows_per_block(rows.shape[1], spec.dtype)
        )
        for start in range(0, len(keys), max(1, step)):
            some = slice(start, start + step)
            if self._max_bytes is not None:
                store.make_room(connection, self._max_bytes, rows[some].nbytes)
            store.write_vectors(connection, space, spec, keys[some], rows[some])
