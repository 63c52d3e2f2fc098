"""A cache as a whole: what it holds, what is damaged, and rounding told from error."""

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
    part_of,
    raw,
    rows_of,
)

from esm2_features._cache import Cache
from esm2_features._cache import maintenance as _upkeep
from esm2_features._cache.maintenance import contradicting, describe


def run(cache, action):
    return cache._link.run("read", action)


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


def test__precision_that_this_version_does_not_know__is_no_error(tmp_path):
    filled(tmp_path / "other", range(9), replace(SPEC, precision="float8"))
    cache = Cache(tmp_path / "cache")
    assert cache.import_(tmp_path / "other") == (9, 0, ())
    assert cache.import_(tmp_path / "other") == (0, 9, ())


def test__dtype_that_this_version_does_not_know__is_no_error(tmp_path):
    cache = filled(tmp_path, range(9))
    with raw(cache) as file:
        digest = replace(SPEC, dtype="float8").digest
        file.execute("update space set dtype = 'float8', digest = ?", (digest,))
    assert cache.info().spaces == ()
    assert len(cache.verify().damaged) == 1
    cache.prune()
    assert cache.verify() == (0, ())


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
