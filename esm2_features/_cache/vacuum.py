"""Short write transactions, also on a full disk, and files that shrink in steps.

New files have ``auto_vacuum=INCREMENTAL``: pages at the end move to free ones, a few at a time, and
the file is cut. Files of earlier versions need one `vacuum`, with room for a copy of their content.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from esm2_features._cache.eviction import Room, make_room, used_bytes
from esm2_features._cache.file import PAGE_BYTES, SqliteConnection, transaction, waiting

_STEP_SECONDS = 0.1  # how long a step should hold the file
_FIRST_PAGES, _MOST_PAGES = 16, 256  # 1 MB, 16 MB
_LONGEST_PAUSE = 0.1  # SQLite asks for a lock at least as often
_WORTHWHILE = 10  # a file of an earlier version shrinks when one in so many pages is free
_IN_MEMORY = 1 << 26  # a file with so many bytes in use is copied in memory
_NO_ROOM = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE}  # the second: a quota, or a limit

_T = TypeVar("_T")


def write(connection: SqliteConnection, action: Callable[[SqliteConnection], _T]) -> tuple[_T, int]:
    """Run an action in a transaction, and return its result, and pages by which the file shrank.

    On a disk without room for the rollback journal, the journal is kept in memory, and the file
    shrinks at once: a crash in this moment may damage the file, which would be noticed.
    """
    try:
        with transaction(connection):
            return action(connection), 0
    except sqlite3.OperationalError as error:
        if not is_no_room(error):
            raise
    with journal_in_memory(connection), transaction(connection):
        result = action(connection)
        return result, cut(connection, _MOST_PAGES)


@contextmanager
def journal_in_memory(connection: SqliteConnection) -> Iterator[None]:
    """Write without a journal on the disk; a crash meanwhile may damage the file."""
    try:
        connection.execute("pragma journal_mode=MEMORY")
        yield
    finally:
        connection.execute("pragma journal_mode=DELETE")


def pause(start: float) -> None:
    """Let others at the file for as long as a step took that began then."""
    time.sleep(min(time.monotonic() - start, _LONGEST_PAUSE))


def is_no_room(error: sqlite3.Error) -> bool:
    """Whether the disk, or a temporary folder, is full."""
    return getattr(error, "sqlite_errorcode", 0) in _NO_ROOM


def cut(connection: SqliteConnection, pages: int) -> int:
    """Cut off so many pages, if as many are free; return how many; call it in a transaction."""
    before = _number(connection, "page_count")
    pages = min(pages, _number(connection, "freelist_count")) if can_cut(connection) else 0
    for _ in range(pages):
        connection.execute("pragma incremental_vacuum(1)")  # Python's sqlite3 stops after one page
    return before - _number(connection, "page_count")


class Shrinking:
    """Cuts off the free pages of a file in steps that take about the same time."""

    def __init__(self) -> None:
        self.released = 0  # pages
        self._pages = _FIRST_PAGES
        self._left: int | None = None  # others may delete for ever

    def step(self, connection: SqliteConnection) -> bool:
        """Do a step, and return whether there may be another."""
        free = _number(connection, "freelist_count")
        self._left = free if self._left is None else self._left
        if not free or self._left <= 0 or not can_cut(connection):
            return False
        start = time.monotonic()
        pages = min(self._pages, self._left)
        released, more = write(connection, lambda connection: cut(connection, pages))
        self.released += released + more
        self._left -= released + more
        seconds = time.monotonic() - start
        if seconds < _STEP_SECONDS / 2:
            self._pages = min(2 * self._pages, _MOST_PAGES)
        elif seconds > _STEP_SECONDS:
            self._pages = max(self._pages // 2, 1)
        return released + more > 0


def can_cut(connection: SqliteConnection) -> bool:
    """Whether the file can shrink in steps; those of earlier versions cannot."""
    return _number(connection, "auto_vacuum") == 2


def rebuild(connection: SqliteConnection, max_bytes: int | None) -> tuple[int, bool]:
    """Let a file of an earlier version shrink, if that is worth it.

    Return by how many pages, and whether there was room for that.
    """
    before, free = _number(connection, "page_count"), _number(connection, "freelist_count")
    too_large = max_bytes is not None and before * PAGE_BYTES > max_bytes
    if not free or can_cut(connection) or (free * _WORTHWHILE < before and not too_large):
        return 0, True
    (_, _, file), *_ = connection.execute("pragma database_list").fetchall()
    used = used_bytes(connection)
    is_small = used <= _IN_MEMORY
    if not is_small and shutil.disk_usage(Path(file.decode()).parent).free < used:
        return 0, False
    connection.execute(f"pragma temp_store={'MEMORY' if is_small else 'DEFAULT'}")
    try:
        _vacuum(connection)
    except sqlite3.OperationalError as error:
        if not is_no_room(error):
            raise
        if not is_small:
            return 0, False
        with journal_in_memory(connection):
            _vacuum(connection)
    return max(0, before - _number(connection, "page_count")), True


def _vacuum(connection: SqliteConnection) -> None:
    connection.execute("pragma auto_vacuum=INCREMENTAL")
    with waiting(connection):
        connection.execute("vacuum")


def reduce(connection: SqliteConnection, max_bytes: int, has_room: bool = True) -> tuple[int, bool]:
    """Make a file that is much larger than its limit smaller, in steps.

    Return how many vectors of today were deleted, and whether there is room to make a file of an
    earlier version smaller, as far as that is known.
    """
    of_today = 0
    while _excess(connection, max_bytes) > (_MOST_PAGES if can_cut(connection) else 0):
        start = time.monotonic()
        (room, released), more = write(connection, partial(_reduce, max_bytes=max_bytes))
        of_today += room.of_today
        if not room.blocks and not released + more:
            break
        pause(start)
    if has_room and _excess(connection, max_bytes) > 0 and not can_cut(connection):
        _, has_room = rebuild(connection, max_bytes)
    return of_today, has_room


def _reduce(connection: SqliteConnection, max_bytes: int) -> tuple[Room, int]:
    room = make_room(connection, max_bytes, most=_MOST_PAGES // 4)
    return room, cut(connection, min(_MOST_PAGES, _excess(connection, max_bytes)))


def fit(connection: SqliteConnection, max_bytes: int) -> int:
    """Make the file no larger than its limit; call it in a transaction.

    Return how many vectors of today were deleted.
    """
    room = make_room(connection, max_bytes)
    cut(connection, _excess(connection, max_bytes))
    return room.of_today


def _excess(connection: SqliteConnection, max_bytes: int) -> int:
    """Pages by which the file is larger than its limit."""
    return _number(connection, "page_count") - max_bytes // PAGE_BYTES


def _number(connection: SqliteConnection, pragma: str) -> int:
    return int(connection.execute(f"pragma {pragma}").fetchone()[0])
