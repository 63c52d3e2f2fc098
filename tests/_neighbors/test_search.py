"""`nearest`: equal to a plain computation in float64, whatever the container; errors name rows."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
from conftest import SHARED_DATA
from hypothesis import given, settings
from hypothesis import strategies as st

from esm2_features import distributed, nearest, open_embeddings
from esm2_features.exceptions import InputError

RNG = np.random.default_rng(0)
TARGETS = RNG.normal(5, [0.1, 1, 1, 10], (40, 4)).astype(np.float32)
QUERIES = (TARGETS[[3, 9, 30]] + 0.01).astype(np.float32)


def plain(queries, targets, *, scale=None, metric="cosine", allowed=None):
    """All distances in float64, by the definitions."""
    q, t = np.asarray(queries, np.float64), np.asarray(targets, np.float64)
    if scale is not None:
        q, t = (q - t.mean(0)) / t.std(0), (t - t.mean(0)) / t.std(0)
    if scale == "whiten":
        inverse = np.linalg.inv(t.T @ t / len(t))
        half = np.linalg.cholesky(inverse)
        q, t = q @ half, t @ half
    if metric == "cosine":
        q, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, t))
    squared = ((q[:, None] - t[None]) ** 2).sum(2)
    distances = (squared / 2 if metric == "cosine" else np.sqrt(squared)).astype(np.float32)
    return distances if allowed is None else np.where(allowed, distances, np.inf)


def check(found, distances):
    k = found.indices.shape[1]
    np.testing.assert_array_equal(found.indices, np.argsort(distances, 1, kind="stable")[:, :k])
    expected = np.sort(distances, 1)[:, :k]
    np.testing.assert_allclose(found.distances, expected, rtol=1e-5, atol=1e-7 * expected.max())
    assert (found.indices.dtype, found.distances.dtype) == (np.intp, np.float32)


# ------------------------------------------------------------------ what is found


@pytest.mark.parametrize("scale", [None, "standardize", "whiten"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("n", "m", "d", "k"), [(3, 9, 2, 9), (1100, 300, 5, 4), (5, 9000, 3, 2)])
def test__neighbors__are_those_of_a_plain_search(scale, metric, n, m, d, k):
    rng = np.random.default_rng(n)
    queries, targets = (rng.normal(100, 1 + np.arange(d), (size, d)) for size in (n, m))
    found = nearest(queries, targets, n_neighbors=k, scale=scale, metric=metric)
    assert found.indices.shape == (n, k)
    check(found, plain(queries, targets, scale=scale, metric=metric))


@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 99), st.sampled_from([None, "s"]))
@settings(deadline=None, max_examples=60)
def test__neighbors__of_few_different_vectors__are_the_lowest_rows(m, d, seed, scale):
    rng = np.random.default_rng(seed)
    queries, targets = (rng.integers(0, 3, (size, d)) for size in (5, m))
    k = int(rng.integers(1, m + 1))
    targets = np.vstack([targets, [[0] * d, [2] * d]])
    scale = "standardize" if scale else None
    found = nearest(queries, targets, n_neighbors=k, scale=scale, metric="euclidean")
    distances = plain(queries, targets, metric="euclidean", scale=scale)
    taken = np.take_along_axis(distances, found.indices, 1)
    np.testing.assert_allclose(taken, np.sort(distances, 1)[:, :k], rtol=1e-6, atol=1e-7)
    for rows, values in zip(found.indices, found.distances, strict=True):
        assert len(set(rows)) == k
        assert all(
            i < j for i, j, same in zip(rows, rows[1:], np.diff(values) == 0, strict=False) if same
        )


@pytest.mark.parametrize("scale", [None, "standardize", "whiten"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test__duplicates__are_at_distance_0_in_the_order_of_rows(scale, metric):
    targets = np.random.default_rng(1).normal(9, 1, (9000, 12)).astype(np.float32)
    targets[[700, 8999, 4000]] = targets[17]
    found = nearest(targets[[17]], targets, n_neighbors=5, scale=scale, metric=metric)
    assert found.indices[0, :4].tolist() == [17, 700, 4000, 8999]
    assert not found.distances[0, :4].any()
    others = nearest(targets[[17]] + 0.1, targets, n_neighbors=9000, scale=scale, metric=metric)
    order = others.indices[0].tolist()
    at = [order.index(row) for row in (17, 700, 4000, 8999)]
    assert at == list(range(at[0], at[0] + 4))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test__near_duplicates__far_from_the_origin_are_told_apart(metric):
    base = np.random.default_rng(2).normal(1000, 1, 64)
    targets = base + np.outer(np.arange(1, 2000), np.random.default_rng(3).normal(0, 1e-5, 64))
    order = np.random.default_rng(4).permutation(len(targets))
    found = nearest(base[None], targets[order], n_neighbors=10, scale=None, metric=metric)
    np.testing.assert_array_equal(order[found.indices[0]], np.arange(10))


def test__identical_targets__are_found_lowest_row_first():
    found = nearest(np.ones((2, 3)), np.ones((9000, 3)), n_neighbors=3, metric="euclidean")
    np.testing.assert_array_equal(found.indices, [[0, 1, 2], [0, 1, 2]])


def test__constant_components__do_no_harm():
    targets = np.hstack([TARGETS, np.full((40, 1), 3.5, np.float32)])
    queries = np.hstack([QUERIES, np.full((3, 1), 3.5, np.float32)])
    for scale in ("standardize", "whiten"):
        one, other = nearest(queries, targets, scale=scale), nearest(QUERIES, TARGETS, scale=scale)
        np.testing.assert_array_equal(one.indices, other.indices)
        np.testing.assert_allclose(one.distances, other.distances, rtol=1e-5)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test__magnitudes__at_the_ends_of_float32(factor, metric):
    found = nearest(QUERIES * factor, TARGETS * factor, scale=None, metric=metric)
    expected = nearest(QUERIES, TARGETS, scale=None, metric=metric)
    np.testing.assert_array_equal(found.indices, expected.indices)


# ------------------------------------------------------------------ groups


def test__without_targets__no_row_is_its_own_neighbour():
    found = nearest(TARGETS, n_neighbors=39)
    check(found, plain(TARGETS, TARGETS, scale="standardize", allowed=~np.eye(40, dtype=bool)))


def test__groups__leave_out_relatives():
    groups = np.arange(40) % 3
    expected = plain(TARGETS, TARGETS, scale="standardize", allowed=groups[:, None] != groups)
    check(nearest(TARGETS, query_groups=groups, n_neighbors=5), expected)
    found = nearest(
        TARGETS[:7], TARGETS, query_groups=pd.Series(list("abcabca")), n_neighbors=5,
        target_groups=[("a", "b", "c")[group] for group in groups],
    )  # fmt: skip
    check(found, expected[:7])


def test__groups__that_the_targets_lack_leave_out_nothing():
    found = nearest(QUERIES, TARGETS, query_groups=[7, 8, 9], target_groups=[0] * 40)
    np.testing.assert_array_equal(found.indices, nearest(QUERIES, TARGETS).indices)


# ------------------------------------------------------------------ containers


@pytest.mark.parametrize(
    "container",
    [
        np.ndarray.tolist,
        list,
        np.asfortranarray,
        lambda rows: rows.astype(np.float64),
        lambda rows: pd.DataFrame(rows, index=[f"p{i}" for i in range(len(rows))]),
        lambda rows: pd.DataFrame(rows).convert_dtypes(),
        lambda rows: pd.Series(list(rows)),
        pl.DataFrame,
    ],
)
def test__containers__give_the_same(container):
    found = nearest(container(QUERIES), container(TARGETS), n_neighbors=4)
    expected = nearest(QUERIES, TARGETS, n_neighbors=4)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-4)


def test__memory_maps__are_read_in_chunks(tmp_path):
    targets = np.random.default_rng(5).normal(size=(20_000, 6)).astype(np.float16)
    np.save(tmp_path / "targets.npy", targets)
    mapped = np.load(tmp_path / "targets.npy", mmap_mode="r")
    longest = 0

    class Watched:
        shape = mapped.shape

        def __getitem__(self, rows):
            nonlocal longest
            longest = max(longest, rows.stop - rows.start)
            return mapped[rows]

    found = nearest(targets[:50], Watched(), n_neighbors=3)
    check(found, plain(targets[:50], targets, scale="standardize"))
    assert longest <= 8192


def test__shards__are_searched(tmp_path):
    sequences = ["MKTAYIAKQR", "GSHMVLSEGE", "CYIQNCPLG", "GIGKFLHSAKKFGKAFVGEIMNS"]
    fasta = tmp_path / "in.fasta"
    fasta.write_text("".join(f">{i}\n{text}\n" for i, text in enumerate(sequences)))
    distributed.embed_shards(fasta, tmp_path / "out", model="mini")
    shards = open_embeddings(tmp_path / "out")
    np.testing.assert_array_equal(nearest(shards[:], shards).indices.ravel(), range(4))
    np.testing.assert_array_equal(nearest(shards).indices, nearest(shards[:]).indices)


def test__result__is_unpacked_and_pickled():
    found = nearest(QUERIES, TARGETS)
    indices, distances = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(indices, found.indices)
    np.testing.assert_array_equal(distances, found.distances)
    assert pickle.loads(pickle.dumps(found)).n_targets == 40
    assert nearest(QUERIES[:0], TARGETS, n_neighbors=2).indices.shape == (0, 2)


# ------------------------------------------------------------------ errors


def spoilt(value, row=1, component=2):
    rows = QUERIES.astype(np.float64)
    rows[row, component] = value
    return rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((spoilt(np.nan), TARGETS), r"row 1 of queries holds nan in component 2.*leave them out"),
        ((QUERIES, np.vstack([TARGETS, spoilt(np.inf)])), "row 41 of targets holds inf"),
        ((spoilt(1e60), TARGETS), "row 1 of queries holds 1e.60"),
        ((pd.DataFrame(spoilt(np.nan), list("abc")), TARGETS), r"row 1 \(index 'b'\) of queries"),
        ((QUERIES[:, :3], TARGETS), "queries have 3 components, and the targets 4"),
        ((QUERIES[0], TARGETS), r"shape \(4,\).*pass \[queries\]"),
        (([], TARGETS), r"queries of shape \(0,\)"),
        ((QUERIES, TARGETS[:0]), r"n_neighbors=1, more than there are targets \(0\)"),
        ((QUERIES, TARGETS[:1]), "standardize.*at least 2 targets.*scale=None"),
        ((TARGETS.mean(0)[None], np.array([[1], [-1]]) + TARGETS.mean(0)), "has no direction"),
    ],
)
def test__wrong_vectors__are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        nearest(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_neighbors": 41}, r"n_neighbors=41, more than there are targets \(40\)"),
        ({"n_neighbors": 0}, "n_neighbors=0; expected a positive"),
        ({"scale": "standardise"}, 'Did you mean "standardize"'),
        ({"metric": "cos"}, 'Did you mean "cosine"'),
        ({"query_groups": [1, 2, 3]}, "without target_groups"),
        ({"target_groups": [1] * 40}, "without query_groups"),
        ({"query_groups": [1, 2], "target_groups": [1] * 40}, "2 query_groups for 3 queries"),
        ({"query_groups": [1, 2, 3], "target_groups": [1]}, "1 target_groups for 40 targets"),
        ({"query_groups": [1, None, 3], "target_groups": [1] * 40}, "row 1 of queries is missing"),
        ({"query_groups": [2, 1, 1], "target_groups": [1] * 40}, r"row 1 of queries \(0\)"),
    ],
)
def test__wrong_options__are_named(options, message):
    with pytest.raises(InputError, match=message):
        nearest(QUERIES, TARGETS, **options)


def test__no_direction__names_the_row():
    rows = QUERIES.copy()
    rows[2] = 0
    for scale in (None, "standardize", "whiten"):
        with pytest.raises(InputError, match=r"row 2 of queries is zero.*on_missing"):
            nearest(rows, TARGETS, scale=scale)
    assert nearest(rows, TARGETS, scale=None, metric="euclidean").indices.shape == (3, 1)
    with pytest.raises(InputError, match="row 0 of targets equals the mean"):
        nearest(QUERIES, np.full((30, 4), 0.1))


def test__whiten__refuses_too_few_targets():
    with pytest.raises(InputError, match=r'at least 5 targets.*scale="standardize"'):
        nearest(QUERIES, TARGETS[:4], scale="whiten")


def test__itself__needs_one_more_row():
    with pytest.raises(InputError, match=r"besides each query itself \(39\)"):
        nearest(TARGETS, n_neighbors=40)
    with pytest.raises(InputError, match=r"no targets\. Pass query_groups alone"):
        nearest(TARGETS, target_groups=[1] * 40)


def test__columns__in_another_order_are_refused():
    queries = pd.DataFrame(QUERIES, columns=list("abcd"))
    with pytest.raises(InputError, match="'b' is where the targets have 'c'"):
        nearest(queries, pd.DataFrame(TARGETS, columns=list("acbd")))


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ("vectors.npy", r"open_embeddings\(path\)"),
        (pd.DataFrame({"id": ["P1"], "x": [1.0], "y": [1.0], "z": [1.0]}), "columns of numbers"),
        ([[1.0, 2.0], [1.0]], "cannot be read as vectors"),
        (np.array([["a", "b", "c", "d"]]), "expected numbers"),
        (np.array([[1, 2, 3, None]]), "expected numbers"),
    ],
)
def test__what_is_no_vectors__is_a_type_error(queries, message):
    with pytest.raises(TypeError, match=message):
        nearest(queries, TARGETS)


# ------------------------------------------------------------------ real vectors


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="real vectors are not here")
@pytest.mark.parametrize("scale", [None, "standardize", "whiten"])
def test__real_vectors__are_searched_exactly(scale):
    train, test = (
        np.load(SHARED_DATA / f"real_esm2_t6_8M_bitter_{side}.npz")["embedding"]
        for side in ("train", "test")
    )
    if scale == "whiten":  # the last norm makes the components depend on each other
        found = nearest(test, train, scale=scale)
        assert 0.5 < np.median(found.distances) < 1
        return
    check(nearest(test, train, n_neighbors=5, scale=scale), plain(test, train, scale=scale))
    median = np.median(nearest(test, train, scale=scale).distances)
    assert median < 0.02 if scale is None else 0.1 < median < 0.3
