"""Inspection: the blocks of a cache are read and checked, in short transactions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from esm2_features._cache import blocks as store
from esm2_features._cache.file import SqliteConnection, snapshot
from esm2_features._cache.keys import Spec

Run = Callable[[Callable[[SqliteConnection], Any]], Any]
"""Runs an action on the connection to a cache, and returns its result; None without a file."""

_INDEXES = {"block_of_space": "space", "block_of_day": "day"}  # and the column of each
_LISTED = 1000  # blocks that are looked up in the indexes in one transaction


class Inspected(NamedTuple):
    """A block, and what is right with it."""

    id: int
    spec: Spec | None  # None if it is unreadable
    size: int  # vectors
    intact: int  # vectors
    width: int | None  # components of each vector; None if that is unreadable
    has_values: bool

    @property
    def damaged(self) -> int:
        """Number of damaged vectors; keys that are unreadable are those of one at least."""
        return max(1, self.size) - self.intact


def inspect(run: Run) -> Iterator[Inspected]:
    """Read and check the blocks that there are now, in the order of the file."""
    last, after = run(_last) or 0, 0
    while after < last:
        found, after = run(partial(_inspect, after=after, last=last)) or ([], last)
        yield from found


def indexes_are_right(run: Run) -> bool:
    """Whether the indexes list the blocks that there are, and no others."""
    indexes = run(_indexes) or {}
    last, seen = run(_last) or 0, list[int]()
    look_up = partial(_look_up, indexes=indexes, last=last)
    while rows := run(partial(look_up, after=seen[-1] if seen else 0)):
        seen += [number for number, _ in rows]
        if not all(is_listed for _, is_listed in rows):
            return False
    return not run(partial(_list_others, indexes=indexes, seen=seen, last=last))


def _indexes(connection: SqliteConnection) -> dict[str, str]:
    """Return the indexes of blocks, of which others may have dropped some, and their columns."""
    query = "select name from sqlite_master where type = 'index'"
    names = {name.decode(errors="replace") for (name,) in connection.execute(query).fetchall()}
    return {name: column for name, column in _INDEXES.items() if name in names}


def _last(connection: SqliteConnection) -> int:
    query = "select max(coalesce(max(id), 0), (select coalesce(max(block), 0) from value))"
    return int(connection.execute(f"{query} from block not indexed").fetchone()[0])


def _inspect(connection: SqliteConnection, after: int, last: int) -> tuple[list[Inspected], int]:
    """Inspect the first blocks after one, and return up to which."""
    with snapshot(connection):
        specs = store.spaces(connection)
        blocks = store.next_blocks(connection, after, last, specs)
        upto = blocks[-1].id if blocks else last
        query = "select block from value where block > ? and block <= ?"
        values = {row[0] for row in connection.execute(query, (after, upto)).fetchall()}
    found = []
    for block in blocks:
        spec = specs.get(block.space)
        intact = 0 if spec is None else int(block.intact(spec).sum())
        if spec is not None and intact < max(1, len(block.keys)):  # a disk may be wrong once
            for again, is_intact in store.checked_blocks(connection, [block.id], spec):
                block, intact = again, int(is_intact.sum())
        width = None if block.vectors is None else block.vectors.shape[1]
        found.append(Inspected(block.id, spec, len(block.keys), intact, width, block.id in values))
    others = values.difference(block.id for block in blocks)
    return found + [Inspected(i, None, 0, 0, None, True) for i in sorted(others)], upto


def _look_up(
    connection: SqliteConnection, after: int, last: int, indexes: dict[str, str]
) -> list[tuple[int, bool]]:
    """List blocks, which are found without an index, and whether all indexes have them."""
    test = "exists(select 1 from block as i indexed by {} where i.{} = b.{} and i.id = b.id)"
    tests = [test.format(name, column, column) for name, column in indexes.items()]
    query = "select id, {} from block as b not indexed where id > ? and id <= ? order by id limit ?"
    query = query.format(" and ".join(tests) or "1")
    return connection.execute(query, (after, last, _LISTED)).fetchall()


def _list_others(
    connection: SqliteConnection, indexes: dict[str, str], seen: list[int], last: int
) -> bool:
    """Whether an index lists blocks that do not exist, besides those that were seen."""
    for name, column in indexes.items():
        query = f"select id from block indexed by {name} order by {column}, id"  # noqa: S608
        with snapshot(connection):
            rows = connection.execute(query).fetchall()
            listed = np.array([row[0] for row in rows], np.int64)
            others = np.setdiff1d(listed[listed <= last], np.array(seen, np.int64))
            for number in others.tolist():
                exists = "select 1 from block not indexed where id = ?"
                if connection.execute(exists, (number,)).fetchone() is None:
                    return True
    return False
