"""Pruning: damaged and unwanted vectors go in short transactions, between which others get in."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from esm2_features._cache import blocks as store
from esm2_features._cache import eviction
from esm2_features._cache.file import PAGE_BYTES, SqliteConnection
from esm2_features._cache.inspection import Run, indexes_are_right, inspect
from esm2_features._cache.keys import Spec
from esm2_features._cache.maintenance import contents
from esm2_features._cache.reports import Pruned
from esm2_features._cache.vacuum import Shrinking, pause, rebuild, write
from esm2_features.exceptions import CacheWarning

_AT_A_TIME = 64  # blocks that are deleted in one transaction, 16 MB at most
_JOINED = 8  # full blocks that small ones fill in one transaction
_MOST_JOINED = 1000  # small blocks in one transaction

_T = TypeVar("_T")


class Pruning:
    """Removes vectors of a cache, and counts what it removes."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._vectors = self._pages = 0

    def prune(
        self, max_bytes: int | None = None, unused_days: int | None = None, **selected: Any
    ) -> Pruned:
        """Remove damaged and selected vectors, join small blocks, and shrink the file."""
        try:
            self._prune(max_bytes, unused_days, selected)
        except OSError as error:
            if not self._vectors and not self._pages:
                raise
            self._warn(f"{error}. What was removed before that is gone. Prune again for the rest.")
        return Pruned(self._vectors, self._pages * PAGE_BYTES)

    def _prune(
        self, max_bytes: int | None, unused_days: int | None, selected: dict[str, Any]
    ) -> None:
        if not indexes_are_right(self._run):
            self._write(_reindex)
        if any(value is not None for value in selected.values()):
            for _, numbers in self._run(partial(contents, **selected)) or ():
                self._delete(numbers)
        while self._run(eviction.impossible_days):
            self._write(eviction.correct_days)
        if unused_days is not None:
            self._delete_unused(unused_days)
        self._mend()
        if max_bytes is not None:
            self._make_room(max_bytes)
        if self._run(_spaces_without_blocks):
            self._write(_delete_spaces)
        self._shrink(max_bytes)

    def _warn(self, message: str) -> None:
        warnings.warn(message, CacheWarning, stacklevel=5)

    def _write(self, action: Callable[[SqliteConnection], _T]) -> _T:
        """Run an action in a short transaction, and let others at the file."""
        start = time.monotonic()
        done: tuple[_T, int] = self._run(partial(write, action=action))
        self._pages += done[1]
        pause(start)
        return done[0]

    def _delete(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), _AT_A_TIME):
            some = numbers[start : start + _AT_A_TIME]
            self._vectors += self._write(partial(store.delete_blocks, numbers=some))

    def _delete_unused(self, days: int) -> None:
        if not store.clock_is_plausible():
            self._warn(
                f"No vectors were removed by age: the clock of this machine says {time.ctime()}. "
                "Set it, and repeat.",
            )
            return
        self._delete(self._run(partial(eviction.unused, days=days)) or ())

    def _mend(self) -> None:
        """Drop damaged vectors, and join blocks that are less than half full."""
        lost = list[int]()
        small: dict[tuple[Spec, int], tuple[list[int], int]] = {}  # numbers, and vectors in them
        for block in inspect(self._run):
            if block.spec is None or not block.has_values:
                lost.append(block.id)
            elif block.damaged or block.width is None:
                mend = partial(store.rewrite_block, spec=block.spec, number=block.id)
                self._vectors += self._write(mend)
            elif 2 * block.size <= (full := store.rows_per_block(block.width, block.spec.dtype)):
                alike = block.spec, block.width
                numbers, size = small.get(alike, ([], 0))
                small[alike] = [*numbers, block.id], size + block.size
                if size + block.size >= _JOINED * full or len(numbers) + 1 == _MOST_JOINED:
                    self._join(block.spec, small.pop(alike)[0])
        self._delete(lost)
        for (spec, _), (numbers, _) in small.items():
            self._join(spec, numbers)

    def _join(self, spec: Spec, numbers: list[int]) -> None:
        if len(numbers) > 1:
            self._vectors += self._write(partial(store.join_blocks, spec=spec, numbers=numbers))

    def _make_room(self, max_bytes: int) -> None:
        """Delete the least recently used blocks, some at a time."""
        make_room = partial(eviction.make_room, max_bytes=max_bytes, most=_AT_A_TIME)
        while (self._run(eviction.used_bytes) or 0) > max_bytes:
            room = self._write(make_room)
            self._vectors += room.vectors
            if not room.blocks:
                return

    def _shrink(self, max_bytes: int | None) -> None:
        """Cut the free pages off, some at a time."""
        shrinking, more = Shrinking(), True
        while more:
            start = time.monotonic()
            more = self._run(shrinking.step)
            pause(start)
        self._pages += shrinking.released
        pages, has_room = self._run(partial(rebuild, max_bytes=max_bytes)) or (0, True)
        self._pages += pages
        if not has_room:
            self._warn(
                "The file of the cache keeps its size, because there is no room for a copy of what "
                "it holds, which a file of an earlier version needs to become smaller. Its free "
                "pages are used for new vectors. Free some disk space, and prune again.",
            )


def _reindex(connection: SqliteConnection) -> None:
    connection.execute("reindex")


def _spaces_without_blocks(connection: SqliteConnection) -> list[int]:
    query = "select id from space where id not in (select space from block)"
    return [row[0] for row in connection.execute(query).fetchall()]


def _delete_spaces(connection: SqliteConnection) -> None:
    # In a transaction of its own the list may be another one.
    for number in _spaces_without_blocks(connection):
        connection.execute("delete from space where id = ?", (number,))
