"""Room is made by what was not used for longest, and by no more than is needed."""

from __future__ import annotations

import pytest
from cache_helpers import SPEC, part_of

from esm2_features._cache import blocks as store
from esm2_features._cache import eviction
from esm2_features._cache.file import open_file, transaction

DAY = 20500  # in 2026


@pytest.fixture
def connection(tmp_path):
    file = tmp_path / "embeddings.sqlite3"
    file.touch()
    connection = open_file(file, 1.0)
    yield connection
    connection.close()


def block_numbers(connection):
    return [row[0] for row in connection.execute("select id from block order by id").fetchall()]


def test__make_room__longest_unused_goes_first_and_no_more_than_needed(connection, monkeypatch):
    space = store.new_space(connection, SPEC)
    for start, day in ((0, 30), (200, 10), (400, 40), (600, 20)):
        _, keys, rows = part_of(range(start, start + 200))
        store.write_vectors(connection, space, SPEC, keys, rows, day=DAY + day)
    used = eviction.used_bytes(connection)
    monkeypatch.setattr(store, "today", lambda: DAY + 40)
    with transaction(connection):
        assert eviction.make_room(connection, used) == (0, 0, 0)
        assert eviction.make_room(connection, used - 1) == (1, 200, 0)
        assert block_numbers(connection) == [1, 3, 4]
        assert eviction.make_room(connection, used, needed=300_000) == (1, 200, 0)
        assert block_numbers(connection) == [1, 3]
        assert eviction.make_room(connection, 0, most=1) == (1, 200, 0)
        assert eviction.make_room(connection, 0) == (1, 200, 200)  # were used today
        assert block_numbers(connection) == []
        assert eviction.make_room(connection, 0) == (0, 0, 0)
    assert eviction.used_bytes(connection) < used / 2
