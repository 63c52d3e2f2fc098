"""Chains of one molecule: what they are joined into, and the numbers that come of it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from esm2_features import Cache
from esm2_features._inputs.chains import join_chains
from esm2_features._inputs.views import positions_of
from esm2_features.exceptions import (
    InputError,
    InvalidSequenceError,
    MissingSequenceError,
    SequenceTooLongError,
)

HEAVY = ["MKTAYIAKQR", "GSHMVLSEGE", "ACDEFGHIKL"]
LIGHT = ["DIQMTQ", "EIVLTQSP", "QSAL"]
FRAME = pd.DataFrame({"heavy": HEAVY, "light": LIGHT}, index=["a", "b", "c"])
POOLED = {"mean": np.mean, "max": np.max, "std": np.std}
LINKERS = ["linker", "linker-per-chain"]

chains = st.lists(st.text(alphabet="ACDEFW", min_size=1, max_size=9), min_size=1, max_size=4)


def assert_close(actual, expected, tolerance=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


# ------------------------------------------------------------------ joining


@given(chains=chains, linker_length=st.integers(0, 5))
def test__join_chains__spans_are_of_the_chains_and_what_is_between_them_is_glycine(
    chains, linker_length
):
    options = {"linker_length": linker_length, "longest": None}
    [joined], [together] = join_chains(chains, len(chains), per_chain=False, **options)
    several, apart = join_chains(chains, len(chains), per_chain=True, **options)
    assert several == [joined] * len(chains)
    for chain, spans in zip(chains, apart, strict=True):
        [(start, stop)] = spans or ((0, len(joined)),)
        assert joined[start:stop] == chain
    if together:
        assert "".join(joined[i] for i in positions_of(together)) == "".join(chains)
        assert all(
            joined[before:after] == "G" * linker_length
            for (_, before), (after, _) in pairwise(together)
        )
    else:
        assert joined == "".join(chains)


def test__join_chains__a_row_in_which_a_chain_is_missing_is_missing():
    sequences = ["MKT", "AC", None, "AC", "MKT", None]
    options = {"linker_length": 1, "longest": None}
    assert join_chains(sequences, 2, per_chain=False, **options) == (
        ["MKTGAC", None, None],
        [((0, 3), (4, 6)), None, None],
    )
    assert join_chains(sequences, 2, per_chain=True, **options) == (
        ["MKTGAC", "MKTGAC", None, None, None, None],
        [((0, 3),), ((4, 6),), None, None, None, None],
    )


def test__join_chains__whole_message_of_what_is_too_long():
    with pytest.raises(SequenceTooLongError) as caught:
        join_chains(["M", "M", "MKT", "ACD"], 2, linker_length=4, per_chain=False, longest=9)
    assert str(caught.value) == (
        "The chains of row 1 and the linkers of 4 glycines between them have 10 residues in all, "
        'more than max_residues=9, which measures the joined sequence. Pass too_long="window" to '
        "embed it in overlapping windows, max_residues=None to embed it whole, or "
        'join="concatenate" to embed each chain by itself.'
    )
    assert (caught.value.index, caught.value.length, caught.value.limit) == (1, 10, 9)


# ------------------------------------------------------------------ numbers


@pytest.mark.parametrize("pooling", POOLED)
@pytest.mark.parametrize("linker_length", [25, 3, 0])
def test__linker__pools_the_chains_of_the_joined_sequence_as_fair_esm_gives_it(
    esm2, residues, pooling, linker_length
):
    parameters = {"linker_length": linker_length, "pooling": pooling}
    together, apart = [], []
    for heavy, light in zip(HEAVY, LIGHT, strict=True):
        x_RD = residues(heavy + "G" * linker_length + light)
        parts = [x_RD[: len(heavy)], x_RD[-len(light) :]]
        together.append(POOLED[pooling](np.concatenate(parts), axis=0))
        apart.append(np.concatenate([POOLED[pooling](part, axis=0) for part in parts]))
    assert_close(esm2(join="linker", **parameters).fit_transform(FRAME), together, 1e-5)
    assert_close(esm2(join="linker-per-chain", **parameters).fit_transform(FRAME), apart, 1e-5)


def test__linker__three_chains(esm2, residues):
    frame = FRAME.assign(antigen=HEAVY[::-1])
    found = esm2(join="linker", linker_length=2).fit_transform(frame)
    for row, (a, b, c) in zip(found, frame.to_numpy(), strict=True):
        x_RD = residues(f"{a}GG{b}GG{c}")
        linkers = [len(a), len(a) + 1, len(a) + len(b) + 2, len(a) + len(b) + 3]
        assert_close(row, np.delete(x_RD, linkers, axis=0).mean(0), 1e-5)


def test__linker__lets_the_chains_see_each_other(esm2):
    apart = esm2().fit_transform(FRAME)
    joined = esm2(join="linker-per-chain").fit_transform(FRAME)
    assert np.abs(joined - apart).max() > 0.01
    other = FRAME.assign(light=LIGHT[::-1])
    assert np.abs(esm2(join="linker-per-chain").fit_transform(other) - joined)[0, :32].max() > 1e-3


@pytest.mark.parametrize("join", LINKERS)
def test__linker__one_chain_is_the_plain_embedding_and_shares_its_cache(esm2, tmp_path, join):
    expected = esm2(cache=tmp_path).fit_transform(HEAVY)
    found = esm2(cache=tmp_path, join=join, device="cuda:99").fit_transform(HEAVY)
    np.testing.assert_array_equal(found, expected)


def test__linker_length__0_joined_chains_are_one_sequence(esm2, tmp_path):
    expected = esm2(cache=tmp_path).transform([h + t for h, t in zip(HEAVY, LIGHT, strict=True)])
    found = esm2(cache=tmp_path, join="linker", linker_length=0, device="cuda:99").transform(FRAME)
    np.testing.assert_array_equal(found, expected)


def test__linker__is_the_region_of_the_joined_sequence(esm2):
    joined = pd.DataFrame({"seq": [f"{HEAVY[0]}GGG{LIGHT[0]}"], "chains": ["0:10,13:19"]})
    expected = esm2(region="chains").fit_transform(joined)
    assert_close(esm2(join="linker", linker_length=3).fit_transform(FRAME[:1]), expected)


def test__linker_per_chain__runs_each_row_once(esm2, ran):
    esm2(join="linker-per-chain", linker_length=1, batch_tokens=1).transform(FRAME)
    assert sorted(ran) == sorted(f"{h}G{t}" for h, t in zip(HEAVY, LIGHT, strict=True))


@pytest.mark.parametrize("join", LINKERS)
def test__chains__may_be_rows_of_a_list_or_of_an_array(esm2, join):
    expected = esm2(join=join).fit_transform(FRAME)
    for X in (FRAME.to_numpy().tolist(), FRAME.to_numpy(), pl.DataFrame(FRAME.to_dict("list"))):
        np.testing.assert_array_equal(esm2(join=join).fit_transform(X), expected)


@pytest.mark.parametrize("join", LINKERS)
def test__precompute__fills_the_cache(esm2, tmp_path, join):
    esm2(join=join, cache=tmp_path).precompute(FRAME)
    parameters = {"join": join, "layers": [0, 2], "pooling": ["std", "max"]}
    cached = esm2(cache=tmp_path, device="cuda:99", **parameters).fit_transform(FRAME)
    assert_close(cached, esm2(**parameters).fit_transform(FRAME))


# ------------------------------------------------------------------ names and shapes


@pytest.mark.parametrize(("join", "width"), [("linker", 32), ("linker-per-chain", 64)])
def test__names__of_one_vector_have_no_chain_and_of_several_have(esm2, join, width):
    estimator = esm2(join=join).fit(FRAME)
    names = estimator.get_feature_names_out().tolist()
    plain = esm2().get_feature_names_out().tolist()
    if join == "linker":
        assert names == plain
    else:
        assert names == [f"{chain}__{name}" for chain in FRAME.columns for name in plain]
    assert estimator.transform(FRAME).shape == (3, width)
    assert estimator.n_features_in_ == 2
    assert estimator.get_feature_names_out(["heavy", "light"]).tolist() == names
    for library, X in (("pandas", FRAME), ("polars", pl.DataFrame(FRAME.to_dict("list")))):
        out = clone(estimator).set_output(transform=library).fit_transform(X)
        assert list(out.columns) == names


def test__names__of_chains_without_names(esm2):
    estimator = esm2(join="linker").fit(FRAME.to_numpy())
    assert estimator.get_feature_names_out().tolist() == esm2().get_feature_names_out().tolist()
    per_chain = esm2(join="linker-per-chain").fit(FRAME.to_numpy())
    assert per_chain.get_feature_names_out()[32] == "x1__tiny_L2_mean_0"


@pytest.mark.parametrize("join", LINKERS)
def test__chains__must_be_those_of_fit(esm2, join):
    estimator = esm2(join=join).fit(FRAME)
    with pytest.raises(ValueError, match="must be in the same order as they were in fit"):
        estimator.transform(FRAME[["light", "heavy"]])


# ------------------------------------------------------------------ missing, wrong, long


@pytest.mark.parametrize(("join", "width"), [("linker", 32), ("linker-per-chain", 64)])
def test__on_missing__fills_the_whole_row(esm2, join, width):
    frame = FRAME.assign(light=[None, LIGHT[1], LIGHT[2]], heavy=[HEAVY[0], HEAVY[1], None])
    found = esm2(join=join, on_missing="zero").fit_transform(frame)
    assert found.any(1).tolist() == [False, True, False]
    assert found.shape == (3, width)
    assert_close(found[1], esm2(join=join).fit_transform(FRAME)[1])
    assert np.isnan(esm2(join=join, on_missing="nan").transform(frame)[[0, 2]]).all()
    assert not esm2(join=join, on_missing="zero").transform(frame[::2]).any()
    with pytest.raises(MissingSequenceError, match="row 2 of column 'heavy'"):
        esm2(join=join).fit(frame)


@pytest.mark.parametrize("join", LINKERS)
def test__invalid_chain__is_refused_with_row_and_column(esm2, join):
    with pytest.raises(InvalidSequenceError, match="row 1 of column 'light'"):
        esm2(join=join).fit(FRAME.assign(light=["MK", "M1", "MK"]))


@pytest.mark.parametrize("join", LINKERS)
def test__max_residues__measures_each_chain_and_then_the_joined_sequence(esm2, join):
    with pytest.raises(SequenceTooLongError, match=r"row 0 of column .heavy. .* has 10 residues"):
        esm2(join=join, max_residues=9).fit(FRAME)
    with pytest.raises(SequenceTooLongError, match="The chains of row 1 ") as caught:
        esm2(join=join, linker_length=2, max_residues=18).fit(FRAME)
    assert (caught.value.index, caught.value.length, caught.value.limit) == (1, 20, 18)
    assert esm2(join=join, linker_length=2, max_residues=20).fit_transform(FRAME).shape[0] == 3
    exact = esm2(join=join, linker_length=2, max_residues=None).fit_transform(FRAME)
    np.testing.assert_array_equal(
        exact, esm2(join=join, linker_length=2, max_residues=20).transform(FRAME)
    )


def test__window__covers_a_joined_sequence_that_is_too_long(esm2):
    parameters = {"join": "linker-per-chain", "linker_length": 2}
    found = esm2(**parameters, max_residues=18, too_long="window").fit_transform(FRAME)
    exact = esm2(**parameters).fit_transform(FRAME)
    assert_close(found[[0, 2]], exact[[0, 2]])  # 18 and 16 residues
    assert np.isfinite(found).all()
    assert np.abs(found[1] - exact[1]).max() > 1e-4


# ------------------------------------------------------------------ parameters


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"join": "glue"}, "Got join='glue'; expected one of"),
        ({"join": None}, "Got join=None"),
        ({"join": "linker", "linker_length": -1}, "linker_length=-1; expected a whole number from"),
        ({"join": "linker", "linker_length": 2.5}, r"linker_length=2\.5"),
        ({"join": "linker", "linker_length": True}, "linker_length=True"),
        ({"join": "linker", "linker_length": "GGGS"}, "linker_length='GGGS'"),
        ({"linker_length": 10}, 'linker_length=10 with join="concatenate", which has no linkers'),
        ({"join": "linker", "too_long": "truncate"}, "it would cut the last chain"),
        ({"join": "linker", "region": (1, 3)}, 'Pass join="concatenate", or use one transformer'),
        ({"join": "linker-per-chain", "region": "site"}, "or use one transformer for each chain"),
        ({"join": "linker", "pooling": "cls"}, "pooling='cls' with join='linker', which pools"),
        ({"join": "linker-per-chain", "pooling": ["mean", "eos"]}, 'the special token "eos" is'),
    ],
    ids=str,
)
def test__fit__refuses_what_has_no_meaning(esm2, parameters, message):
    estimator = esm2(**parameters)
    for method in (estimator.fit, estimator.transform):
        with pytest.raises(InputError, match=message):
            method(FRAME)


def test__numpy_linker_length__is_a_whole_number(esm2):
    found = esm2(join="linker", linker_length=np.int64(3)).fit_transform(FRAME)
    np.testing.assert_array_equal(found, esm2(join="linker", linker_length=3).transform(FRAME))


# ------------------------------------------------------------------ scikit-learn


def test__column_transformer__joins_the_chains_beside_numbers(esm2):
    table = FRAME.assign(mass=[1.5, 2.5, 3.5])
    both = ColumnTransformer(
        [("esm", esm2(join="linker"), ["heavy", "light"]), ("rest", "passthrough", ["mass"])]
    )
    found = both.fit_transform(table)
    assert_close(found[:, :-1], esm2(join="linker").fit_transform(FRAME))
    assert both.get_feature_names_out()[[0, -1]].tolist() == ["esm__tiny_L2_mean_0", "rest__mass"]


def test__grid_search__over_ways_to_join(esm2, tmp_path):
    X = pd.concat([FRAME] * 4, ignore_index=True)
    grid = {"esm2transformer__join": ["concatenate", *LINKERS]}
    pipeline = make_pipeline(esm2(cache=tmp_path), Ridge())
    search = GridSearchCV(pipeline, grid, cv=2).fit(X, np.arange(12.0))
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert Cache(tmp_path).info().rows == 6 + 3 + 6
