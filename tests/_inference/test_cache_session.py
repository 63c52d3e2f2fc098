"""What a run is told of the cache is what is there, whatever it asks for and in whichever order."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from cache_helpers import caches_warn, filled, raw
from hypothesis import given
from hypothesis import strategies as st

from esm2_features import Cache
from esm2_features._cache.claims import Claims
from esm2_features._cache.keys import KeyedVectors, Spec, computation_keys
from esm2_features._inference.cache_session import CacheSession

N, DIM = 6, 4
SEQUENCES = ["A" * (n + 1) for n in range(N)]
SPECS = [Spec("sha256:00", 6, pooling, "float32") for pooling in ("mean", "max")]
ROWS = np.random.default_rng(0).standard_normal((N, 2, DIM)).astype(np.float32)
UNFILLED = np.float32(-1.0)


def session(cache):
    rows = np.full((N, 2, DIM), UNFILLED)
    return CacheSession(cache, SEQUENCES, wanted=SPECS, stored=SPECS, rows=rows), rows


def put(cache, which, column):
    spec = SPECS[column]
    keys = spec.keys([SEQUENCES[i] for i in which])
    cache._put_many([KeyedVectors(spec, keys, ROWS[list(which), column])])


@given(
    mean=st.sets(st.integers(0, N - 1)),
    maximum=st.sets(st.integers(0, N - 1)),
    asked=st.permutations(range(N)),
    n=st.integers(0, N),
)
def test__read__tells_what_is_missing_in_any_order(tmp_path_factory, mean, maximum, asked, n):
    cache = Cache(tmp_path_factory.mktemp("cache"))
    put(cache, sorted(mean), 0)
    put(cache, sorted(maximum), 1)
    one, rows = session(cache)
    asked = asked[:n]
    assert one.read(asked) == [i for i in asked if i not in mean & maximum]
    for i in set(asked) & mean & maximum:
        np.testing.assert_array_equal(rows[i], ROWS[i])
    for i in set(range(N)).difference(asked):
        assert (rows[i] == UNFILLED).all()


def test__claim__others_and_what_they_have_done_meanwhile(tmp_path):
    one, rows = session(Cache(tmp_path))
    keys = computation_keys("sha256:00", "float32", SEQUENCES)
    with Claims(tmp_path) as others, closing(one):
        others.claim(keys[[4, 1]])
        for column in (0, 1):
            put(Cache(tmp_path), [2], column)
        assert one.claim([5, 4, 3, 2, 1, 0]) == [5, 3, 0]
        np.testing.assert_array_equal(rows[2], ROWS[2])
        assert others.claim(keys[[2]]).all()  # is free again
        put(Cache(tmp_path), [1], 0)
        put(Cache(tmp_path), [1], 1)
        others.release(keys)
        assert one.wait_for_others() == [4]
        np.testing.assert_array_equal(rows[1], ROWS[1])


def test__add__what_cannot_be_stored_now_is_stored_later(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    one, _ = session(cache)
    put_many = Cache._put_many
    with closing(one):
        one.claim([0, 1])
        monkeypatch.setattr(Cache, "_put_many", lambda *_, **__: False)
        one.add([0], ROWS[:1])
        assert one.wait_for_others() == []
        monkeypatch.setattr(Cache, "_put_many", put_many)
        one.add([1], ROWS[1:2])
    assert session(cache)[0].read([0, 1, 2]) == [2]


def test__add__an_interrupted_write_is_made_again_on_leaving(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    one, _ = session(cache)
    put_many = Cache._put_many

    def interrupted(*_, **__):
        monkeypatch.setattr(Cache, "_put_many", put_many)
        raise KeyboardInterrupt

    monkeypatch.setattr("esm2_features._inference.cache_session._SECONDS_BETWEEN_WRITES", -1.0)
    monkeypatch.setattr(Cache, "_put_many", interrupted)
    with pytest.raises(KeyboardInterrupt), closing(one):
        one.add([3], ROWS[3:4])
    assert session(cache)[0].read([3]) == []


def test__add__much_is_written_at_once(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    one, _ = session(cache)
    monkeypatch.setattr("esm2_features._inference.cache_session._MOST_UNWRITTEN", 1)
    with closing(one):
        one.add([3], ROWS[3:4])
        assert session(cache)[0].read([3]) == []


def test__without_a_cache__everything_is_missing_and_ours():
    one, rows = session(None)
    with closing(one):
        assert one.read(range(N)) == list(range(N))
        assert one.claim([2, 1]) == [2, 1]
        one.add([2, 1], ROWS[[2, 1]])
        assert one.wait_for_others() == []
    assert (rows == UNFILLED).all()


def test__nothing_asked__nothing_missing_and_nothing_claimed(tmp_path):
    one, _ = session(filled(tmp_path, range(3)))
    with closing(one):
        assert one.read([]) == []
        assert one.claim([]) == []


def test_leaving__after_a_lock_that_is_gone_stores_what_was_computed(tmp_path):
    cache = Cache(tmp_path)
    cache._link.busy_seconds = 0.0  # before the first connection is made
    put(cache, [5], 0)
    one, _ = session(cache)
    with closing(one):
        with raw(cache) as file, caches_warn() as messages:
            file.execute("begin exclusive")
            one.add([0, 1], ROWS[:2])
            assert one.wait_for_others() == []
        assert len(messages) == 1
    assert session(Cache(tmp_path))[0].read([0, 1]) == []
