"""Vectors in the file of a cache: look-up by key, reading and writing."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from esm2_features._cache import blocks as store
from esm2_features._cache import eviction, maintenance, vacuum
from esm2_features._cache.blocks import SLOTS, VectorBlock
from esm2_features._cache.file import SqliteConnection, snapshot, transaction
from esm2_features._cache.keys import KeyedVectors, Spec
from esm2_features._cache.reports import Conflict, describe
from esm2_features.exceptions import InputError

_SNAPSHOT_BYTES = 1 << 28  # read in one transaction, for which writers wait
_FEW = 1 << 16  # places; for no more, it is not looked for blocks that have gone
_MOST_RUNS = 8  # sorted parts of an index that are searched one after the other


class Index:
    """Places of keys in memory, added block by block; of equal keys, the latest counts.

    It holds the first bytes of each key, sorted, at 16 bytes a vector: a database index over random
    keys would be slow to fill, and slower to ask than to read the vectors. A place is the number of
    a block times `SLOTS`, plus the position in the block.
    """

    def __init__(self) -> None:
        self.last = 0
        self._runs: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []

    def __len__(self) -> int:
        """Return how many places it holds, also of blocks that have gone."""
        return sum(len(places) for _, places in self._runs)

    def add(self, blocks: Sequence[int], keys: Sequence[NDArray[np.uint8]]) -> None:
        """Add blocks in the order of their numbers."""
        if not blocks:
            return
        prefixes = np.concatenate([prefixes_of(k) for k in keys])
        ranges = [SLOTS * block + np.arange(len(k)) for block, k in zip(blocks, keys, strict=True)]
        places = np.concatenate(ranges, dtype=np.int64)
        if len(prefixes):
            self._runs.append(_sorted(prefixes, places))
        self.last = blocks[-1]
        if len(self._runs) > _MOST_RUNS:
            merged = (np.concatenate(parts) for parts in zip(*self._runs, strict=True))
            self._runs = [_sorted(*merged)]

    def keep(self, blocks: Sequence[int]) -> None:
        """Drop the places that are in other blocks than these."""
        for number, (prefixes, places) in enumerate(self._runs):
            kept = np.isin(places // SLOTS, np.array(blocks, np.int64))
            self._runs[number] = prefixes[kept], places[kept]
        self._runs = [run for run in self._runs if len(run[0])]

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


class VectorStore:
    """The vectors of one file, with an index of their places in memory."""

    def __init__(self, max_bytes: int | None) -> None:
        self._max_bytes = max_bytes
        self._indexes: defaultdict[bytes, Index] = defaultdict(Index)
        self._indexed: object = None
        self._kept = 0  # places in all indexes when it was last looked for blocks that have gone
        self._has_room = True  # to make a file of an earlier version smaller

    def read(
        self,
        connection: SqliteConnection,
        spec: Spec,
        keys: NDArray[np.uint8],
        out: NDArray[np.float32],
        hit: NDArray[np.bool_],
    ) -> bool:
        """Fill `out` and `hit` for known keys; return whether damaged vectors were removed."""
        used, damaged = list[int](), list[int]()
        at_a_time = max(1, _SNAPSHOT_BYTES // max(1, out.shape[1] * out.itemsize))
        left = np.arange(len(keys))
        while len(left):
            with snapshot(connection):
                at, places = self._places(connection, spec, keys, left)
                for block, intact, slots, which in _blocks(connection, spec, places[:at_a_time]):
                    if not intact.all():
                        damaged.append(block.id)
                    elif store.is_to_renew(block.day):
                        used.append(block.id)
                    _copy(block, slots, at[which], intact, keys, out, hit)
            left = at[at_a_time:]
        if used:
            store.renew(connection, used)
        if damaged:
            with suppress(sqlite3.Error), transaction(connection):
                for number in dict.fromkeys(damaged):
                    store.rewrite_block(connection, spec, number)
        return bool(damaged)

    def list_into(
        self,
        connection: SqliteConnection,
        spec: Spec,
        keys: NDArray[np.uint8],
        listed: NDArray[np.bool_],
    ) -> None:
        """Fill `listed` for known keys, without reading vectors."""
        with snapshot(connection):
            at, _ = self._places(connection, spec, keys, np.arange(len(keys)))
        listed[at] = True

    def write(self, connection: SqliteConnection, parts: Sequence[KeyedVectors]) -> int:
        """Write all vectors or none; return how many of today were deleted to make room."""
        dropped = self._reduce(connection)
        with self._writing(connection):
            return dropped + sum(self._insert(connection, part) for part in parts)

    def merge(
        self, connection: SqliteConnection, part: KeyedVectors, *, replace: bool = False
    ) -> tuple[int, list[Conflict], int]:
        """Add all vectors or none; return the number of new ones, conflicts, and deletions."""
        spec, keys, rows = part
        rows = rows.astype(store.stored_dtype(spec.dtype)).astype(np.float32)
        first: dict[bytes, int] = {}
        taken = np.array([first.setdefault(key.tobytes(), i) for i, key in enumerate(keys)])
        there, hit = rows[taken], np.zeros(len(keys), np.bool_)
        of_today = self._reduce(connection)
        with self._writing(connection):
            for block, intact, slots, at in self._located(connection, spec, keys):
                if block.vectors is not None and intact.any():
                    if rows.shape[1] != block.vectors.shape[1]:
                        raise InputError(
                            f"Vectors of {describe(spec)} have {rows.shape[1]} components, and "
                            f"those in the cache {block.vectors.shape[1]}. They cannot be of the "
                            "same model: check where they come from."
                        )
                    _copy(block, slots, at, intact, keys, there, hit)
            contradicting = maintenance.contradicting(spec, there, rows)
            new = ~hit & (taken == np.arange(len(keys)))
            written = new | (contradicting if replace else False)
            dropped = self._insert(connection, KeyedVectors(spec, keys[written], rows[written]))
        conflicts = [
            Conflict(spec, keys[i].tobytes().hex(), i, float(np.abs(there[i] - rows[i]).max()))
            for i in np.flatnonzero(contradicting).tolist()
        ]
        return int(new.sum()), conflicts, of_today + dropped

    def _reduce(self, connection: SqliteConnection) -> int:
        """Make a file that is too large smaller; return how many vectors of today were deleted."""
        if self._max_bytes is None:
            return 0
        of_today, self._has_room = vacuum.reduce(connection, self._max_bytes, self._has_room)
        return of_today

    def _places(
        self,
        connection: SqliteConnection,
        spec: Spec,
        keys: NDArray[np.uint8],
        which: NDArray[np.intp],
    ) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
        """Return the known ones of some keys, and their places, in the order of places."""
        space = store.space_of(connection, spec)
        if space is None:
            return which[:0], np.empty(0, np.int64)
        places = self._index(connection, space, spec).find(keys[which])
        order = np.argsort(places, kind="stable")[int((places < 0).sum()) :]
        return which[order], places[order]

    def _located(
        self, connection: SqliteConnection, spec: Spec, keys: NDArray[np.uint8]
    ) -> Iterator[tuple[VectorBlock, NDArray[np.bool_], NDArray[np.int64], NDArray[np.intp]]]:
        """Yield blocks, what is intact, and which keys lie in which slots; in a transaction."""
        at, places = self._places(connection, spec, keys, np.arange(len(keys)))
        for block, intact, slots, which in _blocks(connection, spec, places):
            there = (block.keys[slots] == keys[at[which]]).all(axis=1)
            yield block, intact, slots[there], at[which][there]

    def _index(self, connection: SqliteConnection, space: int, spec: Spec) -> Index:
        """Bring the index of a space up to date."""
        file_id = connection.execute("select id from file").fetchone()  # its random bytes
        file = file_id, connection.identity
        if self._indexed != file:
            self._indexes.clear()
            self._indexed, self._kept = file, 0
        index = self._indexes[spec.digest]
        if index.last > store.last_block(connection):  # an older copy of the file is back
            index = self._indexes[spec.digest] = Index()
        is_new = index.last == 0
        for numbers, keys in store.listed(connection, space, index.last):
            index.add(numbers, keys)
        if is_new:
            self._kept += len(index)
        elif sum(map(len, self._indexes.values())) > self._kept + max(_FEW, self._kept):
            self._forget(connection)
        return index

    def _forget(self, connection: SqliteConnection) -> None:
        """Drop the places of blocks that have gone, of which there may be many by now."""
        numbers = {spec.digest: number for number, spec in store.spaces(connection).items()}
        for digest, index in self._indexes.items():
            space = numbers.get(digest)
            index.keep([] if space is None else store.blocks_of(connection, space))
        self._kept = sum(map(len, self._indexes.values()))

    @contextmanager
    def _writing(self, connection: SqliteConnection) -> Iterator[None]:
        """Write in a transaction, and forget the index if it is rolled back."""
        begun = False
        try:
            with transaction(connection):
                begun = True
                yield
        except BaseException:
            if begun:  # not after each try of a file that is locked
                self._indexes.clear()
            raise

    def _insert(self, connection: SqliteConnection, part: KeyedVectors) -> int:
        """Write a part in an open transaction; return how many vectors of today were deleted."""
        spec, keys, rows = part
        if not len(keys):
            return 0
        last = {key.tobytes(): i for i, key in enumerate(keys)}
        if len(last) < len(keys):
            keep = sorted(last.values())
            keys, rows = keys[keep], rows[keep]
        for block, _, slots, _ in self._located(connection, spec, keys):
            if len(slots):
                store.rewrite_block(connection, spec, block.id, without=slots)
        space = store.space_of(connection, spec) or store.new_space(connection, spec)
        if self._max_bytes is None:
            store.write_vectors(connection, space, spec, keys, rows)
            return 0
        dropped, step = 0, store.rows_per_block(rows.shape[1], spec.dtype)
        row_bytes = rows.shape[1] * store.stored_dtype(spec.dtype).itemsize
        for start in range(0, len(keys), step):
            some = slice(start, start + step)
            needed = len(keys[some]) * row_bytes
            dropped += eviction.make_room(connection, self._max_bytes, needed).of_today
            store.write_vectors(connection, space, spec, keys[some], rows[some])
        return dropped + vacuum.fit(connection, self._max_bytes)


def _blocks(
    connection: SqliteConnection, spec: Spec, places: NDArray[np.int64]
) -> Iterator[tuple[VectorBlock, NDArray[np.bool_], NDArray[np.int64], NDArray[np.intp]]]:
    """Yield the blocks of sorted places, what is intact, their slots there, and which they are."""
    numbers, starts = np.unique(places // SLOTS, return_index=True)
    bounds = dict(zip(numbers.tolist(), pairwise([*starts.tolist(), len(places)]), strict=True))
    for block, intact in store.checked_blocks(connection, numbers.tolist(), spec):
        which = np.arange(*bounds[block.id])
        slots = places[which] % SLOTS
        there = slots < len(block.keys)  # of a damaged block, fewer may be left
        yield block, intact, slots[there], which[there]


def _copy(
    block: VectorBlock,
    slots: NDArray[np.int64],
    at: NDArray[np.intp],
    intact: NDArray[np.bool_],
    keys: NDArray[np.uint8],
    out: NDArray[np.float32],
    hit: NDArray[np.bool_],
) -> None:
    """Copy the vectors in some slots to ``out[at]``, if they are what they should be."""
    if block.vectors is None or block.vectors.shape[1] != out.shape[1]:
        return
    good = (block.keys[slots] == keys[at]).all(axis=1) & intact[slots]
    if not good.all():
        slots, at = slots[good], at[good]
    # Places are sorted, so as many different slots as the block has are all in order.
    whole = len(slots) == len(block.keys) and bool((slots[1:] > slots[:-1]).all())
    out[at] = block.vectors if whole else block.vectors[slots]
    hit[at] = True


def prefixes_of(keys: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """First eight bytes of each key, as a number."""
    return np.ascontiguousarray(keys[:, :8]).view("<u8").ravel()


def _sorted(
    prefixes: NDArray[np.uint64], places: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    order = np.argsort(prefixes, kind="stable")
    return prefixes[order], places[order]
