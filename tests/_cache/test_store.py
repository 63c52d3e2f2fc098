"""Vectors in the file: found by their keys as often as they are asked for, kept once."""

from __future__ import annotations

import time

import numpy as np
import pytest
from cache_helpers import (
    CLS,
    DIM,
    HALF,
    OTHER,
    SPEC,
    caches_warn,
    filled,
    flip,
    found,
    keys_by_block,
    keys_of,
    part_of,
    raw,
    rows_of,
    stored_keys,
)

from esm2_features._cache import Cache
from esm2_features._cache import blocks as store
from esm2_features._cache.keys import KeyedVectors
from esm2_features.exceptions import CacheWarning


def read(cache, keys, dim=DIM, spec=SPEC):
    out = np.zeros((len(keys), dim), np.float32)
    return out, cache._get_many(spec, keys, out)


def contents(cache):
    """All bytes of each block."""
    with raw(cache) as file:
        query = "select id, space, keys, checks, crc, vectors from block join value on block = id"
        return {row[0]: row for row in file.execute(query).fetchall()}


# Each once, the last one --------------------------------------------------------------------


def test_the_last_row_of_a_key_stays(tmp_path):
    cache, keys = Cache(tmp_path), keys_of(range(3))
    cache._put_many([KeyedVectors(SPEC, keys[[0, 1, 0]], np.float32([[1], [2], [3]]))])
    assert read(cache, keys[:2], 1)[0].tolist() == [[3], [2]]
    cache._put_many([KeyedVectors(SPEC, keys[1:2], np.float32([[4]]))])
    assert read(cache, keys[:2], 1)[0].tolist() == [[3], [4]]
    parts = [KeyedVectors(SPEC, keys[:1], np.float32([[row]])) for row in (5, 6)]
    cache._put_many(parts)
    assert read(cache, keys[:2], 1)[0].tolist() == [[6], [4]]
    assert cache.info().rows == 2


def test_each_key_is_in_the_file_once_however_often_it_was_written(tmp_path):
    caches = [Cache(tmp_path) for _ in range(3)]
    rng = np.random.default_rng(0)
    latest = {}
    for turn in range(30):
        numbers = rng.integers(0, 60, 25)
        rows = np.float32(turn) + np.arange(25, dtype=np.float32)[:, None] / 32
        caches[turn % 3]._put_many([KeyedVectors(SPEC, keys_of(numbers), rows)])
        latest |= dict(zip(numbers.tolist(), rows[:, 0].tolist(), strict=True))
    keys = stored_keys(caches[0])
    assert len(keys) == len(set(keys)) == len(latest) == caches[0].info().rows
    for cache in caches:
        out, hit = read(cache, keys_of(latest), 1)
        assert hit.all()
        assert out[:, 0].tolist() == list(latest.values())


def test_what_is_in_a_block_never_changes(tmp_path):
    cache, seen = Cache(tmp_path), {}
    for start in (0, 30, 10, 35, 0):
        cache._put_many([part_of(range(start, start + 20)), part_of(range(start, start + 5), CLS)])
        found(cache, range(60))
        for number, block in contents(cache).items():
            assert seen.setdefault(number, block) == block
    assert len(seen) > len(contents(cache))


@pytest.mark.parametrize("asked", [[0, 0, 1], [1, 1, 1], [2, 1, 0], [0, 2, 1, 2], [2]])
def test_keys_that_repeat_have_their_own_rows(tmp_path, asked):
    out, hit = read(filled(tmp_path, range(3)), keys_of(asked))
    assert hit.all()
    np.testing.assert_array_equal(out, rows_of(asked))


def test_a_write_over_part_of_a_block_keeps_the_rest_of_it(tmp_path):
    cache = filled(tmp_path, range(10))
    cache._put_many([KeyedVectors(SPEC, keys_of(range(3, 5)), np.zeros((2, DIM), np.float32))])
    out, hit = read(cache, keys_of(range(10)))
    expected = rows_of(range(10))
    expected[3:5] = 0
    assert hit.all()
    np.testing.assert_array_equal(out, expected)
    assert sorted(map(len, keys_by_block(cache).values())) == [2, 8]


def test_keys_of_equal_beginnings_are_misses_at_worst(tmp_path):
    keys = keys_of(range(4)).copy()
    keys[1, :8] = keys[0, :8]
    cache = Cache(tmp_path)
    cache._put_many([KeyedVectors(SPEC, keys[:1], rows_of(range(1)))])
    assert read(cache, keys[1:2])[1].tolist() == [False]
    cache._put_many([KeyedVectors(SPEC, keys[1:], rows_of(range(1, 4)))])
    for reader in (cache, Cache(tmp_path)):
        out, hit = read(reader, keys)
        assert hit.tolist() == [False, True, True, True]
        np.testing.assert_array_equal(out[1:], rows_of(range(1, 4)))
    cache._put_many([KeyedVectors(SPEC, keys[:1], rows_of(range(1)))])
    out, hit = read(cache, keys)
    assert hit.tolist() == [True, False, True, True]
    np.testing.assert_array_equal(out[hit], rows_of(range(4))[hit])


# Widths and kinds ---------------------------------------------------------------------------


def test_a_row_may_change_its_width(tmp_path):
    cache = filled(tmp_path, range(3), dim=8)
    assert found(cache, range(3), dim=16) == 0  # a miss, and no warning: nothing is damaged
    cache._put_many([part_of(range(3), dim=16)])
    assert found(cache, range(3), dim=16) == 3
    assert found(cache, range(3), dim=8) == 0
    assert cache.info().rows == 3


def test_float16_comes_back_as_it_was_rounded(tmp_path):
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((50, DIM)) * 10.0 ** rng.integers(-6, 4, (50, DIM))).astype("f4")
    cache = Cache(tmp_path)
    cache._put_many([KeyedVectors(HALF, keys_of(range(50), HALF), rows)])
    for reader in (cache, Cache(tmp_path)):
        out, hit = read(reader, keys_of(range(50), HALF), spec=HALF)
        assert hit.all()
        assert out.tobytes() == rows.astype(np.float16).astype(np.float32).tobytes()


def test_float16_takes_half_the_room(tmp_path):
    sizes = [
        filled(tmp_path / spec.dtype, range(1000), spec).info().spaces[0].bytes
        for spec in (SPEC, HALF)
    ]
    assert sizes == [1000 * (DIM * 4 + 36), 1000 * (DIM * 2 + 36)]


def test_specs_do_not_share_vectors(tmp_path):
    cache = filled(tmp_path, range(5))
    for spec in (HALF, CLS, OTHER):
        assert found(cache, range(5), spec) == 0
        assert not read(cache, keys_of(range(5)), spec=spec)[1].any()  # nor by another's keys
    cache._put_many([part_of(range(5), HALF), part_of(range(5), OTHER, 8)])
    assert found(cache, range(5)) == found(cache, range(5), HALF) == 5
    assert found(cache, range(5), OTHER, 8) == 5
    assert cache.info().rows == 15


# Damage -------------------------------------------------------------------------------------


def test_a_damaged_value_is_a_miss_warned_of_once_and_healed_by_writing(tmp_path):
    cache = Cache(tmp_path)
    for number in range(0, 10, 2):
        cache._put_many([part_of(range(number, number + 2))])
    with raw(cache) as file:
        damage = "update value set vectors = ? where block = ?"
        values = [value for (value,) in file.execute("select vectors from value order by block")]
        row = DIM * 4
        file.execute(damage, (values[0][:row] + values[2][row:], 2))  # intact, of other keys
        file.execute(damage, (values[2][:-4], 3))
        file.execute(damage, (7, 4))  # no blob
        file.execute("update value set vectors = cast(x'ff80' as text) where block = 5")
    with caches_warn() as caught:
        assert found(cache, range(10)) == 2
        assert found(cache, range(10)) == 2
    (message,) = caught
    assert f"The cache {cache.file} holds damaged vectors" in message
    cache._put_many([part_of(range(10))])
    assert found(cache, range(10)) == 10
    assert cache.verify() == (10, ())
    assert cache.info().rows == 10


def test_of_a_damaged_block_the_other_vectors_are_found_and_move(tmp_path):
    cache = filled(tmp_path, range(10))
    flip(cache, "value", "vectors", place=DIM * 4 * 3 + 17)
    with pytest.warns(CacheWarning, match="holds damaged vectors"):
        assert found(cache, range(10)) == 9
    assert cache.verify() == (9, ())
    assert found(Cache(tmp_path), range(10)) == 9
    cache._put_many([part_of(range(3, 4))])
    assert found(cache, range(10)) == 10


def test_damage_beside_what_is_asked_for_is_warned_of_too(tmp_path):
    cache = filled(tmp_path, range(10))
    flip(cache, "value", "vectors")
    with pytest.warns(CacheWarning, match="holds damaged vectors"):
        assert found(cache, range(5, 10)) == 5


def test_a_row_moved_under_another_key_is_a_miss(tmp_path):
    cache = filled(tmp_path, range(4))
    keys = keys_of(range(4))
    with raw(cache) as file:
        file.execute("update block set keys = ?", (keys[[1, 0, 2, 3]].tobytes(),))
    with pytest.warns(CacheWarning, match="damaged vectors"):
        assert found(cache, range(4)) == 2


def test_a_key_that_changed_is_a_miss_and_so_is_what_it_changed_to(tmp_path):
    cache = filled(tmp_path, range(2))
    keys = keys_of(range(9))
    with raw(cache) as file:
        file.execute("update block set keys = ?", (keys[[0, 8]].tobytes(),))
    with pytest.warns(CacheWarning, match="damaged vectors"):
        assert found(cache, range(9)) == 1


def test_rows_moved_to_another_space_are_misses(tmp_path):
    cache = filled(tmp_path, range(3))
    cache._put_many([part_of(range(5, 8), CLS)])
    with raw(cache) as file:
        file.execute("update block set space = 3 - space")
    keys = keys_of(range(3)), keys_of(range(5, 8), CLS)
    with pytest.warns(CacheWarning, match="damaged vectors"):
        assert not read(cache, keys[0], spec=CLS)[1].any()
    assert not read(cache, keys[1], spec=SPEC)[1].any()
    assert found(cache, range(3)) == found(cache, range(8), CLS) == 0


def test_a_space_that_took_the_digest_of_another_gives_nothing(tmp_path):
    cache = filled(tmp_path, range(3))
    with raw(cache) as file:
        file.execute("update space set digest = ?", (CLS.digest,))
    with pytest.warns(CacheWarning, match="damaged vectors"):
        assert not read(cache, keys_of(range(3)), spec=CLS)[1].any()


@pytest.mark.parametrize("keys", ["x'00'", "7", "x''", "'text'"])
def test_a_block_whose_keys_are_unreadable_is_passed_over(tmp_path, keys):
    cache = filled(tmp_path, range(3))
    with raw(cache) as file:
        file.execute(f"update block set keys = {keys}")
    assert found(cache, range(3)) == 0
    cache._put_many([part_of(range(3))])
    assert found(cache, range(3)) == 3


@pytest.mark.parametrize("number", ["null", "'text'", "x'ff'", "-1", "1e300"])
def test_a_damaged_count_of_blocks_makes_misses_at_worst(tmp_path, number):
    cache = filled(tmp_path, range(3))
    with raw(cache) as file:
        file.execute(f"update sqlite_sequence set seq = {number}")
    with caches_warn():
        found(cache, range(3))
        cache._put_many([part_of(range(3))])
        found(cache, range(3))


# A file that others change ------------------------------------------------------------------


def test_what_others_write_is_found_without_reading_the_index_anew(tmp_path):
    cache, other = filled(tmp_path, range(5)), Cache(tmp_path)
    assert found(cache, range(10)) == 5
    other._put_many([part_of(range(3, 10))])
    assert found(cache, range(10)) == 10
    cache._put_many([part_of(range(8, 12))])
    assert found(other, range(12)) == 12


@pytest.mark.parametrize("blocks", [1, 6])
def test_a_file_that_was_replaced_is_found_as_it_is_now(tmp_path, blocks):
    cache = Cache(tmp_path / "here")
    for number in range(3):
        cache._put_many([part_of(range(10 * number, 10 * number + 10))])
    assert found(cache, range(30)) == 30
    other = Cache(tmp_path / "there")
    for number in reversed(range(blocks)):
        other._put_many([part_of(range(10 * number, 10 * number + 10))])
    other.file.replace(cache.file)
    assert found(cache, range(60)) == 10 * blocks
    cache._put_many([part_of(range(60))])
    assert found(cache, range(60)) == 60
    assert len(stored_keys(cache)) == 60


@pytest.mark.parametrize("blocks", [1, 3, 6])
def test_a_file_that_was_emptied_and_filled_by_others_is_found_as_it_is_now(tmp_path, blocks):
    cache, other = Cache(tmp_path), Cache(tmp_path)
    for number in range(3):
        cache._put_many([part_of(range(10 * number, 10 * number + 10))])
    assert found(cache, range(30)) == 30
    cache.file.write_bytes(b"")
    for number in reversed(range(blocks)):
        other._put_many([part_of(range(10 * number, 10 * number + 10))])
    assert found(cache, range(60)) == 10 * blocks
    cache._put_many([part_of(range(60))])
    assert found(cache, range(60)) == 60
    assert len(stored_keys(cache)) == 60


@pytest.mark.parametrize("emptied", [Cache.clear, lambda cache: cache.prune(model=SPEC.checkpoint)])
def test_a_cache_that_another_process_emptied_is_found_as_it_is_now(tmp_path, emptied):
    cache, other = filled(tmp_path, range(10)), Cache(tmp_path)
    assert found(cache, range(10)) == 10
    emptied(other)
    assert found(cache, range(10)) == 0
    other._put_many([part_of(range(5))])
    assert found(cache, range(10)) == 5
    cache._put_many([part_of(range(10))])
    assert found(other, range(10)) == 10
    assert len(stored_keys(cache)) == 10


def test_what_was_not_written_after_all_is_not_remembered(tmp_path, monkeypatch):
    cache = filled(tmp_path, range(5))
    cache._link.rest_seconds = 0.0

    written, write_vectors = [], store.write_vectors

    def full(*args, **kwargs):
        write_vectors(*args, **kwargs)
        written.append(args)
        if len(written) == 2:  # when the first part is in the index, to be looked through
            raise OSError("disk full")

    monkeypatch.setattr(store, "write_vectors", full)
    with pytest.warns(CacheWarning, match="could not be written: disk full"):
        cache._put_many([part_of(range(10, 20)), part_of(range(20, 30))])
    monkeypatch.undo()
    Cache(tmp_path)._put_many([part_of(range(5, 10))])  # whose block has the number of the first
    assert found(cache, range(30)) == 10
    cache._put_many([part_of(range(30))])
    assert found(cache, range(30)) == 30


# Use ----------------------------------------------------------------------------------------


def test_use_is_noted_by_the_day(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "today", lambda: 21000)
    cache = Cache(tmp_path)
    for number in range(3):
        cache._put_many([part_of(range(number, number + 1))])
    monkeypatch.setattr(store, "today", lambda: 21001)
    assert found(cache, range(2)) == 2
    with raw(cache) as file:
        days = "select day from block order by id"
        assert file.execute(days).fetchall() == [(21001,), (21001,), (21000,)]
        version = file.execute("pragma data_version").fetchone()
        assert found(cache, range(2)) == 2
        assert file.execute("pragma data_version").fetchone() == version  # no second write


def test_use_is_noted_without_waiting(tmp_path, monkeypatch):
    cache = filled(tmp_path, range(3))
    cache._link.busy_seconds = 3600.0
    with raw(cache) as file:
        file.execute("update block set day = 0")
        file.execute("begin immediate")  # keeps others from writing, not from reading
        assert found(cache, range(3)) == 3
        file.execute("commit")
        assert found(cache, range(3)) == 3
        assert file.execute("select count(*) from block where day = 0").fetchone() == (0,)


def test_healing_waits_for_no_more_than_it_may(tmp_path):
    cache = filled(tmp_path, range(3))
    flip(cache, "value", "vectors")
    cache._link._drop()
    cache._link.busy_seconds = 0.0
    with raw(cache) as file:
        file.execute("begin immediate")
        with pytest.warns(CacheWarning, match="damaged vectors"):
            assert found(cache, range(3)) == 2
        file.execute("commit")
    assert found(cache, range(3)) == 2
    assert cache.verify() == (2, ())


# Limits -------------------------------------------------------------------------------------


def test_max_bytes_is_not_exceeded(tmp_path):
    limit = 5 << 20
    cache = Cache(tmp_path, max_bytes=limit)
    largest = 0
    for number in range(40):
        spec = [SPEC, CLS, HALF][number % 3]
        numbers = range(number * 300, number * 300 + 300)
        with caches_warn():  # that all this is used in a day
            cache._put_many([part_of(numbers, spec)])
        assert found(cache, numbers, spec) == 300
        largest = max(largest, cache.file.stat().st_size)
    assert 0.8 * limit < largest <= limit
    assert cache.verify().damaged == ()


def test_one_write_of_more_than_max_bytes_keeps_the_last(tmp_path):
    with caches_warn() as messages:
        cache = filled(tmp_path, range(8000), max_bytes=4 << 20)
    assert len(messages) == 1
    assert "which is less than what is used in a day" in messages[0]
    assert cache.file.stat().st_size <= 4 << 20
    assert found(cache, range(7800, 8000)) == 200
    assert 2000 < found(cache, range(8000)) < 4000


def test_what_was_not_used_for_longest_makes_room(tmp_path, monkeypatch):
    cache = Cache(tmp_path, max_bytes=4 << 20)
    for day in range(12):
        monkeypatch.setattr(store, "today", lambda day=day: 21000 + day)
        cache._put_many([part_of(range(200 * day, 200 * day + 200))])
    assert found(cache, range(2400)) == 2400
    monkeypatch.undo()
    with raw(cache) as file:
        file.execute("update block set day = 21000 + id")
    monkeypatch.setattr(store, "today", lambda: 21020)
    assert found(cache, range(200)) == 200  # the oldest is used
    cache._put_many([part_of(range(5000, 5800))])
    assert found(cache, range(200)) == 200
    assert found(cache, range(200, 600)) == 0
    assert found(cache, range(2200, 2400)) == 200
    assert found(cache, range(5000, 5800)) == 800


@pytest.mark.parametrize("earlier", [False, True])
def test_a_limit_that_was_lowered_holds_after_the_next_write(tmp_path, earlier):
    cache = filled(tmp_path, range(40_000))
    if earlier:
        with raw(cache) as file:
            file.execute("pragma auto_vacuum = 0")
            file.execute("vacuum")
    limited = Cache(tmp_path, max_bytes=16 << 20)
    with caches_warn():
        limited._put_many([part_of(range(50_000, 50_010))])
    assert 12 << 20 < cache.file.stat().st_size <= 16 << 20
    assert found(limited, range(50_000, 50_010)) == 10
    assert found(cache, range(39_000, 40_000)) == 1000
    assert cache.verify().damaged == ()


def test_imports_keep_to_the_limit(tmp_path):
    filled(tmp_path / "a", range(8000))
    limited = Cache(tmp_path / "b", max_bytes=4 << 20)
    with caches_warn():
        limited.import_(tmp_path / "a")
    assert limited.file.stat().st_size <= 4 << 20


def test_the_index_forgets_what_has_gone(tmp_path, monkeypatch):
    monkeypatch.setattr("esm2_features._cache.store._FEW", 1000)
    cache = Cache(tmp_path, max_bytes=4 << 20)
    cache._put_many([part_of(range(100), HALF)])
    with caches_warn():
        for start in range(0, 30_000, 1000):
            cache._put_many([part_of(range(start, start + 1000))])
            held = sum(map(len, cache._vectors._indexes.values()))
            assert held <= 2 * cache.info().rows + 3000
    rows = cache.info().rows
    assert found(cache, range(30_000)) == rows > 2000
    assert found(cache, range(100), HALF) == 0
    other = Cache(tmp_path)
    other.clear()
    other._put_many([part_of(range(5))])
    assert found(cache, range(30_000)) == 5


# Clocks -------------------------------------------------------------------------------------

YEARS = 3650 * 86400.0


@pytest.fixture
def clock(monkeypatch):
    """Set the clock to so many seconds from now, or to a time."""
    now = time.time()

    def turn(to):
        monkeypatch.setattr("time.time", lambda: now + to if to > -1e9 else 0.0)

    return turn


ZERO = -1e10  # 1970


def days(cache):
    with raw(cache) as file:
        return [day for (day,) in file.execute("select day from block order by id").fetchall()]


@pytest.mark.parametrize("wrong", [YEARS, ZERO])
def test_vectors_of_a_wrong_clock_age_from_when_it_is_right(tmp_path, clock, wrong):
    cache = Cache(tmp_path)
    clock(wrong)
    cache._put_many([part_of(range(10))])
    clock(0)
    assert cache.prune(unused_days=0).rows == 0  # counts as used today
    today = store.today()
    assert days(cache) == [today]
    clock(2 * 86400)
    assert cache.prune(unused_days=2).rows == 0
    assert cache.prune(unused_days=1).rows == 10


@pytest.mark.parametrize("wrong", [YEARS, ZERO])
def test_to_use_vectors_of_a_wrong_clock_notes_the_day(tmp_path, clock, wrong):
    cache = Cache(tmp_path)
    clock(wrong)
    cache._put_many([part_of(range(10))])
    clock(0)
    assert found(cache, range(10)) == 10
    assert days(cache) == [store.today()]


def test_a_day_that_has_begun_elsewhere_is_left(tmp_path, clock):
    cache = Cache(tmp_path)
    clock(86400)
    cache._put_many([part_of(range(10))])
    tomorrow = days(cache)
    clock(0)
    assert found(cache, range(10)) == 10
    cache.prune(unused_days=0)
    assert days(cache) == tomorrow


def test_a_process_whose_clock_is_wrong_changes_no_days_and_removes_none_by_age(tmp_path, clock):
    cache = filled(tmp_path, range(200))
    before = days(cache)
    clock(ZERO)
    assert found(cache, range(200)) == 200
    with caches_warn() as messages:
        assert cache.prune(unused_days=0) == (0, 0)
    assert len(messages) == 1
    assert "the clock of this machine says" in messages[0]
    assert days(cache) == before


@pytest.mark.parametrize("wrong", [YEARS, ZERO])
def test_room_is_made_in_the_order_of_use_whatever_the_clock_says(tmp_path, clock, wrong):
    cache = Cache(tmp_path, max_bytes=8 << 20)
    for now, start in ((-5 * 86400, 0), (wrong, 1000), (0, 2000)):
        clock(now)
        cache._put_many([part_of(range(start, start + 1000))])
    cache._put_many([part_of(range(3000, 6500))])
    assert found(cache, range(1000)) < 800
    assert found(cache, range(1000, 6500)) == 5500
    clock(wrong)
    with caches_warn():
        cache._put_many([part_of(range(7000, 8000))])
    clock(0)
    with caches_warn():
        cache._put_many([part_of(range(8000, 9000))])
    assert found(cache, range(7000, 9000)) == 2000
    assert cache.file.stat().st_size <= 8 << 20
