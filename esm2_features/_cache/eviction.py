"""Eviction: the vectors that were not used for longest make room, whatever some clock said."""

from __future__ import annotations

from typing import NamedTuple

from esm2_features._cache import blocks as store
from esm2_features._cache.file import PAGE_BYTES, SqliteConnection

_OLDEST = (
    "select id, day from block where day >= ? order by day, id limit 8",
    "select id, day from block where day < ? order by id limit 8",
)
_CORRECTED = 256  # blocks whose day is corrected in one transaction


class Room(NamedTuple):
    """What was deleted to make room."""

    blocks: int
    vectors: int
    of_today: int  # vectors that were used today


def make_room(
    connection: SqliteConnection, max_bytes: int, needed: int = 0, *, most: int | None = None
) -> Room:
    """Delete the least recently used blocks until the rest fits; call it in a transaction.

    At most so many blocks are deleted.
    """
    blocks = vectors = of_today = 0
    needed += -needed % PAGE_BYTES + (PAGE_BYTES if needed else 0)  # and their keys
    oldest: list[tuple[int, int]] = []
    while used_bytes(connection) + needed > max_bytes and blocks != most:
        if not oldest:
            if not blocks:
                correct_days(connection)
            oldest = _oldest(connection)[::-1]
            if not oldest:
                break
        number, day = oldest.pop()
        deleted = store.delete_blocks(connection, [number])
        blocks, vectors = blocks + 1, vectors + deleted
        of_today += deleted if day == store.today() else 0
    return Room(blocks, vectors, of_today)


def _oldest(connection: SqliteConnection) -> list[tuple[int, int]]:
    """List numbers and days of the blocks that were not used for longest, some at a time."""
    # A day before the library comes from a wrong clock, and counts as today until it is corrected.
    for query in _OLDEST:
        if rows := connection.execute(query, (store.FIRST_DAY,)).fetchall():
            return rows
    return []


def unused(connection: SqliteConnection, days: int) -> list[int]:
    """List the blocks that were not used for longer than so many days."""
    query = "select id from block where day >= ? and day < ? order by day, id"
    limits = (store.FIRST_DAY, store.today() - days)
    return [row[0] for row in connection.execute(query, limits).fetchall()]


def correct_days(connection: SqliteConnection) -> int:
    """Let some blocks of impossible days count as used today; call it in a transaction.

    Their days are before the library, or after tomorrow: a clock was wrong. Return their number.
    """
    days = [(store.today(), number) for number in impossible_days(connection)]
    connection.executemany("update block set day = ? where id = ?", days)
    return len(days)


def impossible_days(connection: SqliteConnection) -> list[int]:
    """List some blocks of impossible days; none if the clock of this process is wrong itself."""
    if not store.clock_is_plausible():
        return []
    query = "select id from block where day > ? union all select id from block where day < ?"
    limits = (store.today() + 1, store.FIRST_DAY)
    return [row[0] for row in connection.execute(f"{query} limit {_CORRECTED}", limits).fetchall()]


def used_bytes(connection: SqliteConnection) -> int:
    """Bytes of the pages in use, without the free pages of deleted blocks."""
    size, count, free = (
        connection.execute(f"pragma {name}").fetchone()[0]
        for name in ("page_size", "page_count", "freelist_count")
    )
    return int(size * (count - free))
