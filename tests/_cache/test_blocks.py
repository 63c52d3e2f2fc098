"""Blocks: what is in one never changes, and no other spec takes it for its own."""

from __future__ import annotations

import numpy as np
import pytest
from cache_helpers import CLS, DIM, HALF, SPEC, keys_of, part_of, rows_of

from esm2_features._cache import blocks as store
from esm2_features._cache.file import open_file, transaction


@pytest.fixture
def connection(tmp_path):
    file = tmp_path / "embeddings.sqlite3"
    file.touch()
    connection = open_file(file, 1.0)
    yield connection
    connection.close()


def write(connection, numbers, spec=SPEC, dim=DIM, day=None):
    """Write vectors; the numbers of the blocks that are there now."""
    with transaction(connection):
        space = store.space_of(connection, spec) or store.new_space(connection, spec)
        _, keys, rows = part_of(numbers, spec, dim)
        store.write_vectors(connection, space, spec, keys, rows, day=day)
    return block_numbers(connection)


def block_numbers(connection):
    return [row[0] for row in connection.execute("select id from block order by id").fetchall()]


def snapshot(connection):
    query = "select id, space, keys, checks, crc, vectors from block join value on block = id"
    return {row[0]: row for row in connection.execute(query).fetchall()}


@pytest.mark.parametrize(
    ("dim", "spec", "n"), [(320, SPEC, 204), (320, HALF, 409), (1280, SPEC, 51)]
)
def test__write_vectors__fills_blocks_of_256_kb(connection, dim, spec, n):
    assert store.rows_per_block(dim, spec.dtype) == n
    write(connection, range(2 * n + 1), spec, dim)
    blocks = list(store.read_blocks(connection, [1, 2, 3], spec.dtype))
    assert [len(block.keys) for block in blocks] == [n, n, 1]
    assert all(block.vectors[:1].nbytes * n <= 262144 for block in blocks)
    rows = np.concatenate([block.vectors for block in blocks])
    np.testing.assert_array_equal(rows, rows_of(range(2 * n + 1), dim).astype(spec.dtype))
    keys = np.concatenate([block.keys for block in blocks])
    np.testing.assert_array_equal(keys, keys_of(range(2 * n + 1), spec))


def test__rows_per_block__is_at_least_one_and_fits_the_index():
    assert store.rows_per_block(10**6, "float32") == 1
    assert store.rows_per_block(1, "float16") == store.SLOTS


def test__read_blocks__passes_over_what_is_not_there_in_the_order_of_the_file(connection):
    for start in range(40):
        write(connection, range(start, start + 1), dim=2)
    asked = [41, *range(40, 0, -1), 99]
    assert [block.id for block in store.read_blocks(connection, asked)] == list(range(1, 41))


def test__listed__continues_after_a_block(connection, monkeypatch):
    monkeypatch.setattr(store, "_LIST", 2)
    for start in range(5):
        write(connection, range(start, start + 1), [SPEC, CLS][start == 1], dim=2)
    listed = list(store.listed(connection, store.space_of(connection, SPEC), after=1))
    assert [numbers for numbers, _ in listed] == [[3, 4], [5]]
    np.testing.assert_array_equal(listed[1][1][0], keys_of(range(4, 5)))


def test__spaces__are_numbered_once_and_read_back(connection):
    assert store.space_of(connection, SPEC) is None
    numbers = [store.new_space(connection, spec) for spec in (SPEC, CLS, HALF)]
    assert [store.space_of(connection, spec) for spec in (SPEC, CLS, HALF)] == numbers
    found = store.spaces(connection)
    assert found == dict(zip(numbers, (SPEC, CLS, HALF), strict=True))
    assert {spec.model for spec in found.values()} == {"tiny"}


@pytest.mark.parametrize(
    "change", ["layer = 7", "pooling = x'ff'", "dtype = 'float16'", "checkpoint = 5"]
)
def test__spaces__leave_out_a_record_that_contradicts_its_digest(connection, change):
    store.new_space(connection, SPEC)
    store.new_space(connection, CLS)
    connection.execute(f"update space set {change} where id = 1")
    assert store.spaces(connection) == {2: CLS}


def test__intact__for_the_spec_it_was_written_for_alone(connection):
    write(connection, range(5))
    (block,) = store.read_blocks(connection, [1])
    assert block.intact(SPEC).all()
    assert not block.intact(CLS).any()


@pytest.mark.parametrize(
    ("change", "intact"),
    [
        ("update block set crc = crc + 1", [True, True, True]),  # each has its own
        ("update block set crc = 'x'", [True, True, True]),
        ("update block set checks = x'00'", [True, True, True]),
        ("update block set checks = x'00', crc = 0", [False, False, False]),
        ("update value set vectors = x'0000803f0000004000008040'", [True, True, False]),
        ("update value set vectors = x'0000803f00000040'", [False, False, False]),
        ("update value set vectors = x''", [False, False, False]),
        ("update value set vectors = 7", [False, False, False]),
        ("update value set vectors = cast(vectors as text)", [True, True, True]),
        ("update block set keys = substr(keys, 1, 64)", [False, False]),
        ("update block set keys = x'00'", []),
        ("update block set keys = 7", []),
        ("update block set keys = x''", []),
        ("update block set day = 'x'", [True, True, True]),
    ],
)
def test__intact__what_a_change_leaves(connection, change, intact):
    write(connection, range(3), dim=1)  # the vectors 1, 2 and 3
    connection.execute(change)
    (block,) = store.read_blocks(connection, [1])
    assert block.intact(SPEC).tolist() == intact


def test__rewrite_block__leaves_the_others_and_takes_a_new_number(connection):
    write(connection, range(5), day=100)
    write(connection, range(5, 9), day=200)
    before = snapshot(connection)
    with transaction(connection):
        store.rewrite_block(connection, SPEC, 1, without=np.array([1, 3]))
    after = snapshot(connection)
    assert sorted(after) == [2, 3]
    assert after[2] == before[2]
    (block,) = store.read_blocks(connection, [3])
    assert block.day == 100
    assert block.intact(SPEC).all()
    np.testing.assert_array_equal(block.keys, keys_of([0, 2, 4]))
    np.testing.assert_array_equal(block.vectors, rows_of([0, 2, 4]))


def test__rewrite_block__drops_what_is_damaged(connection):
    write(connection, range(3), dim=1)
    connection.execute("update value set vectors = x'0000803f0000004000008040'")
    with transaction(connection):
        store.rewrite_block(connection, SPEC, 1)
    (block,) = store.read_blocks(connection, block_numbers(connection))
    np.testing.assert_array_equal(block.keys, keys_of(range(2)))


def test__rewrite_block__of_which_nothing_is_left_is_deleted(connection):
    write(connection, range(3))
    with transaction(connection):
        store.rewrite_block(connection, SPEC, 1, without=np.arange(3))
        store.rewrite_block(connection, SPEC, 1)  # which another process replaced
    assert snapshot(connection) == {}
    assert connection.execute("select count(*) from value").fetchone() == (0,)


def test__renew__notes_the_day(connection, monkeypatch):
    for start in range(3):
        write(connection, range(start, start + 1), day=100)
    monkeypatch.setattr(store, "today", lambda: 107)
    store.renew(connection, [1, 3])
    days = connection.execute("select day from block order by id").fetchall()
    assert days == [(107,), (100,), (107,)]
    assert connection.execute("pragma busy_timeout").fetchone() == (1000,)


def test__last_block__counts_those_that_have_gone(connection):
    assert store.last_block(connection) == 0
    write(connection, range(3))
    write(connection, range(3, 5))
    with transaction(connection):
        store.delete_blocks(connection, [1, 2])
    assert block_numbers(connection) == []
    assert store.last_block(connection) == 2


def test__write_vectors__today_is_counted_from_1970(connection, monkeypatch):
    monkeypatch.setattr(store.time, "time", lambda: 86400 * 3 + 86399.9)
    write(connection, range(1))
    assert connection.execute("select day from block").fetchall() == [(3,)]


def test__checksums__of_both_libraries_are_the_same():
    isal_zlib = pytest.importorskip("isal.isal_zlib")
    import zlib

    rows = rows_of(range(3))
    assert isal_zlib.crc32(rows.data, 7) == zlib.crc32(rows.data, 7)
