"""The file of the cache: its schema, and how vectors get in and out of it.

    <folder>/embeddings.sqlite3
    ├─ header    application_id 0x45534D32 ("ESM2"), user_version 1
    └─ vector    id      integer   order of arrival: what was written together lies together
                 key     blob      all that identifies the vector; unique
                 dim     integer   how many numbers the value holds
                 crc     integer   CRC-32 over key and value: no value can answer for another key
                 day     integer   last used, in days since 1970, to within a week
                 value   blob      dim x little-endian float32

Never here: what to do when something fails.
"""

from __future__ import annotations

import os
import sqlite3
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm2_features.exceptions import CacheVersionError

_PROGRAM, _FORMAT = 0x45534D32, 1
_HEADER = """
select (select application_id from pragma_application_id),
       (select user_version from pragma_user_version), (select count(*) from sqlite_master)
"""
_SCHEMA = """
create table vector(
    id integer primary key, key blob not null unique,
    dim integer not null, crc integer not null, day integer not null, value blob not null)
"""
_UPSERT = """
insert into vector(key, dim, crc, day, value) values(?, ?, ?, ?, ?) on conflict(key) do update
set dim = excluded.dim, crc = excluded.crc, day = excluded.day, value = excluded.value
"""
_PAGE_BYTES = 16384  # holds three vectors of 1280 float32; smaller pages read slower
_CHUNK = 500  # values in one query; SQLite may be built to take no more than 999
_WEEK = 7  # `day` is renewed no oftener, because that rewrites the page with the value


class Connection(sqlite3.Connection):
    """One that knows which process opened it; closed with its thread, or with its `Cache`."""

    pid = -1

    def __del__(self) -> None:
        if self.pid == os.getpid():
            self.close()


def open_file(file: Path, busy_seconds: float) -> Connection:
    """Connect, begin a file that is empty, refuse one that is not ours."""
    connection = sqlite3.connect(
        f"{file.as_uri()}?mode=rw",  # where writing is not allowed, SQLite opens to read
        uri=True,
        timeout=busy_seconds,
        isolation_level=None,
        check_same_thread=False,  # what a thread leaves behind is closed by another
        factory=Connection,
    )
    connection.pid = os.getpid()
    connection.text_factory = bytes  # a damaged row may claim to be text, and must not raise
    try:
        # The journal stays SQLite's default, a rollback journal: a write-ahead log needs a local
        # disk. Memory is not mapped: a mapped file that is truncated kills the process.
        for pragma in ("mmap_size=0", "synchronous=NORMAL", "cell_size_check=ON"):
            connection.execute(f"pragma {pragma}")
        if connection.execute(_HEADER).fetchone() == (0, 0, 0):
            connection.execute(f"pragma page_size={_PAGE_BYTES}")
            with transaction(connection):
                if connection.execute(_HEADER).fetchone() == (0, 0, 0):  # no one was faster
                    connection.execute(_SCHEMA)
                    connection.execute(f"pragma application_id={_PROGRAM}")
                    connection.execute(f"pragma user_version={_FORMAT}")
        program, version, _ = connection.execute(_HEADER).fetchone()
        if (program, version) == (_PROGRAM, _FORMAT):
            return connection
        reason = "belongs to another program. Move it away"
        if program == _PROGRAM:
            reason = f"has format {version}; this version reads {_FORMAT}. Upgrade esm2-features"
        raise CacheVersionError(
            f"{file} {reason}, or choose another folder with cache=. It is left as it is.",
            path=str(file),
            found=version,
            expected=_FORMAT,
        )
    except BaseException:
        connection.close()
        raise


def read_vectors(
    connection: Connection, place: dict[bytes, int], raw: NDArray[np.uint8], hit: NDArray[np.bool_]
) -> bool:
    """Fill `raw`, the bytes of one row per place, and `hit`; whether a value was damaged.

    Keys are digests, so the rows of some keys lie anywhere in the file. The index is asked for
    their ids first; rows in the order of ids are then read from front to back.
    """
    key_of = dict(_fetch(connection, "select id, key from vector where key", sorted(place)))
    query = "select id, day, crc, value from vector where id"
    buffer, width = raw.reshape(-1).data, raw.shape[1]
    today, damaged, renewed = _today(), False, []
    for id_, day, crc, value in _fetch(connection, query, sorted(key_of)):
        key = key_of[id_]
        if not isinstance(value, bytes) or _checksum(key, value) != crc:
            damaged = True
        elif len(value) == width:
            at = place[key]
            buffer[at * width : (at + 1) * width] = value
            hit[at] = True
            if isinstance(day, int) and day <= today - _WEEK:
                renewed.append((today, id_))
    if renewed:
        # Mere book-keeping: a cache that is locked or read-only goes without it, at once.
        wait = connection.execute("pragma busy_timeout").fetchone()[0]
        try:
            connection.execute("pragma busy_timeout=0")
            with suppress(sqlite3.OperationalError), transaction(connection):
                connection.executemany("update vector set day = ? where id = ?", renewed)
        finally:
            connection.execute(f"pragma busy_timeout={wait}")
    return damaged


def write_vectors(connection: Connection, keys: Sequence[bytes], rows: NDArray[np.float32]) -> None:
    """Write the (n, dim) rows of n keys over what is there: all of them or none."""
    dim, day = rows.shape[1], _today()
    values = (row.tobytes() for row in np.asarray(rows, "<f4"))
    records = [(k, dim, _checksum(k, v), day, v) for k, v in zip(keys, values, strict=True)]
    with transaction(connection):
        connection.executemany(_UPSERT, records)


def _fetch(connection: Connection, query: str, values: list[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows for which what `query` ends with is one of `values`."""
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK]
        marks = ",".join("?" * len(chunk))
        # All at once: a cursor that an interrupt leaves open would keep the file locked.
        yield from connection.execute(f"{query} in ({marks})", chunk).fetchall()


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Write all or nothing."""
    connection.execute("begin immediate")
    try:
        yield
        connection.execute("commit")
    except BaseException:
        with suppress(sqlite3.Error):  # SQLite may have rolled back by itself
            connection.execute("rollback")
        raise


def _checksum(key: bytes, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(key))


def _today() -> int:
    return int(time.time() // 86400)
