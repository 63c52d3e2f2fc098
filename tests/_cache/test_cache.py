"""The cache: what was written comes back, for as long as it is wanted, and to others."""

from __future__ import annotations

import copy
import io
import os
import pickle
import signal
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import platformdirs
import pytest
from cache_helpers import (
    CLS,
    DIM,
    HALF,
    OTHER,
    POSIX,
    SPEC,
    caches_warn,
    filled,
    flip,
    fork,
    found,
    keys_of,
    part_of,
    raw,
    rows_of,
    stored_keys,
    succeeded,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, clone

from esm2_features._cache import Cache, open_cache
from esm2_features._cache.exchange import stored_parts
from esm2_features._cache.file import default_folder
from esm2_features._cache.keys import KeyedVectors, Spec
from esm2_features._cache.parquet import write_parquet
from esm2_features._checkpoints.catalogue import OFFICIAL
from esm2_features.exceptions import (
    CacheWarning,
    InputError,
    MissingDependencyError,
)

T6 = "esm2_t6_8M_UR50D"
OF_T6 = {"model": T6, "layer": -1, "pooling": "mean"}
T6_MEAN = Spec(OFFICIAL[T6].identity, 6, "mean", "float32", model=T6)


# What is written comes back -----------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_bit_comes_back_in_the_order_of_the_keys(data):
    texts = st.text("ACDEFGHIKLMNPQRSTVWY", max_size=12)
    sequences = data.draw(st.lists(texts, min_size=1, max_size=12, unique=True))
    dim = data.draw(st.integers(1, 5))
    size = 4 * dim * len(sequences)
    bits = data.draw(st.binary(min_size=size, max_size=size))
    rows = np.frombuffer(bits, np.float32).reshape(-1, dim)  # NaNs and all
    unknown = data.draw(st.lists(texts.filter(lambda text: text not in sequences)))
    asked = data.draw(st.permutations(sequences + sequences[:3] + unknown))
    out = np.full((len(asked), dim), -7, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(folder)
        cache._put_many([KeyedVectors(SPEC, SPEC.keys(sequences), rows)])
        hit = cache._get_many(SPEC, SPEC.keys(asked), out)
        cache._link._drop()
    assert hit.dtype == np.bool_
    assert hit.tolist() == [sequence in sequences for sequence in asked]
    untouched = np.full(dim, -7, np.float32).tobytes()
    for sequence, row in zip(asked, out, strict=True):
        there = sequence in sequences
        assert row.tobytes() == (rows[sequences.index(sequence)].tobytes() if there else untouched)


def test_more_rows_than_one_query_takes(tmp_path):
    cache = Cache(tmp_path)
    for start in range(0, 1200, 20):
        cache._put_many([part_of(range(start, start + 20), dim=3)])
    order = np.random.default_rng(0).permutation(1200)
    out = np.zeros((1200, 3), np.float32)
    assert Cache(tmp_path)._get_many(SPEC, keys_of(order), out).all()
    np.testing.assert_array_equal(out, rows_of(range(1200), 3)[order])
    assert cache.info().rows == 1200


def test_rows_and_keys_need_not_be_contiguous(tmp_path):
    cache, keys = Cache(tmp_path), np.asfortranarray(keys_of(range(10)))[::2]
    rows = rows_of(range(10))[::2][:, ::-1]
    cache._put_many([KeyedVectors(SPEC, keys, rows)])
    out = np.zeros((5, 2, DIM), np.float32)
    assert cache._get_many(SPEC, keys, out[:, 1]).all()
    np.testing.assert_array_equal(out[:, 1], rows)
    assert not out[:, 0].any()


def test_rows_of_other_floats_are_rounded(tmp_path):
    cache, rows = Cache(tmp_path), rows_of(range(3)).astype(np.float64) / 3
    cache._put_many([KeyedVectors(SPEC, keys_of(range(3)), rows)])
    out = np.zeros((3, DIM), np.float32)
    assert cache._get_many(SPEC, keys_of(range(3)), out).all()
    np.testing.assert_array_equal(out, rows.astype(np.float32))


def test_nothing_asked_nothing_given(tmp_path):
    nothing = np.zeros((0, DIM), np.float32)
    assert Cache(tmp_path)._get_many(SPEC, keys_of([]), nothing).shape == (0,)
    assert filled(tmp_path, range(1))._get_many(SPEC, keys_of([]), nothing).shape == (0,)


@pytest.mark.parametrize("shape", [(2, 4), (3,), (3, 4, 1)])
def test_rows_that_do_not_match_the_keys_are_refused(tmp_path, shape):
    part = KeyedVectors(SPEC, keys_of(range(3)), np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match=r"rows of shape .* expected \(n, 32\) and \(n, dim\)"):
        Cache(tmp_path)._put_many([part_of(range(3)), part])
    assert list(tmp_path.iterdir()) == []


# What a cache is ----------------------------------------------------------------------------


def test_reading_creates_nothing(tmp_path):
    cache = Cache(tmp_path / "new")
    assert found(cache, range(3)) == 0
    assert cache.info() == (tmp_path / "new", 0, 0, (), ())
    assert cache.verify() == (0, ())
    assert cache.prune(max_bytes=1 << 23, unused_days=0) == (0, 0)
    cache.clear()
    cache._put_many([])
    cache._put_many([part_of([])])
    with pytest.raises(InputError, match="no vectors"):
        cache.export(tmp_path / "x.parquet")
    assert list(tmp_path.iterdir()) == []


class Holder(BaseEstimator):
    def __init__(self, cache=None):
        self.cache = cache


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        lambda cache: pickle.loads(pickle.dumps(cache)),
        lambda cache: clone(Holder(cache)).cache,
    ],
    ids=["copy", "deepcopy", "pickle", "clone"],
)
def test_copies_are_equal_and_work(tmp_path, copied):
    cache = filled(tmp_path, range(3), max_bytes=10**8)
    other = copied(cache)
    assert other == cache
    assert hash(other) == hash(cache)
    assert other.max_bytes == 10**8
    assert found(other, range(3)) == 3
    other._put_many([part_of(range(3, 5))])
    assert found(cache, range(5)) == 5


def test_caches_are_told_apart_by_their_paths_and_limits(tmp_path):
    assert Cache(tmp_path / "a") != Cache(tmp_path / "b")
    assert Cache(tmp_path) != Cache(tmp_path, max_bytes=10**8)
    assert Cache(tmp_path) != str(tmp_path)
    assert repr(Cache(tmp_path)) == f"Cache({str(tmp_path)!r})"
    assert repr(Cache(tmp_path, 10**8)) == f"Cache({str(tmp_path)!r}, max_bytes=100000000)"
    assert Cache("relative").path == type(tmp_path).cwd() / "relative"


@pytest.mark.parametrize("limit", [0, -1, (4 << 20) - 1, float("nan")])
def test_too_small_a_limit_is_refused(tmp_path, limit):
    with pytest.raises(InputError, match=r"expected None, or a whole number from 4194304"):
        Cache(tmp_path, max_bytes=limit)


def test_what_may_be_passed_as_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ESM2_FEATURES_CACHE", str(tmp_path / "chosen"))
    assert open_cache(None) is None
    assert open_cache("auto") == Cache(tmp_path / "chosen") == Cache()
    assert open_cache(str(tmp_path)) == open_cache(tmp_path) == Cache(tmp_path)
    assert open_cache(str(tmp_path)) is open_cache(tmp_path)
    cache = Cache(tmp_path)
    assert open_cache(cache) is cache
    for wrong in (True, 3, b"folder", [tmp_path]):
        with pytest.raises(TypeError, match='pass None, "auto", the path of a folder, or a Cache'):
            open_cache(wrong)
    with pytest.raises(InputError, match="cache=None is no cache"):
        open_cache("")


@pytest.mark.parametrize("unset", ["", None])
def test_the_default_folder(monkeypatch, unset):
    monkeypatch.delenv("ESM2_FEATURES_CACHE", raising=False)
    if unset is not None:
        monkeypatch.setenv("ESM2_FEATURES_CACHE", unset)
    assert default_folder() == platformdirs.user_cache_path("esm2_features") / "embeddings"


# Many at once -------------------------------------------------------------------------------


def test_threads_share_a_cache(tmp_path):
    cache = Cache(tmp_path)

    def work(part):
        numbers = range(part * 40, part * 40 + 60)  # each overlaps with the next
        cache._put_many([part_of(numbers)])
        return found(cache, numbers)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(12))) == [60] * 12
    assert found(cache, range(11 * 40 + 60)) == 11 * 40 + 60
    assert len(stored_keys(cache)) == 11 * 40 + 60


def write_all(cache, numbers, acknowledge=None):
    for start in numbers[::20]:
        cache._put_many([part_of(range(start, start + 20))])
        if acknowledge is not None:
            os.write(acknowledge, b".")


@POSIX
def test_two_processes_begin_and_write_one_file(tmp_path):
    parts = range(300), range(200, 500)
    writers = [fork(lambda part=part: write_all(Cache(tmp_path), part)) for part in parts]
    assert [succeeded(writer) for writer in writers] == [True, True]
    assert found(Cache(tmp_path), range(500)) == 500
    assert len(stored_keys(Cache(tmp_path))) == 500


@POSIX
def test_what_was_acknowledged_survives_a_kill(tmp_path):
    reading, writing = os.pipe()
    writer = fork(lambda: write_all(Cache(tmp_path), range(10**6), writing))
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        acknowledged = len(pipe.read(1))
        while acknowledged < 20:
            acknowledged += len(pipe.read(1))
        os.kill(writer, signal.SIGKILL)
        assert not succeeded(writer)
        acknowledged += len(pipe.read())
    assert found(Cache(tmp_path), range(20 * acknowledged)) == 20 * acknowledged
    assert Cache(tmp_path).verify().damaged == ()


# The whole ----------------------------------------------------------------------------------


def test_info_counts_by_model_layer_and_pooling(tmp_path):
    cache = filled(tmp_path, range(200))
    layer_2 = replace(SPEC, layer=2)
    cache._put_many(
        [part_of(range(7), CLS), part_of(range(5), OTHER, 8), part_of(range(4), layer_2)]
    )
    cache._put_many([part_of(range(6, 9), CLS)])
    info = cache.info()
    assert (info.path, info.rows, info.bytes) == (tmp_path, 218, cache.file.stat().st_size)
    assert [(space.spec, space.rows, space.bytes) for space in info.spaces] == [
        (OTHER, 5, 5 * (8 * 4 + 36)),
        (layer_2, 4, 4 * (DIM * 4 + 36)),
        (CLS, 9, 9 * (DIM * 4 + 36)),
        (SPEC, 200, 200 * (DIM * 4 + 36)),
    ]
    assert [space.spec.model for space in info.spaces] == ["other", "tiny", "tiny", "tiny"]
    assert sum(space.bytes for space in info.spaces) < info.bytes


def test_clear_gives_the_room_back(tmp_path):
    cache = filled(tmp_path, range(2000))
    before = cache.info()
    cache.clear()
    after = cache.info()
    assert (after.rows, after.spaces) == (0, ())
    assert after.bytes < before.bytes / 4
    assert found(cache, range(200)) == 0
    cache._put_many([part_of(range(3))])
    assert found(cache, range(200)) == 3


def test_verify__nothing_damaged(tmp_path):
    cache = filled(tmp_path, range(500))
    cache._put_many([part_of(range(300), HALF), part_of(range(5), OTHER, 8)])
    assert cache.verify() == (805, ())


def test_verify__one_flipped_bit_of_a_value(tmp_path):
    cache = filled(tmp_path, range(20))
    cache._put_many([part_of(range(5), CLS)])
    flip(cache, "value", "vectors", place=5000)
    assert cache.verify() == (24, ("1 of 20 vectors of tiny, layer 6, mean, float32.",))


def test_verify__one_flipped_bit_of_a_key(tmp_path):
    cache = filled(tmp_path, range(20), HALF)
    flip(cache, "block", "keys", place=70)
    expected = "1 of 20 vectors of tiny, layer 6, mean, float32, kept in float16."
    assert cache.verify() == (19, (expected,))


def test_verify__a_space_that_is_unreadable(tmp_path):
    cache = filled(tmp_path, range(20))
    cache._put_many([part_of(range(5), CLS)])
    flip(cache, "space", "digest")
    check = cache.verify()
    assert check.rows == 5
    assert check.damaged == ("1 blocks of vectors whose model or content is unreadable.",)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: np.random.default_rng(0).bytes(len(content)),
        lambda content: content[:100],
        lambda content: content[: len(content) // 2],
        lambda content: content[:65536] + bytes(len(content) - 65536),
        lambda content: b"short",
    ],
    ids=["garbage", "cut to 100", "cut to half", "zeroed", "short"],
)
def test_verify__a_damaged_file_is_reported_and_left_as_it_is(tmp_path, damage):
    content = damage(filled(tmp_path, range(500)).file.read_bytes())
    cache = Cache(tmp_path)
    cache.file.write_bytes(content)
    check = cache.verify()
    assert check.rows < 500
    assert check.damaged
    assert cache.file.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [cache.file.name]


def test_verify__a_damaged_index_is_reported(tmp_path):
    cache = filled(tmp_path, range(20))
    content = bytearray(cache.file.read_bytes())
    record = content.index(SPEC.digest)
    entry = content.index(SPEC.digest, record + 1)
    content[entry] ^= 1  # of the index on digests: no vector is found any longer
    cache.file.write_bytes(content)
    assert found(Cache(tmp_path), range(20)) == 0
    assert Cache(tmp_path).verify().damaged


@settings(max_examples=80, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_verify__what_it_calls_intact_is_found(tmp_path_factory, place, bit):
    pristine = tmp_path_factory.getbasetemp() / "pristine for verify"
    if not pristine.exists():
        filled(pristine, range(200))
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(folder)
        content = bytearray((pristine / cache.file.name).read_bytes())
        # In the pages that hold vectors, every bit counts.
        first_row = content.index(rows_of(range(1)).tobytes())
        content[first_row + int(place * 150 * DIM * 4)] ^= 1 << bit
        cache.file.write_bytes(content)
        check = cache.verify()
        assert check.damaged
        assert cache.file.read_bytes() == content
        with caches_warn():
            assert found(cache, range(200)) == check.rows == 199
        cache._link._drop()


def test_prune__what_is_damaged_goes(tmp_path):
    cache = filled(tmp_path, range(20))
    cache._put_many([part_of(range(5), CLS), part_of(range(4), OTHER, 8)])
    flip(cache, "value", "vectors")
    with raw(cache) as file:
        file.execute("update value set vectors = 7 where block = 2")
        file.execute("update space set layer = 5 where id = 3")
    assert len(cache.verify().damaged) == 3
    assert cache.prune().rows == 1 + 5 + 4
    assert cache.verify() == (19, ())
    assert found(cache, range(1, 20)) == 19
    cache._put_many([part_of(range(20)), part_of(range(5), CLS), part_of(range(4), OTHER, 8)])
    assert cache.verify() == (29, ())
    assert found(cache, range(4), OTHER, 8) == 4


def test_prune__the_models_by_name_and_by_identity(tmp_path):
    cache = filled(tmp_path, range(300))
    cache._put_many([part_of(range(300), CLS), part_of(range(7), OTHER, 8)])
    pruned = cache.prune(model="tiny")
    assert pruned.rows == 600
    assert pruned.bytes > 600 * DIM * 4
    assert [space.spec for space in cache.info().spaces] == [OTHER]
    assert cache.prune(model="sha256:beef").rows == 7
    assert cache.info().rows == 0


def test_prune__an_unknown_model_is_refused_and_nothing_goes(tmp_path):
    cache = filled(tmp_path, range(3))
    cache._put_many([part_of(range(2), OTHER, 8)])
    with pytest.raises(InputError, match=r"no vectors of model tine\. Its models are: other, tiny"):
        cache.prune(model="tine", unused_days=0)
    assert cache.info().rows == 5


@pytest.mark.parametrize("number", ["max_bytes", "unused_days"])
def test_prune__negative_numbers_are_refused(tmp_path, number):
    cache = filled(tmp_path, range(3))
    with pytest.raises(InputError, match=f"Got {number}=-1; expected None"):
        cache.prune(**{number: -1})
    assert cache.info().rows == 3


def test_export__comes_back_bit_by_bit(tmp_path):
    rng = np.random.default_rng(0)
    cache = Cache(tmp_path / "a")
    specs = [SPEC, CLS, HALF, replace(OTHER, model="")]
    parts = [
        KeyedVectors(
            spec, keys_of(range(700), spec), rng.standard_normal((700, DIM)).astype(spec.dtype)
        )
        for spec in specs
    ]
    for start in range(0, 700, 50):
        some = slice(start, start + 50)
        cache._put_many([KeyedVectors(spec, keys[some], rows[some]) for spec, keys, rows in parts])
    assert cache.export(tmp_path / "x.parquet") == 2800
    other = Cache(tmp_path / "b")
    assert other.import_(tmp_path / "x.parquet") == (2800, 0, ())
    assert other.import_(str(tmp_path / "x.parquet")) == (0, 2800, ())
    for spec, keys, rows in parts:
        out = np.zeros((700, DIM), np.float32)
        assert other._get_many(spec, keys, out).all()
        assert out.tobytes() == rows.astype(np.float32).tobytes()
    assert [s.spec.model for s in other.info().spaces] == [
        s.spec.model for s in cache.info().spaces
    ]
    assert other.verify() == (2800, ())


def test_export__of_two_widths_needs_a_model(tmp_path):
    cache = filled(tmp_path / "a", range(5))
    cache._put_many([part_of(range(7), OTHER, 8)])
    path = tmp_path / "x.parquet"
    with pytest.raises(InputError, match=r"Choose one \(model=\.\.\.\), and write a file for each"):
        cache.export(path)
    assert not path.exists()
    for model, n, spec, dim in (("tiny", 5, SPEC, DIM), ("sha256:beef", 7, OTHER, 8)):
        assert cache.export(path, model=model) == n
        imported = Cache(tmp_path / model.replace(":", "-"))
        assert imported.import_(path).added == n
        assert found(imported, range(n), spec, dim) == n
    with pytest.raises(InputError, match=r"no vectors of model mini\. Its models are: other, tiny"):
        cache.export(path, model="mini")


def test_export__leaves_out_what_is_damaged_and_says_so(tmp_path):
    cache = filled(tmp_path / "a", range(10))
    flip(cache, "value", "vectors")
    with pytest.warns(CacheWarning, match="damaged vectors, which are left out"):
        assert cache.export(tmp_path / "x.parquet") == 9
    Cache(tmp_path / "b").import_(tmp_path / "x.parquet")
    assert found(Cache(tmp_path / "b"), range(10)) == 9


def test_export__without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingDependencyError, match=r"esm2-features\[parquet\]"):
        filled(tmp_path, range(3)).export(tmp_path / "x.parquet")


# What comes in ------------------------------------------------------------------------------


def test_import__a_folder_of_another_cache(tmp_path):
    cache, other = filled(tmp_path / "a", range(50)), filled(tmp_path / "b", range(40, 300))
    other._put_many([part_of(range(9), OTHER, 8), part_of(range(9), HALF)])
    before = other.file.read_bytes()
    assert cache.import_(tmp_path / "b") == (250 + 18, 10, ())
    assert found(cache, range(300)) == 300
    assert found(cache, range(9), OTHER, 8) == found(cache, range(9), HALF) == 9
    assert len(stored_keys(cache)) == 318
    assert other.file.read_bytes() == before
    assert cache.import_(cache.path) == (0, 318, ())


def test_import__a_folder_without_a_cache(tmp_path):
    with pytest.raises(InputError, match=r"no cache in .*: it has no embeddings\.sqlite3"):
        Cache(tmp_path / "new").import_(tmp_path)
    assert list(tmp_path.iterdir()) == []


def contradicted(folder, *, by=1.0, numbers=range(2, 4)):
    """Another cache that holds five vectors, some of which contradict."""
    spec, keys, rows = part_of(range(5))
    rows[list(numbers), 7] += np.float32(by)
    other = Cache(folder)
    other._put_many([KeyedVectors(spec, keys, rows)])
    return other


def test_import__conflicts_are_reported_and_nothing_is_overwritten(tmp_path):
    cache = filled(tmp_path / "a", range(3))
    contradicted(tmp_path / "b").export(tmp_path / "x.parquet")
    added, present, conflicts = cache.import_(tmp_path / "x.parquet")
    assert (added, present) == (2, 2)
    (conflict,) = conflicts
    assert (conflict.spec, conflict.key) == (SPEC, keys_of([2]).tobytes().hex())
    assert conflict.difference == pytest.approx(1.0)
    assert found(cache, range(3)) == 3


def test_import__replace_takes_what_comes_in(tmp_path):
    cache, other = filled(tmp_path / "a", range(3)), contradicted(tmp_path / "b")
    added, present, conflicts = cache.import_(tmp_path / "b", replace=True)
    assert (added, present, len(conflicts)) == (2, 2, 1)
    outs = np.zeros((2, 5, DIM), np.float32)
    for one, out in zip((cache, other), outs, strict=True):
        assert one._get_many(SPEC, keys_of(range(5)), out).all()
    np.testing.assert_array_equal(*outs)
    assert cache.import_(tmp_path / "b", replace=True) == (0, 5, ())
    assert len(stored_keys(cache)) == 5


def test_import__differences_of_rounding_are_no_conflicts_and_change_nothing(tmp_path):
    cache = filled(tmp_path / "a", range(5))
    other = contradicted(tmp_path / "b", by=2e-5, numbers=range(5))
    for replaced in (False, True):
        assert cache.import_(other.path, replace=replaced) == (0, 5, ())
    assert found(cache, range(5)) == 5


def test_import__of_duplicates_in_one_file_the_first_counts(tmp_path):
    spec, keys, rows = part_of([0, 1, 0, 1])
    rows[3, 5] += 1
    write_parquet(tmp_path / "x.parquet", [KeyedVectors(spec, keys, rows)])
    cache = Cache(tmp_path / "a")
    added, present, conflicts = cache.import_(tmp_path / "x.parquet")
    assert (added, present) == (2, 1)
    assert [conflict.key for conflict in conflicts] == [keys_of([1]).tobytes().hex()]
    assert found(cache, range(2)) == 2


def test_import__damaged_vectors_that_are_there_are_replaced(tmp_path):
    cache, other = filled(tmp_path / "a", range(10)), filled(tmp_path / "b", range(10))
    flip(cache, "value", "vectors")
    assert cache.import_(other.path) == (1, 9, ())
    assert found(cache, range(10)) == 10
    assert len(stored_keys(cache)) == 10
    assert cache.verify() == (10, ())


def test_import__what_was_read_before_an_error_stays(tmp_path):
    spec, keys, rows = part_of(range(3000), dim=2)
    rows[2500, 1] = np.nan
    write_parquet(tmp_path / "x.parquet", [KeyedVectors(spec, keys, rows)])
    cache = Cache(tmp_path / "a")
    with pytest.raises(InputError, match="row 2500: component 1"):
        cache.import_(tmp_path / "x.parquet")
    assert found(cache, range(3000), dim=2) == 2048


def test_import__a_cache_that_cannot_be_written_is_an_error(tmp_path):
    other = filled(tmp_path / "a", range(3))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="could not be written"):
        Cache(tmp_path / "file").import_(other.path)
    cache = filled(tmp_path / "b", range(1))
    cache._link.busy_seconds = 0.0
    cache._link._drop()
    with raw(cache) as file:
        file.execute("begin immediate")
        with pytest.raises(OSError, match="could not be written: database is locked"):
            cache.import_(other.path)


@pytest.mark.parametrize("name", ["sequence", "embedding"])
def test_import__npz_with_text_beyond_unicode_or_no_array(tmp_path, name):
    beyond = io.BytesIO()
    np.save(beyond, np.array([0x110000, 65, 66], np.uint32).view("<U3"))
    hostile = {"sequence": beyond.getvalue(), "embedding": b""}
    right = {"sequence": np.array(["ACD"]), "embedding": rows_of([1])}
    np.savez(tmp_path / "x.npz", **{key: right[key] for key in right if key != name})
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
        archive.writestr(f"{name}.npy", hostile[name])
    with pytest.raises(InputError, match=r"x\.npz cannot be read"):
        Cache(tmp_path / "a").import_(tmp_path / "x.npz", **OF_T6)


def test_import__npz_for_a_model_by_name(tmp_path):
    sequences = ["gigavlkv", "ACD*", " MKT\n"]
    rows = rows_of(range(3))
    np.savez(tmp_path / "x.npz", sequence=sequences, embedding=rows)
    cache = Cache(tmp_path / "a")
    assert cache.import_(tmp_path / "x.npz", **OF_T6) == (3, 0, ())
    out = np.zeros((3, DIM), np.float32)
    assert cache._get_many(T6_MEAN, T6_MEAN.keys(["GIGAVLKV", "ACD", "MKT"]), out).all()
    np.testing.assert_array_equal(out, rows)
    assert [space.spec.model for space in cache.info().spaces] == [T6]


def test_import__csv_of_a_layer_and_a_pooling(tmp_path):
    rows = rows_of(range(2))
    lines = [",".join(["sequence", *map(str, range(DIM))])]
    lines += [",".join([text, *map(str, row)]) for text, row in zip("AC", rows, strict=True)]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    options = {"layer": 2, "pooling": "cls", "precision": "bfloat16", "cache_dtype": "float16"}
    cache = Cache(tmp_path / "a")
    assert cache.import_(tmp_path / "x.csv", model=T6, **options).added == 2
    spec = Spec(OFFICIAL[T6].identity, 2, "cls", "bfloat16", "float16")
    out = np.zeros((2, DIM), np.float32)
    assert cache._get_many(spec, spec.keys(["A", "C"]), out).all()
    np.testing.assert_array_equal(out, rows.astype(np.float16))


def test_import__sequences_that_are_the_same_count_once(tmp_path):
    np.savez(tmp_path / "x.npz", sequence=["ACD", "acd"], embedding=rows_of([4, 4]))
    assert Cache(tmp_path / "a").import_(tmp_path / "x.npz", **OF_T6) == (1, 1, ())


def test_import__residues_that_are_none_are_named_by_their_row(tmp_path):
    np.savez(tmp_path / "x.npz", sequence=["ACD", "AC1"], embedding=rows_of(range(2)))
    with pytest.raises(InputError, match=r"x\.npz, row 1: '1' at position 3 of 'AC1'"):
        Cache(tmp_path / "a").import_(tmp_path / "x.npz", **OF_T6)
    assert not (tmp_path / "a").exists()


def test_import__float16_that_would_overflow_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", sequence=["ACD"], embedding=np.full((1, DIM), 1e6, np.float32))
    cache = Cache(tmp_path / "a")
    with pytest.raises(InputError, match="float16"):
        cache.import_(tmp_path / "x.npz", **OF_T6, cache_dtype="float16")
    assert cache.info().rows == 0


def test_import__large_numbers_are_compared_without_warnings(tmp_path):
    rows = np.full((1, DIM), 1e25, np.float32)
    for name, factor in (("x", 1), ("y", 2)):
        np.savez(tmp_path / f"{name}.npz", sequence=["ACD"], embedding=rows * np.float32(factor))
    cache = Cache(tmp_path / "a")
    assert cache.import_(tmp_path / "x.npz", **OF_T6).added == 1
    assert cache.import_(tmp_path / "x.npz", **OF_T6).present == 1
    assert len(cache.import_(tmp_path / "y.npz", **OF_T6).conflicts) == 1


def test_import__of_another_width_never_replaces_what_is_there(tmp_path):
    cache = filled(tmp_path / "a", range(5))
    write_parquet(tmp_path / "x.parquet", [part_of(range(5), dim=7)])
    with pytest.raises(InputError, match="have 7 components, and those in the cache"):
        cache.import_(tmp_path / "x.parquet")
    assert found(cache, range(5)) == 5


@pytest.mark.parametrize("replaced", [False, True])
def test_import__of_a_key_twice_keeps_the_first_unless_it_may_be_replaced(tmp_path, replaced):
    keys = SPEC.keys(["ACD", "ACD"])
    rows = rows_of(range(2))
    write_parquet(tmp_path / "x.parquet", [KeyedVectors(SPEC, keys, rows)])
    cache = Cache(tmp_path / "a")
    added, present, conflicts = cache.import_(tmp_path / "x.parquet", replace=replaced)
    assert (added, present, len(conflicts)) == (1, 0, 1)
    out = np.zeros((1, DIM), np.float32)
    assert cache._get_many(SPEC, keys[:1], out).all()
    np.testing.assert_array_equal(out[0], rows[int(replaced)])


@pytest.mark.parametrize("keys", ["substr(keys, 1, 31)", "x''"])
def test_verify_and_export__keys_that_cannot_be_read(tmp_path, keys):
    cache = filled(tmp_path / "a", range(3))
    cache._put_many([part_of(range(3, 6))])
    with raw(cache) as file:
        file.execute(f"update block set keys = {keys} where id = 1")
    assert cache.verify().damaged
    with caches_warn() as messages:
        assert cache.export(tmp_path / "x.parquet") == 3
    assert "left out" in messages[0]
    cache.prune()
    assert cache.verify() == (3, ())


def test_export__has_everything_though_another_process_tidies_up_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr("esm2_features._cache.exchange._BLOCKS", 2)
    cache = Cache(tmp_path / "a")
    for number in range(12):
        cache._put_many([part_of(range(10 * number, 10 * number + 10))])
    parts = stored_parts(cache._link)
    seen = [next(parts)]
    Cache(tmp_path / "a").prune()
    seen += parts
    assert {bytes(key) for part in seen for key in part.keys} == {
        bytes(key) for key in part_of(range(120)).keys
    }


def test_limit__what_is_used_in_a_day_does_not_fit(tmp_path):
    cache = Cache(tmp_path, max_bytes=4 << 20)
    with caches_warn() as messages:
        for number in range(4):
            cache._put_many([part_of(range(2000 * number, 2000 * number + 2000))])
    assert len(messages) == 1
    assert "Raise max_bytes" in messages[0]


def test_info__is_a_table_to_people(tmp_path):
    shown = str(filled(tmp_path, range(3)).info()).splitlines()
    assert shown[0].startswith(f"{tmp_path}: 3 vectors, ")
    assert shown[1].split() == [
        "model",
        "layer",
        "pooling",
        "precision",
        "kept",
        "in",
        "vectors",
        "size",
    ]
    assert shown[2].split()[:6] == ["tiny", "6", "mean", "float32", "float32", "3"]


def test__path__may_hold_a_variable_and_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PROJECT", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Cache("$PROJECT/vectors").path == Cache("~/vectors").path == tmp_path / "vectors"


HOSTILE = "x\x1b[2J\x07\r\n\u202egnp\u2028"


def test_names_of_files_are_shown_without_control_characters(tmp_path):
    spec = replace(SPEC, model=HOSTILE)
    other = replace(spec, layer=5)
    cache = filled(tmp_path / "a", range(3), spec)
    cache._put_many([part_of(range(3), other, 8)])
    shown = [str(cache.info()), str(Cache(tmp_path / "a").info())]
    with pytest.raises(InputError) as caught:
        cache.prune(model="tiny")
    shown.append(str(caught.value))
    with pytest.raises(InputError) as caught:
        cache.export(tmp_path / "x.parquet")
    shown.append(str(caught.value))
    changed = Cache(tmp_path / "b")
    changed._put_many([part_of(range(1, 4), spec)._replace(keys=keys_of(range(3), spec))])
    shown.append(str(changed.import_(tmp_path / "a").conflicts[0]))
    flip(cache, "value", "vectors")
    shown += cache.verify().damaged
    assert len(shown) == 6
    for text in shown:
        assert all(line.isprintable() for line in text.split("\n"))
        assert r"x\x1b[2J\x07\r\n\u202egnp\u2028" in text
    assert cache.prune(model=r"x\x1b[2J\x07\r\n\u202egnp\u2028").rows == 6
