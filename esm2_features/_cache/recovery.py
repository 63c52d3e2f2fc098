"""Bringing back vectors from files that were set aside as damaged.

Blocks are read one by one, so that one that SQLite cannot read does not cost the next. Each vector
has a checksum over its spec, key and value: what passes is what was written.
"""

from __future__ import annotations

import glob
import shutil
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from esm2_features._cache import blocks as store
from esm2_features._cache import maintenance
from esm2_features._cache.connection import CacheConnection
from esm2_features._cache.exchange import merge_parts
from esm2_features._cache.file import FORK_LOCK, PAGE_BYTES, SqliteConnection, open_file
from esm2_features._cache.keys import KEY_BYTES, KeyedVectors, Spec
from esm2_features._cache.reports import Conflict, Recovered, RecoveredFile, SetAside
from esm2_features.exceptions import CacheVersionError

_T = TypeVar("_T")

_NUMBERS = 1000  # of blocks that are looked for in one query
_MOST_BLOCKS = 1 << 25  # a higher number is damaged itself
_PART_BYTES = 1 << 24
_HIGHEST = (
    "select max(seq) from sqlite_sequence",
    "select max(id) from block",
    "select max(block) from value",
)
_LISTS = (
    "select id from block where id between ? and ?",
    "select block from value where block between ? and ?",
)


def set_aside(file: Path) -> tuple[SetAside, ...]:
    """List the files that were set aside from a cache, newest first."""
    names = file.parent.glob(f"{glob.escape(file.name)}.corrupt-*")
    files = sorted((path for path in names if not path.name.endswith("-journal")), reverse=True)
    return tuple(SetAside(path, path.stat().st_size) for path in files)


def remove(path: Path) -> None:
    """Remove a file that was set aside, and its journal."""
    for name in (f"{path}-journal", path):
        Path(name).unlink(missing_ok=True)


def recover(
    link: CacheConnection,
    merge: Callable[..., tuple[int, list[Conflict], int]],
    *,
    remove_files: bool,
) -> tuple[Recovered, int]:
    """Merge what is intact into a cache; also return how many vectors had to make room."""
    files, dropped = list[RecoveredFile](), 0
    known = dict.fromkeys((link.run("read", store.spaces) or {}).values())
    for path, _ in set_aside(link.file):  # newest first, as the first of two vectors stays
        salvage = Salvage(path, known)
        try:
            imported, of_today = merge_parts(link, merge, salvage.parts(), with_rows=False)
        except _UnreadableError as error:
            files.append(RecoveredFile(path, 0, 0, 0, str(error)))
            continue
        dropped += of_today
        there = imported.present + len(imported.conflicts)
        files.append(RecoveredFile(path, imported.added, there, salvage.lost, None))
        if remove_files:
            remove(path)
    return Recovered(sum(file.added for file in files), tuple(files)), dropped


class _UnreadableError(Exception):
    """A file cannot be opened, so what is in it is not known."""


class Salvage:
    """The intact vectors of one file, and how many others there were, as far as one can tell."""

    def __init__(self, path: Path, known: dict[Spec, None]) -> None:
        self._path = path
        self._known = known  # specs of this file and others, for blocks whose own is damaged
        self.lost = 0

    def parts(self) -> Iterator[KeyedVectors]:
        """Yield the vectors, some megabytes at a time."""
        waiting, size = defaultdict[Spec, list[KeyedVectors]](list), 0
        for part in self._blocks():
            waiting[part.spec].append(part)
            size += part.rows.nbytes
            if size >= _PART_BYTES:
                yield from map(_joined, waiting.values())
                waiting.clear()
                size = 0
        yield from map(_joined, waiting.values())

    def _blocks(self) -> Iterator[KeyedVectors]:
        with _opened(self._path) as connection:
            if connection is None:
                return
            with FORK_LOCK:
                own = _tried(partial(store.spaces, connection)) or {}
                numbers = _numbers(connection)
            self._known |= dict.fromkeys(own.values())
            for number in numbers:
                with FORK_LOCK:
                    part, lost = self._block(connection, number, own)
                self.lost += lost
                if part is not None:
                    yield part

    def _block(
        self, connection: SqliteConnection, number: int, own: dict[int, Spec]
    ) -> tuple[KeyedVectors | None, int]:
        """Return the intact vectors of a block, and the number of the others."""
        query = "select space, length(keys) from block where id = ?"
        rows = _tried(partial(_rows, connection, query, (number,)))
        if not rows:
            return None, 1  # or more: how many there were is not known
        space, key_bytes = rows[0]
        for spec in [own[space]] if space in own else list(self._known):
            read = partial(maintenance.read_parts, connection, spec, [number])
            parts, damaged = _tried(read) or ([], 0)
            if parts:
                return parts[0], damaged
        return None, max(1, int(key_bytes or 0) // KEY_BYTES)


def _numbers(connection: SqliteConnection) -> list[int]:
    """List the numbers of blocks that are there, or cannot be ruled out."""
    rows = [_tried(partial(_rows, connection, query)) for query in _HIGHEST]
    highest = [row[0] for found in rows for row in found or ()]
    last = max((n for n in highest if isinstance(n, int) and n < _MOST_BLOCKS), default=0)
    numbers = set[int]()
    for query in _LISTS:
        for start in range(1, last + 1, _NUMBERS):
            numbers |= _between(connection, query, start, min(start + _NUMBERS - 1, last))
    return sorted(numbers)


def _between(connection: SqliteConnection, query: str, first: int, last: int) -> set[int]:
    """Return the numbers in a range; where they cannot be read, look in each half."""
    rows = _tried(partial(_rows, connection, query, (first, last)))
    if rows is not None:
        return {number for (number,) in rows}
    if first == last:
        return set()
    middle = (first + last) // 2
    lower = _between(connection, query, first, middle)
    return lower | _between(connection, query, middle + 1, last)


def _rows(connection: SqliteConnection, query: str, values: tuple[int, ...] = ()) -> list[Any]:
    return connection.execute(query, values).fetchall()


def _tried(read: Callable[[], _T]) -> _T | None:
    """Read, or return None where SQLite cannot."""
    try:
        return read()
    except (sqlite3.Error, UnicodeDecodeError):
        return None


def _joined(parts: list[KeyedVectors]) -> KeyedVectors:
    keys = np.concatenate([part.keys for part in parts])
    return KeyedVectors(parts[0].spec, keys, np.concatenate([part.rows for part in parts]))


@contextmanager
def _opened(path: Path) -> Iterator[SqliteConnection | None]:
    """Open a file, or if its first page is damaged, a copy with a new one; None if none helps."""
    with ExitStack() as stack:
        try:
            with path.open("rb"):  # for the error that says why it cannot be read
                pass
            connection = _open(path) or _open(stack.enter_context(_with_first_page(path)))
        except OSError as error:
            raise _UnreadableError(str(error)) from error
        if connection is not None:
            stack.enter_context(closing(connection))
        yield connection


def _open(path: Path) -> SqliteConnection | None:
    """Open a file that nobody writes: no locks, and no journal is played into it."""
    with FORK_LOCK, suppress(sqlite3.Error, UnicodeDecodeError, CacheVersionError):
        return open_file(path, mode="ro&immutable=1")
    return None


@contextmanager
def _with_first_page(path: Path) -> Iterator[Path]:
    """Copy a file, with the first page of a new one: its tables begin at the same pages."""
    with tempfile.TemporaryDirectory(prefix=f"{path.name}.", dir=path.parent) as folder:
        new, copy = Path(folder) / "new", Path(folder) / "copy"
        new.touch()
        with FORK_LOCK:
            open_file(new).close()
        shutil.copyfile(path, copy)
        page = bytearray(new.read_bytes()[:PAGE_BYTES])
        page[28:32] = (copy.stat().st_size // PAGE_BYTES).to_bytes(4, "big")  # number of pages
        with copy.open("r+b") as file:
            file.write(page)
        yield copy
