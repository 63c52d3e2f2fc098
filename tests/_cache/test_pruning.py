"""Old and damaged vectors go, small blocks are joined, the file shrinks; others get in between."""

from __future__ import annotations

import pytest
from cache_helpers import (
    CLS,
    HALF,
    OTHER,
    POSIX,
    caches_warn,
    filled,
    found,
    keys_by_block,
    part_of,
    raw,
    stored_keys,
)
from full_disk import fill_disk, on_small_disk

from esm2_features._cache import Cache, pruning, vacuum
from esm2_features._cache import blocks as store
from esm2_features._cache.pruning import Pruning

DAY = 86400


def run(cache, action):
    return cache._link.run("written", action)


def test__prune__joins_small_blocks(tmp_path):
    cache = Cache(tmp_path)
    for start in range(0, 400, 4):
        cache._put_many([part_of(range(start, start + 4)), part_of(range(start, start + 2), HALF)])
    reader = Cache(tmp_path)
    assert found(reader, range(400)) == 400
    assert len(keys_by_block(cache)) == 200
    assert cache.prune().rows == 0
    assert len(keys_by_block(cache)) <= 2 * 3
    for one in (cache, reader, Cache(tmp_path)):
        assert found(one, range(400)) == 400
        assert found(one, range(400), HALF) == 200
    assert len(stored_keys(cache)) == len(set(stored_keys(cache))) == 600
    assert cache.verify() == (600, ())


def test__prune__leaves_blocks_that_are_full(tmp_path):
    cache = filled(tmp_path, range(204 * 3))
    blocks = keys_by_block(cache)
    cache.prune()
    assert keys_by_block(cache) == blocks
    cache._put_many([part_of(range(1000, 1003))])
    blocks = keys_by_block(cache)
    cache.prune()
    assert keys_by_block(cache) == blocks  # one alone is joined to nothing


def test__prune__joins_vectors_of_one_width_only(tmp_path):
    cache = Cache(tmp_path)
    for start in range(0, 12, 3):
        cache._put_many([part_of(range(start, start + 3), dim=[8, 16][start % 2])])
    cache.prune()
    assert sorted(map(len, keys_by_block(cache).values())) == [6, 6]
    assert found(cache, range(12), dim=8) == found(cache, range(12), dim=16) == 6


def test__prune__gives_the_room_back(tmp_path):
    cache = filled(tmp_path, range(2000))
    cache._put_many([part_of(range(2000), CLS)])
    before = cache.file.stat().st_size
    with raw(cache) as file:
        file.execute("update value set vectors = 7 where block > 10")
    pruned = cache.prune()
    assert pruned.rows == 2000 * 2 - 204 * 9 - 164
    assert pruned.bytes == before - cache.file.stat().st_size > before / 3


def days_of(cache, monkeypatch, days):
    """Write a block of ten for each day."""
    for number, day in enumerate(days):
        monkeypatch.setattr(store, "today", lambda day=day: 20000 + day)
        cache._put_many([part_of(range(10 * number, 10 * number + 10))])


@pytest.mark.parametrize(("unused_days", "left"), [(0, 10), (1, 20), (9, 20), (10, 30), (99, 30)])
def test__prune__what_was_not_used_for_days_goes(tmp_path, monkeypatch, unused_days, left):
    cache = Cache(tmp_path)
    days_of(cache, monkeypatch, [1000, 1009, 1010])
    assert cache.prune(unused_days=unused_days).rows == 30 - left
    assert found(cache, range(30)) == left
    assert found(cache, range(30 - left, 30)) == left


def test__prune__what_was_used_stays(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    days_of(cache, monkeypatch, [1000, 1001, 1010])
    assert found(cache, range(1)) == 1
    assert cache.prune(unused_days=5).rows == 10
    assert found(cache, range(30)) == 20


def test__prune__what_is_joined_counts_as_used_when_the_last_of_it_was(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    days_of(cache, monkeypatch, [1000, 1009, 1010])
    cache.prune()
    assert len(keys_by_block(cache)) == 1
    assert cache.prune(unused_days=0).rows == 0


def test__prune__to_a_size(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    for day in range(10):
        monkeypatch.setattr(store, "today", lambda day=day: 21000 + day)
        cache._put_many([part_of(range(200 * day, 200 * day + 200))])
    Pruning(lambda action: run(cache, action)).prune(max_bytes=1 << 20)
    assert cache.file.stat().st_size <= 1 << 20
    assert found(cache, range(1800, 2000)) == 200
    assert found(cache, range(200)) == 0


def test__prune__the_limit_of_the_cache_counts(tmp_path):
    filled(tmp_path, range(8000))
    limited = Cache(tmp_path, max_bytes=4 << 20)
    assert limited.prune().rows > 4000
    assert limited.file.stat().st_size <= 4 << 20
    assert limited.prune(max_bytes=8 << 20) == (0, 0)


# Others at the same file --------------------------------------------------------------------


def free_pages(cache):
    with raw(cache) as file:
        return file.execute("pragma freelist_count").fetchone()[0]


def test__prune__with_nothing_to_remove_writes_nothing(tmp_path):
    cache = filled(tmp_path, range(1000))
    before = cache.file.read_bytes()
    cache._link._drop()
    cache._link.busy_seconds = 0.0
    with raw(cache) as file:
        file.execute("begin immediate")  # nobody else may write
        assert cache.prune() == (0, 0)
        assert cache.prune(unused_days=3, max_bytes=1 << 30) == (0, 0)
        file.execute("commit")
    assert cache.file.read_bytes() == before


@pytest.mark.parametrize("options", [{"model": "tiny"}, {"max_bytes": 4 << 20}, {"layer": 6}])
def test__prune__others_read_and_write_between_its_steps(tmp_path, monkeypatch, options):
    cache = filled(tmp_path, range(15_000))
    other = Cache(tmp_path)
    other._link.busy_seconds = 0.0
    turns = []

    def use(start):
        turns.append(start)
        assert found(other, range(14_999, 15_000)) in (0, 1)
        assert other._put_many([part_of([10**6 + len(turns)], OTHER, 8)])

    monkeypatch.setattr(pruning, "pause", use)
    pruned = cache.prune(**options)
    assert len(turns) > 5
    assert 0 < pruned.rows <= 15_000
    assert free_pages(cache) == 0
    assert cache.verify().damaged == ()


def test__prune__counts_what_it_removes_whatever_others_write(tmp_path, monkeypatch):
    cache, other = filled(tmp_path, range(1000)), Cache(tmp_path)
    cache._put_many([part_of(range(10), CLS)])
    numbers = iter(range(5000, 10**6, 2000))

    def use(start):
        start = next(numbers)
        other._put_many([part_of(range(start, start + 2000))])

    monkeypatch.setattr(pruning, "pause", use)
    pruned = cache.prune(pooling="cls")
    assert pruned.rows == 10
    assert pruned.bytes >= 0
    assert cache.info().rows > 3000


def test__prune__leaves_no_free_pages_but_those_that_others_make(tmp_path):
    cache = filled(tmp_path, range(3000))
    cache._put_many([part_of(range(3000), CLS)])
    size = cache.file.stat().st_size
    pruned = cache.prune(pooling="mean")
    assert free_pages(cache) == 0
    assert pruned.bytes == size - cache.file.stat().st_size > 0.4 * size
    assert found(cache, range(3000), CLS) == 3000


def test__prune__that_cannot_go_on_reports_what_it_has_removed(tmp_path, monkeypatch):
    cache = filled(tmp_path, range(30_000))
    cache._link._drop()
    cache._link.busy_seconds = 0.0
    with raw(cache) as file:
        steps = iter(["begin immediate", "commit"])
        monkeypatch.setattr(pruning, "pause", lambda start: file.execute(next(steps)))
        with caches_warn() as messages:
            pruned = cache.prune(model="tiny")
        assert len(messages) == 1
        assert "database is locked" in messages[0]
        assert "Prune again for the rest" in messages[0]
        file.execute("commit")
    assert pruned.rows == 30_000 - cache.info().rows > 0
    assert pruned.bytes == 0
    monkeypatch.undo()
    assert cache.prune(model="tiny").rows == 30_000 - pruned.rows


# Without room -------------------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize(
    ("options", "left"),
    [({"max_bytes": 4 << 20}, 3000), ({"model": "tiny"}, 7), ({"unused_days": 0}, 1507)],
)
def test__prune__makes_room_on_a_full_disk(tmp_path, monkeypatch, options, left):
    cache = Cache(tmp_path / "disk" / "cache")
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path / "disk"))

    def work():
        cache._put_many([part_of(range(0, 8000, 2)), part_of(range(1, 3000, 2))])
        cache._put_many([part_of(range(7), OTHER, 8)])
        with raw(cache) as file:
            file.execute("update block set day = day - 10 where id <= 20")
        size = cache.file.stat().st_size
        fill_disk(tmp_path / "disk")
        pruned = cache.prune(**options)
        assert pruned.rows == 5507 - cache.info().rows > 0
        assert pruned.bytes == size - cache.file.stat().st_size > 0
        assert cache.info().rows <= left
        assert free_pages(cache) == 0
        assert cache.verify().damaged == ()
        assert cache._link.run("read", journal_mode) == b"delete"
        assert cache._put_many([part_of(range(20_000, 20_010))])

    on_small_disk(tmp_path / "disk", 12 << 20, work)


@POSIX
@pytest.mark.parametrize("earlier", [False, True])
def test__clear__makes_room_on_a_full_disk(tmp_path, monkeypatch, earlier):
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path / "disk"))

    def work():
        cache = filled(tmp_path / "disk" / "cache", range(5000))
        if earlier:
            as_before(cache)
        reader = Cache(cache.path)
        assert found(reader, range(5000)) == 5000
        last = max(keys_by_block(cache))
        fill_disk(tmp_path / "disk")
        assert cache.clear() == 5000
        assert cache.file.stat().st_size < 1 << 20
        assert found(reader, range(5000)) == 0
        assert cache._link.run("read", journal_mode) == b"delete"
        assert reader._put_many([part_of(range(5))])
        assert found(cache, range(5000)) == 5
        assert min(keys_by_block(cache)) > last

    on_small_disk(tmp_path / "disk", 24 << 20, work)


def journal_mode(connection):
    return connection.execute("pragma journal_mode").fetchone()[0]


def as_before(cache):
    """Turn the file into one of an earlier version, which cannot shrink in steps."""
    with raw(cache) as file:
        file.execute("pragma auto_vacuum = 0")
        file.execute("vacuum")
        assert file.execute("pragma auto_vacuum").fetchone() == (0,)


@POSIX
@pytest.mark.parametrize("full", [False, True])
def test__prune__a_file_of_an_earlier_version_becomes_smaller(tmp_path, full):
    def work():
        cache = filled(tmp_path / "disk" / "cache", range(4000))
        as_before(cache)
        assert cache.prune() == (0, 0)
        if full:
            fill_disk(tmp_path / "disk")
        pruned = cache.prune(max_bytes=4 << 20)
        assert pruned.rows == 4000 - cache.info().rows
        assert pruned.bytes > 500_000
        assert cache.file.stat().st_size <= 4 << 20
        assert found(cache, range(4000)) == cache.info().rows > 2500
        with raw(cache) as file:
            assert file.execute("pragma auto_vacuum").fetchone() == (2,)
        assert cache.verify().damaged == ()

    on_small_disk(tmp_path / "disk", 24 << 20, work)


@POSIX
def test__prune__a_file_of_an_earlier_version_without_room_for_a_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(vacuum, "_IN_MEMORY", 0)  # as if it were large

    def work():
        cache = filled(tmp_path / "disk" / "cache", range(4000))
        as_before(cache)
        size = cache.file.stat().st_size
        fill_disk(tmp_path / "disk")
        with caches_warn() as messages:
            pruned = cache.prune(max_bytes=4 << 20)
        assert len(messages) == 1
        assert "keeps its size" in messages[0]
        assert pruned == (4000 - cache.info().rows, 0)
        assert pruned.rows > 500
        (tmp_path / "disk" / "pad1").unlink()
        (tmp_path / "disk" / "pad65536").unlink()
        filled(cache.path, range(4000, 4000 + pruned.rows))
        assert cache.info().rows == 4000
        assert cache.file.stat().st_size <= size

    on_small_disk(tmp_path / "disk", 24 << 20, work)


def test__prune__a_file_of_an_earlier_version_is_left_as_it_is_for_little(tmp_path):
    cache = filled(tmp_path, range(4000))
    as_before(cache)
    with raw(cache) as file:
        file.execute("update value set vectors = 7 where block = 1")
    assert cache.prune() == (204, 0)
    with raw(cache) as file:
        assert file.execute("pragma auto_vacuum").fetchone() == (0,)


# Indexes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", ["block_of_day", "block_of_space"])
@pytest.mark.parametrize("change", ["insert", "delete"])
def test__prune__an_index_that_is_wrong_is_made_anew(tmp_path, index, change):
    cache = filled(tmp_path, range(500))
    without_index(
        cache,
        index,
        {
            "insert": "insert into block select id + 10, space, day - 9, keys, checks, crc "
            "from block where id = 1",
            "delete": "delete from block where id = 1",
        }[change],
    )
    with raw(cache) as file:
        if change == "insert":
            file.execute("insert into value select block + 10, vectors from value where block = 1")
    cache._link._drop()
    assert any("structure" in sentence for sentence in cache.verify().damaged)
    cache.prune()
    assert cache.verify().damaged == ()
    assert cache.info().rows == (704 if change == "insert" else 296)
    assert found(cache, range(500)) == (500 if change == "insert" else 296)


def without_index(cache, index, change):
    """Change blocks, and let an index not know of it."""
    with raw(cache) as file:
        row = file.execute("select * from sqlite_master where name = ?", (index,)).fetchone()
        file.execute("pragma writable_schema = on")
        file.execute("delete from sqlite_master where name = ?", (index,))
    with raw(cache) as file:
        file.execute(change)
        file.execute("pragma writable_schema = on")
        file.execute("insert into sqlite_master values(?, ?, ?, ?, ?)", row)
