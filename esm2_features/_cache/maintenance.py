"""Operations on a whole cache: counting, checking, emptying, reading, comparing."""

from __future__ import annotations

import sqlite3
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from esm2_features._cache import blocks as store
from esm2_features._cache.eviction import used_bytes
from esm2_features._cache.file import SqliteConnection, set_layout, snapshot, waiting, write_schema
from esm2_features._cache.inspection import Run, indexes_are_right, inspect
from esm2_features._cache.keys import KEY_BYTES, KeyedVectors, Spec
from esm2_features._cache.reports import CacheCheck, SpaceInfo, describe
from esm2_features._cache.vacuum import is_no_room, journal_in_memory
from esm2_features._checkpoints.catalogue import full_name
from esm2_features.exceptions import InputError

# At least ten times the difference of two machines, at most a tenth of that of two layers.
_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
_CHECKED_BYTES = 1 << 28  # for SQLite's own check, others wait: half a second for so much


def count(connection: SqliteConnection) -> tuple[SpaceInfo, ...]:
    """Count the vectors of each space, without reading them."""
    query = (
        "select space, coalesce(sum(length(keys)), 0), coalesce(sum(length(checks)), 0), max(id) "
        "from block group by space"
    )
    # All vectors of a space are as wide as those of its latest block.
    width = (
        "select coalesce(length(vectors) / (length(keys) / ?), 0) from block "
        "join value on block = id where id = ?"
    )
    with snapshot(connection):
        specs, found = store.spaces(connection), []
        for space, key_bytes, check_bytes, latest in connection.execute(query).fetchall():
            if space in specs:
                row = connection.execute(width, (KEY_BYTES, latest)).fetchone()
                n = key_bytes // KEY_BYTES
                size = key_bytes + check_bytes + n * (row[0] if row else 0)
                found.append(SpaceInfo(specs[space], n, size))
    return tuple(sorted(found, key=lambda space: _order(space.spec)))


def check(run: Run) -> CacheCheck:
    """Compare every vector with its checksum, a few blocks at a time."""
    damaged = [f"The file's structure: {line}." for line in run(_structure) or ()]
    if not damaged and not indexes_are_right(run):
        damaged.append("The file's structure: an index does not list the blocks that there are.")
    good, bad, lost = Counter[Spec](), Counter[Spec](), 0
    for block in inspect(run):
        if block.spec is None or not block.has_values:
            lost += 1
        else:
            good[block.spec] += block.intact
            bad[block.spec] += block.damaged
    for spec in sorted(bad, key=_order):
        if bad[spec]:
            total = good[spec] + bad[spec]
            damaged.append(f"{bad[spec]} of {total} vectors of {describe(spec)}.")
    if lost:
        damaged.append(f"{lost} blocks of vectors whose model or content is unreadable.")
    return CacheCheck(good.total(), tuple(damaged))


def clear(connection: SqliteConnection) -> int:
    """Delete all vectors, and shrink the file."""
    before = _rows(connection)
    empty = sqlite3.connect(":memory:", isolation_level=None)
    try:
        set_layout(empty)
        write_schema(empty)
        # Numbers of blocks go on, for those who still have an index of the old ones.
        insert = "insert into sqlite_sequence values('block', ?)"
        empty.execute(insert, (store.last_block(connection),))
        # Copied over the file, page by page, with its locks and its journal.
        with waiting(connection):
            try:
                empty.backup(connection, progress=_not_locked)
            except sqlite3.OperationalError as error:
                if not is_no_room(error):
                    raise
                with journal_in_memory(connection):
                    empty.backup(connection, progress=_not_locked)
    finally:
        empty.close()
    return before


def contents(
    connection: SqliteConnection,
    *,
    model: str | None = None,
    layer: int | None = None,
    pooling: str | None = None,
) -> list[tuple[Spec, list[int]]]:
    """List the specs that have vectors, and the numbers of their blocks."""
    specs = store.spaces(connection)
    there = [
        (spec, numbers)
        for space, spec in sorted(specs.items(), key=lambda item: _order(item[1]))
        if (numbers := store.blocks_of(connection, space))
    ]
    found = [
        (spec, numbers)
        for spec, numbers in there
        if (model is None or model in _names(spec) or full_name(model) == spec.model)
        and layer in (None, spec.layer)
        and pooling in (None, spec.pooling)
    ]
    if not found and (model, layer, pooling) != (None, None, None):
        wanted = {"model": model, "layer": layer, "pooling": pooling}
        words = ", ".join(f"{name} {word}" for name, word in wanted.items() if word is not None)
        names = dict.fromkeys(spec.words[0] for spec, _ in there)
        raise InputError(
            f"The cache holds no vectors of {words}. Its models are: {', '.join(names) or 'none'}; "
            "`esm2-features cache info` shows all that it holds."
        )
    return found


def blocks_after(connection: SqliteConnection, spec: Spec, after: int, most: int) -> list[int]:
    """List the first blocks of a spec that were written after block `after`."""
    space = store.space_of(connection, spec)
    return [] if space is None else store.blocks_of(connection, space, after, most=most)


def read_parts(
    connection: SqliteConnection, spec: Spec, numbers: list[int]
) -> tuple[list[KeyedVectors], int]:
    """Read the intact vectors of some blocks."""
    parts, damaged = [], 0
    for block, intact in store.checked_blocks(connection, numbers, spec):
        damaged += max(1, len(intact)) - int(intact.sum())
        if block.vectors is not None and intact.any():
            rows = block.vectors[intact].astype(np.float32)
            parts.append(KeyedVectors(spec, block.keys[intact], rows))
    return parts, damaged


def contradicting(
    spec: Spec, rows: NDArray[np.float32], others: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Return which vectors differ by more than rounding on two machines (n,)."""
    rows, others = rows.astype(np.float64), others.astype(np.float64)
    tolerance = max(_TOLERANCE.get(spec.precision, 0.0), _TOLERANCE[spec.dtype])
    scale = np.maximum(1.0, np.sqrt(np.mean(np.square(rows), axis=1, keepdims=True)))
    return np.asarray((np.abs(rows - others) > tolerance * (scale + np.abs(rows))).any(axis=1))


def _structure(connection: SqliteConnection) -> list[str]:
    """Check pages and lists of pages; in a large file, others would wait too long for that."""
    if used_bytes(connection) > _CHECKED_BYTES:
        return []
    rows = connection.execute("pragma integrity_check").fetchall()
    return [line.decode(errors="replace") for (line,) in rows if line != b"ok"]


def _not_locked(status: int, _remaining: int, _total: int) -> None:
    """Stop a backup that would wait for a lock for ever; it has waited as long as others do."""
    if status & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        error = sqlite3.OperationalError("database is locked")
        error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_BUSY, "SQLITE_BUSY"
        raise error


def _rows(connection: SqliteConnection) -> int:
    query = "select coalesce(sum(length(keys)), 0) from block"
    return int(connection.execute(query).fetchone()[0]) // KEY_BYTES


def _names(spec: Spec) -> tuple[str, str, str]:
    return spec.model, spec.checkpoint, spec.words[0]  # the last as it is shown


def _order(spec: Spec) -> tuple[str, str, int, str, str, str]:
    return (spec.model, spec.checkpoint, spec.layer, spec.pooling, spec.precision, spec.dtype)
