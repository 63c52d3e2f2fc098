"""Operations on a whole cache: counting, checking, pruning, reading, comparing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from esm2_features._cache import blocks as store
from esm2_features._cache.blocks import VectorBlock
from esm2_features._cache.file import SqliteConnection, snapshot, transaction, waiting
from esm2_features._cache.keys import KEY_BYTES, KeyedVectors, Spec
from esm2_features._cache.reports import CacheCheck, SpaceInfo, describe
from esm2_features._checkpoints.catalogue import full_name
from esm2_features.exceptions import InputError

# At least ten times the difference of two machines, at most a tenth of that of two layers.
_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
_TIDIED = 64  # blocks that are read at a time, 16 MB at most


def count(connection: SqliteConnection) -> tuple[SpaceInfo, ...]:
    """Count the vectors of each space, without reading them."""
    query = (
        "select space, coalesce(sum(length(keys)), 0), "
        "coalesce(sum(length(keys) + length(checks) + length(vectors)), 0) "
        "from block join value on block = id group by space"
    )
    specs = store.spaces(connection)
    found = [
        SpaceInfo(specs[space], key_bytes // KEY_BYTES, size)
        for space, key_bytes, size in connection.execute(query).fetchall()
        if space in specs
    ]
    return tuple(sorted(found, key=lambda space: _order(space.spec)))


def check(connection: SqliteConnection) -> CacheCheck:
    """Compare every vector with its checksum."""
    damaged = [
        f"The file's structure: {line.decode(errors='replace')}."
        for (line,) in connection.execute("pragma integrity_check").fetchall()
        if line != b"ok"
    ]
    rows = 0
    for spec, numbers in contents(connection):
        good = bad = 0
        for _, intact in store.checked_blocks(connection, numbers, spec):
            good += int(intact.sum())
            # Keys that cannot be read are those of one vector at least.
            bad += max(1, len(intact)) - int(intact.sum())
        rows += good
        if bad:
            damaged.append(f"{bad} of {good + bad} vectors of {describe(spec)}.")
    with snapshot(connection):
        lost = len(_lost_blocks(connection))
    if lost:
        damaged.append(f"{lost} blocks of vectors whose model or content is unreadable.")
    return CacheCheck(rows, tuple(damaged))


def prune(
    connection: SqliteConnection,
    *,
    max_bytes: int | None = None,
    unused_days: int | None = None,
    model: str | None = None,
    layer: int | None = None,
    pooling: str | None = None,
) -> int:
    """Remove damaged and selected vectors, join small blocks, and shrink the file."""
    with waiting(connection):
        connection.execute("reindex")
    before = _rows(connection)
    unwanted = []
    if (model, layer, pooling) != (None, None, None):
        unwanted = contents(connection, model=model, layer=layer, pooling=pooling)
    with transaction(connection):
        store.delete_blocks(connection, _lost_blocks(connection))
        for _, numbers in unwanted:
            store.delete_blocks(connection, numbers)
        if unused_days is not None:
            query = "select id from block where day < ?"
            unused = connection.execute(query, (store.today() - unused_days,)).fetchall()
            store.delete_blocks(connection, (number for (number,) in unused))
    for spec, numbers in contents(connection):
        _tidy(connection, spec, numbers)
    if max_bytes is not None:
        with transaction(connection):
            store.make_room(connection, max_bytes)
    with transaction(connection):
        connection.execute("delete from space where id not in (select space from block)")
    with waiting(connection):
        connection.execute("vacuum")
    return before - _rows(connection)


def clear(connection: SqliteConnection) -> int:
    """Delete all vectors, and shrink the file."""
    before = _rows(connection)
    with transaction(connection):
        for table in ("block", "value", "space"):
            connection.execute(f"delete from {table}")
    with waiting(connection):
        connection.execute("vacuum")
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
        if (model in (None, spec.model, spec.checkpoint) or full_name(model) == (spec.model or ""))
        and layer in (None, spec.layer)
        and pooling in (None, spec.pooling)
    ]
    if not found and (model, layer, pooling) != (None, None, None):
        wanted = {"model": model, "layer": layer, "pooling": pooling}
        words = ", ".join(f"{name} {word}" for name, word in wanted.items() if word is not None)
        names = dict.fromkeys(spec.model or spec.checkpoint for spec, _ in there)
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
    tolerance = max(_TOLERANCE[spec.precision], _TOLERANCE[spec.dtype])
    scale = np.maximum(1.0, np.sqrt(np.mean(np.square(rows), axis=1, keepdims=True)))
    return np.asarray((np.abs(rows - others) > tolerance * (scale + np.abs(rows))).any(axis=1))


def _tidy(connection: SqliteConnection, spec: Spec, numbers: list[int]) -> None:
    """Drop damaged vectors, and join blocks that are less than half full."""
    for start in range(0, len(numbers), _TIDIED):
        some = numbers[start : start + _TIDIED]
        with transaction(connection):
            by_width: dict[int, list[tuple[VectorBlock, NDArray[np.bool_]]]] = {}
            for block, intact in store.checked_blocks(connection, some, spec):
                if block.vectors is None or not intact.any():
                    store.delete_blocks(connection, [block.id])
                    continue
                width = block.vectors.shape[1]
                is_small = 2 * len(block.keys) <= store.rows_per_block(width, spec.dtype)
                if is_small or not intact.all():
                    by_width.setdefault(width, []).append((block, intact))
            for odd in by_width.values():
                if len(odd) == 1 and odd[0][1].all():
                    continue  # small, and with nothing to be joined to
                store.delete_blocks(connection, [block.id for block, _ in odd])
                keys = np.concatenate([block.keys[intact] for block, intact in odd])
                rows = np.concatenate([block.vectors[intact] for block, intact in odd])  # type: ignore[index]
                space, day = odd[0][0].space, max(block.day for block, _ in odd)
                store.write_vectors(connection, space, spec, keys, rows, day=day)


def _lost_blocks(connection: SqliteConnection) -> list[int]:
    """Return the numbers of blocks without a known spec or values, and of values without blocks."""
    known = ",".join(map(str, store.spaces(connection))) or "-1"
    query = (
        f"select id from block where space not in ({known}) "
        "or id not in (select block from value) "
        "union select block from value where block not in (select id from block)"
    )
    return [row[0] for row in connection.execute(query).fetchall()]


def _rows(connection: SqliteConnection) -> int:
    query = "select coalesce(sum(length(keys)), 0) from block"
    return int(connection.execute(query).fetchone()[0]) // KEY_BYTES


def _order(spec: Spec) -> tuple[str, str, int, str, str, str]:
    return (spec.model, spec.checkpoint, spec.layer, spec.pooling, spec.precision, spec.dtype)
