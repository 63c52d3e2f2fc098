"""Blocks: vectors of one `Spec` that lie together in the file of the cache.

A block never changes. A vector is replaced by writing a new block without it, so an index may be
out of date, but never points to another vector.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esm2_features._cache.file import SqliteConnection, damage, transaction
from esm2_features._cache.keys import KEY_BYTES, Spec

try:  # the same CRC-32, several times as fast
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

_FIELDS = "checkpoint, layer, pooling, precision, dtype, model"
_BLOCK_BYTES = 262144
SLOTS = 1 << 16  # vectors in a block, at most
_FETCH = 16  # blocks in one query: 4 MB in memory at a time
_LIST = 2000  # blocks whose keys are listed in one query
_MOST_BLOCKS = 1 << 47  # more than fit into any file; times SLOTS, it is an int64
FIRST_DAY = 20089  # 2025-01-01: no vector is older than this library
_STORED = {"float32": "<f4", "float16": "<f2"}  # by dtype, little-endian
_BLOCK = "id, space, day, keys, checks, crc, vectors"


@dataclass(frozen=True, slots=True)
class VectorBlock:
    """Vectors of one space that were written together, as read from the file."""

    id: int
    space: int
    day: int
    keys: NDArray[np.uint8]
    vectors: NDArray[np.floating] | None  # None if the number of bytes cannot be right
    checks: NDArray[np.uint32]
    crc: int

    def intact(self, spec: Spec) -> NDArray[np.bool_]:
        """Return which vectors have the right checksum for this spec (n,)."""
        if self.vectors is None:
            return np.zeros(len(self.keys), np.bool_)
        seed = _seed(spec)
        if crc32(self.vectors.data, crc32(self.keys.data, seed)) == self.crc:
            return np.ones(len(self.keys), np.bool_)
        if len(self.checks) != len(self.keys):
            return np.zeros(len(self.keys), np.bool_)
        return np.asarray(_checks(seed, self.keys, self.vectors) == self.checks, np.bool_)


# ------------------------------------------------------------------ spaces


def space_of(connection: SqliteConnection, spec: Spec) -> int | None:
    """Return the number of a spec, or None if it has no vectors."""
    query = "select id from space where digest = ?"
    row = connection.execute(query, (spec.digest,)).fetchone()
    return None if row is None else int(row[0])


def new_space(connection: SqliteConnection, spec: Spec) -> int:
    """Give a number to a spec that has none; call it in a transaction."""
    fields = (spec.checkpoint, spec.layer, spec.pooling, spec.precision, spec.dtype, spec.model)
    insert = f"insert into space(digest, {_FIELDS}) values(?, ?, ?, ?, ?, ?, ?)"
    return connection.execute(insert, (spec.digest, *fields)).lastrowid or 0


def spaces(connection: SqliteConnection) -> dict[int, Spec]:
    """Return the specs of the file by number, without those that cannot be read."""
    specs = {}
    query = f"select id, digest, {_FIELDS} from space"
    for number, digest, *fields in connection.execute(query).fetchall():
        # Of whatever types, because the digest tells; but it does not cover the name.
        *identity, model = (
            word.decode(errors="replace") if isinstance(word, bytes) else word for word in fields
        )
        spec = Spec(*identity, model=str(model or ""))  # type: ignore[arg-type,misc]
        if spec.digest == digest and spec.dtype in _STORED:
            specs[number] = spec
    return specs


# ------------------------------------------------------------------ blocks


def listed(
    connection: SqliteConnection, space: int, after: int
) -> Iterator[tuple[list[int], list[NDArray[np.uint8]]]]:
    """Yield numbers and keys of the blocks of a space that were written after block `after`."""
    query = f"select id, keys from block where space = ? and id > ? order by id limit {_LIST}"
    while rows := connection.execute(query, (space, after)).fetchall():
        numbers = [number for number, _ in rows]
        rising = all(earlier < later for earlier, later in pairwise([after, *numbers]))
        if not rising or numbers[-1] >= _MOST_BLOCKS:
            raise damage("the numbers of its blocks are not in order")
        yield numbers, [_keys(keys) for _, keys in rows]
        after = numbers[-1]


def blocks_of(
    connection: SqliteConnection, space: int, after: int = 0, *, most: int = -1
) -> list[int]:
    """List the numbers of the first blocks of a space that were written after block `after`."""
    query = "select id from block where space = ? and id > ? order by id limit ?"
    return [row[0] for row in connection.execute(query, (space, after, most)).fetchall()]


def read_blocks(
    connection: SqliteConnection, numbers: Sequence[int], dtype: str = "float32"
) -> Iterator[VectorBlock]:
    """Yield those of these blocks that exist, in the order of the file."""
    numbers = sorted(numbers)
    for start in range(0, len(numbers), _FETCH):
        some = numbers[start : start + _FETCH]
        query = f"select {_BLOCK} from block join value on block = id "
        query += f"where id in ({','.join('?' * len(some))})"
        # All at once: a cursor that an interrupt leaves open would keep the file locked.
        for row in connection.execute(query, some).fetchall():
            yield _as_block(*row, dtype=dtype)


def next_blocks(
    connection: SqliteConnection, after: int, last: int, specs: dict[int, Spec]
) -> list[VectorBlock]:
    """Read the first blocks after one, up to a last one; of some, the vectors may be missing."""
    query = (
        f"select {_BLOCK} from block not indexed left join value on block = id "
        f"where id > ? and id <= ? order by id limit {_FETCH}"
    )
    return [
        _as_block(*row, dtype=specs[row[1]].dtype if row[1] in specs else "float32")
        for row in connection.execute(query, (after, last)).fetchall()
    ]


def checked_blocks(
    connection: SqliteConnection, numbers: Sequence[int], spec: Spec
) -> Iterator[tuple[VectorBlock, NDArray[np.bool_]]]:
    """Yield blocks, and which of their vectors are intact (n,); a disk may be wrong once."""
    for block in read_blocks(connection, numbers, spec.dtype):
        intact = block.intact(spec)
        if not len(intact) or not intact.all():
            connection.execute("pragma shrink_memory")  # or SQLite would give the same pages
            for again in read_blocks(connection, [block.id], spec.dtype):
                block, intact = again, again.intact(spec)
        yield block, intact


def rows_per_block(dim: int, dtype: str) -> int:
    """Vectors of this width that a block takes."""
    return min(max(1, _BLOCK_BYTES // (dim * stored_dtype(dtype).itemsize)), SLOTS)


def write_vectors(
    connection: SqliteConnection,
    space: int,
    spec: Spec,
    keys: NDArray[np.uint8],
    rows: NDArray[np.floating],
    *,
    day: int | None = None,
) -> None:
    """Write new blocks of (n, 32) keys and (n, dim) vectors; call it in a transaction."""
    values = np.ascontiguousarray(rows, stored_dtype(spec.dtype))
    per_block = rows_per_block(values.shape[1], spec.dtype)
    seed, day = _seed(spec), today() if day is None else day
    for start in range(0, len(keys), per_block):
        some = np.ascontiguousarray(keys[start : start + per_block])
        vectors = values[start : start + per_block]
        checks, crc = _checks(seed, some, vectors), crc32(vectors.data, crc32(some.data, seed))
        number = connection.execute(
            "insert into block(space, day, keys, checks, crc) values(?, ?, ?, ?, ?)",
            (space, day, some.data, checks.data, crc),
        ).lastrowid
        connection.execute("insert into value(block, vectors) values(?, ?)", (number, vectors.data))


def delete_blocks(connection: SqliteConnection, numbers: Iterable[int]) -> int:
    """Delete blocks, and return how many vectors they had; call it in a transaction."""
    deleted = 0
    for number in numbers:
        query = "select coalesce(length(keys), 0) from block where id = ?"
        row = connection.execute(query, (number,)).fetchone()
        deleted += 0 if row is None else row[0] // KEY_BYTES
        connection.execute("delete from block where id = ?", (number,))
        connection.execute("delete from value where block = ?", (number,))
    return deleted


def rewrite_block(
    connection: SqliteConnection, spec: Spec, number: int, without: ArrayLike = ()
) -> int:
    """Replace a block by one with its intact vectors; call it in a transaction.

    Return how many vectors are left out.
    """
    left_out = 0
    for block, keep in checked_blocks(connection, [number], spec):
        keep[np.asarray(without, np.int64)] = False
        left_out += delete_blocks(connection, [number]) - int(keep.sum())
        if block.vectors is not None and keep.any():
            rest = block.keys[keep], block.vectors[keep]
            write_vectors(connection, block.space, spec, *rest, day=block.day)
    return max(0, left_out)


def join_blocks(connection: SqliteConnection, spec: Spec, numbers: Sequence[int]) -> int:
    """Join small blocks of one spec and width; return how many vectors were damaged.

    Call it in a transaction.
    """
    blocks = [
        (block, intact)
        for block, intact in checked_blocks(connection, numbers, spec)
        if block.vectors is not None and intact.any()
    ]
    deleted = delete_blocks(connection, numbers)
    if blocks:
        keys = np.concatenate([block.keys[intact] for block, intact in blocks])
        rows = np.concatenate([block.vectors[intact] for block, intact in blocks])  # type: ignore[index]
        day = latest_day([block.day for block, _ in blocks])
        write_vectors(connection, blocks[0][0].space, spec, keys, rows, day=day)
        deleted -= len(keys)
    return deleted


# ------------------------------------------------------------------ use


def clock_is_plausible() -> bool:
    """Whether the clock of this machine shows a day on which this library exists."""
    return today() >= FIRST_DAY


def is_to_renew(day: int) -> bool:
    """Whether use today is to be noted for a block that was last used on this day."""
    # Another machine's day may have begun.
    return clock_is_plausible() and not today() <= day <= today() + 1


def latest_day(days: Sequence[int]) -> int:
    """Return when the last of several blocks was used; an impossible day counts as now."""
    return next((day for day in days if day < FIRST_DAY), max(days))


def renew(connection: SqliteConnection, numbers: Sequence[int]) -> None:
    """Note that blocks were used today, unless the file is locked or read-only."""
    # Book-keeping only, so do not wait for a lock.
    with suppress(sqlite3.OperationalError), transaction(connection, commit_seconds=0.0):
        days = [(today(), number) for number in numbers]
        connection.executemany("update block set day = ? where id = ?", days)


def last_block(connection: SqliteConnection) -> int:
    """Return the highest number that a block ever had."""
    row = connection.execute("select seq from sqlite_sequence where name = 'block'").fetchone()
    return row[0] if row is not None and isinstance(row[0], int) else 0


def today() -> int:
    """Days since 1970."""
    return int(time.time() // 86400)


def _as_block(
    number: int,
    space: int,
    day: object,
    keys: bytes,
    checks: bytes,
    crc: int,
    vectors: bytes,
    *,
    dtype: str,
) -> VectorBlock:
    """Make a block of the values of its row, whatever they are."""
    return VectorBlock(
        id=number,
        space=space,
        day=day if isinstance(day, int) else 0,
        keys=(rows := _keys(keys)),
        vectors=_vectors(vectors, len(rows), dtype),
        checks=np.frombuffer(checks, "<u4") if _whole(checks, 4) else np.empty(0, "<u4"),
        crc=crc,
    )


@lru_cache(maxsize=4096)
def _seed(spec: Spec) -> int:
    """Start value of the checksums, so that they cover the spec."""
    return crc32(spec.digest)


def _checks(
    seed: int, keys: NDArray[np.uint8], vectors: NDArray[np.floating]
) -> NDArray[np.uint32]:
    text = keys.tobytes()  # slices of it are quicker to make than rows of an array
    rows = (text[i : i + KEY_BYTES] for i in range(0, len(text), KEY_BYTES))
    pairs = zip(rows, vectors, strict=True)
    return np.array([crc32(vector.data, crc32(key, seed)) for key, vector in pairs], "<u4")


def _whole(value: object, size: int) -> bool:
    return isinstance(value, bytes) and len(value) % size == 0


def _keys(value: bytes) -> NDArray[np.uint8]:
    if not _whole(value, KEY_BYTES):
        return np.empty((0, KEY_BYTES), np.uint8)
    return np.frombuffer(value, np.uint8).reshape(-1, KEY_BYTES)


def _vectors(value: bytes, n: int, dtype: str) -> NDArray[np.floating] | None:
    stored = stored_dtype(dtype)
    if n == 0 or not _whole(value, n * stored.itemsize):
        return None
    return np.frombuffer(value, stored).reshape(n, -1)


def stored_dtype(dtype: str) -> np.dtype[np.floating]:
    """Return the dtype in the file, little-endian."""
    return np.dtype(_STORED[dtype])
