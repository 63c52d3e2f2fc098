"""A cache as a whole: old vectors go, small blocks are joined, rounding is told from error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cache_helpers import (
    CLS,
    DIM,
    HALF,
    OTHER,
    SPEC,
    filled,
    flip,
    found,
    keys_by_block,
    part_of,
    raw,
    rows_of,
    stored_keys,
)

from esm2_features._cache import Cache
from esm2_features._cache import blocks as store
from esm2_features._cache import maintenance as _upkeep
from esm2_features._cache.maintenance import contradicting, describe
from esm2_features._cache.pruning import Pruning


def run(cache, action):
    return cache._link.run("read", action)


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


def test__count__of_an_empty_file(tmp_path):
    cache = Cache(tmp_path)
    cache.file.touch()
    assert run(cache, _upkeep.count) == ()
    assert cache.verify() == (0, ())


def test__count__goes_on_where_records_are_damaged(tmp_path):
    cache = filled(tmp_path, range(20))
    cache._put_many([part_of(range(5), CLS)])
    with raw(cache) as file:
        file.execute("update block set keys = 7, checks = 'x' where id = 1")
    assert cache.info().rows <= 6
    assert cache.verify().rows == 5
    cache.prune()
    assert cache.verify() == (5, ())
    assert cache.info().rows == 5


def test__check__of_values_without_blocks_and_blocks_without_values(tmp_path):
    cache = filled(tmp_path, range(20))
    cache._put_many([part_of(range(5), CLS), part_of(range(3), OTHER, 8)])
    with raw(cache) as file:
        file.execute("delete from value where block = 1")
        file.execute("delete from block where id = 2")
    check = cache.verify()
    assert check.rows == 3
    assert check.damaged == ("2 blocks of vectors whose model or content is unreadable.",)
    cache.prune()
    assert cache.verify() == (3, ())
    with raw(cache) as file:
        assert file.execute("select count(*) from value").fetchone() == (1,)


def test__contents__of_one_model_in_order(tmp_path):
    cache = filled(tmp_path, range(3))
    early = replace(SPEC, layer=1)
    for spec in (CLS, early, OTHER):
        cache._put_many([part_of(range(2), spec)])
    specs = [spec for spec, _ in run(cache, _upkeep.contents)]
    assert specs == [OTHER, early, CLS, SPEC]
    for model in ("tiny", "sha256:46f0"):
        contents = run(
            cache, lambda connection, model=model: _upkeep.contents(connection, model=model)
        )
        assert contents == [(early, [3]), (CLS, [2]), (SPEC, [1])]


def test__read_parts__counts_what_is_damaged(tmp_path):
    cache = filled(tmp_path, range(10), HALF)
    flip(cache, "value", "vectors", place=DIM * 2 * 4)
    parts, damaged = run(cache, lambda connection: _upkeep.read_parts(connection, HALF, [1, 99]))
    assert damaged == 1
    (part,) = parts
    assert part.rows.dtype == np.float32
    intact = [0, 1, 2, 3, 5, 6, 7, 8, 9]
    np.testing.assert_array_equal(part.rows, rows_of(intact).astype(np.float16))


@pytest.mark.parametrize(
    ("spec", "difference", "contradicts"),
    [
        (SPEC, 5e-5, False),
        (SPEC, 1e-3, True),
        (HALF, 5e-3, False),
        (HALF, 1e-1, True),
        (replace(SPEC, precision="bfloat16"), 2e-2, False),
        (replace(SPEC, precision="bfloat16"), 5e-1, True),
        (replace(SPEC, precision="bfloat16", dtype="float16"), 2e-2, False),
    ],
)
def test__contradicting__by_precision_and_what_it_is_kept_in(spec, difference, contradicts):
    rows = np.random.default_rng(0).uniform(-0.5, 0.5, (4, DIM)).astype(np.float32)
    others = rows.copy()
    others[2, 100] += np.float32(difference)
    assert contradicting(spec, rows, others).tolist() == [False, False, contradicts, False]
    assert contradicting(spec, others, rows).tolist() == [False, False, contradicts, False]


def test__contradicting__grows_with_the_vector():
    rows = 1000 * np.random.default_rng(0).uniform(-1, 1, (1, DIM)).astype(np.float32)
    assert not contradicting(SPEC, rows, rows + np.float32(0.01)).any()
    assert contradicting(SPEC, rows, rows + np.float32(1)).all()


def test__describe__says_what_is_not_usual():
    assert describe(SPEC) == "tiny, layer 6, mean, float32"
    assert describe(replace(HALF, model="")) == (
        "sha256:46f0, layer 6, mean, float32, kept in float16"
    )
