"""Regions: what may be given, what is refused, and the numbers that come of them."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from counting import LOADED, CountingTransformer, computed
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from esm2_features import Cache
from esm2_features._inputs.regions import read_region
from esm2_features._inputs.views import positions_of
from esm2_features.exceptions import InputError, InvalidRegionError, MissingSequenceError

SEQUENCES = ["MKTAYIAKQR", "GSHMVLSEGE", "ACDEFGHIKLMNPQ", "MKTAYIAKQR"]
REGIONS = ["2:5", "0:3,7", "13", "4:6"]
POSITIONS = [[2, 3, 4], [0, 1, 2, 7], [13], [4, 5]]
FRAME = pd.DataFrame({"seq": SEQUENCES, "site": REGIONS}, index=["a", "b", "c", "d"])
POOLED = {"mean": np.mean, "max": np.max, "std": np.std}


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ cells

READ = {
    "int": (7, ((7, 8),)),
    "NumPy int": (np.int8(7), ((7, 8),)),
    "whole float": (7.0, ((7, 8),)),
    "NumPy float": (np.float64(0), ((0, 1),)),
    "slice": ((2, 5), ((2, 5),)),
    "slice of NumPy ints": ((np.int64(2), np.int64(5)), ((2, 5),)),
    "list": ([8, 2, 3], ((2, 4), (8, 9))),
    "list of two is no slice": ([2, 5], ((2, 3), (5, 6))),
    "duplicates": ([3, 3, 3], ((3, 4),)),
    "array": (np.array([4, 2]), ((2, 3), (4, 5))),
    "array of floats": (np.array([4.0, 2.0]), ((2, 3), (4, 5))),
    "range": (range(2, 8, 2), ((2, 3), (4, 5), (6, 7))),
    "set": ({9, 0}, ((0, 1), (9, 10))),
    "text of a slice": ("2:5", ((2, 5),)),
    "text of slices": ("8:10,2:5", ((2, 5), (8, 10))),
    "text of slices that overlap": ("2:5,4:7,7", ((2, 8),)),
    "text of a position": ("7", ((7, 8),)),
    "text with blanks": (" 2 : 5, 8 ", ((2, 5), (8, 9))),
    "all as a slice": ((0, 10), ()),
    "all as text": ("0:5,5:10", ()),
    "all as positions": (list(range(10)), ()),
}


@pytest.mark.parametrize(("value", "spans"), READ.values(), ids=READ.keys())
def test__read_region__gives_spans(value, spans):
    assert read_region(value, length=10, index=0) == spans


REFUSED = {
    "position beyond": (10, "reaches to position 10, beyond the last one, 9"),
    "slice beyond": ((8, 11), "reaches to position 10, beyond the last one, 9"),
    "text beyond": ("2:5,99999999999", "reaches to position 99999999999, beyond"),
    "negative position": (-1, "has the negative number -1"),
    "negative in a list": ([2, -3], "has the negative number -3"),
    "negative start": ((-3, 5), "has the negative number -3"),
    "negative stop": ("2:-1", "has the negative number -1"),
    "empty slice": ((5, 5), "holds no residue: 5:5 stops before it starts"),
    "slice backwards": ("5:2", "holds no residue: 5:2 stops before it starts"),
    "empty list": ([], "is empty"),
    "empty array": (np.array([]), "is empty"),
    "empty text": ("", "cannot be read: '' is neither start:stop nor a number"),
    "comma at the end": ("2:5,", "cannot be read: '' is neither"),
    "range of a paper": ("26-33", "cannot be read: '26-33' is neither"),
    "open slice": ("2:", "cannot be read: '2:' is neither"),
    "mutation": ("A23T", "cannot be read: 'A23T' is neither"),
    "other digits": ("٣", "is neither"),
    "tuple of three": ((1, 2, 3), "is a tuple of 3, but (start, stop) has two"),
    "fraction": (2.5, "cannot be read: 2.5 is not a whole number"),
    "infinity": (np.inf, "cannot be read: inf is not a whole number"),
    "fraction in a list": ([1, 2.5], "cannot be read: 2.5 is not a whole number"),
    "missing in a list": ([1, None], "cannot be read: None is not a whole number"),
    "slices in a list": ([(2, 5), (7, 9)], "cannot be read: (2, 5) is not a whole number"),
    "bool": (True, "cannot be read: True is not a whole number"),
    "mask": (np.ones(10, bool), "is not a whole number"),
    "dict": ({"start": 2, "stop": 5}, "is not a whole number"),
    "bytes": (b"2:5", "is not a whole number"),
    "array of two dimensions": (np.ones((2, 2), int), "is an array of 2 dimensions"),
    "array of none": (np.array(3), "is an array of 0 dimensions"),
}


@pytest.mark.parametrize(("value", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test__read_region__what_is_no_part_of_the_sequence(value, reason):
    with pytest.raises(InvalidRegionError) as caught:
        read_region(value, length=10, index=3, column="site")
    assert reason in str(caught.value)
    assert "in row 3 of column 'site'" in str(caught.value)
    assert (caught.value.index, caught.value.length) == (3, 10)
    assert caught.value.region is value
    assert caught.value.__cause__ is None


def test__read_region__whole_message():
    with pytest.raises(InvalidRegionError) as caught:
        read_region((26, 33), length=30, index=0)
    assert str(caught.value) == (
        "The region (26, 33) in row 0 reaches to position 32, beyond the last one, 29. Its "
        "sequence has 30 residues. Positions count from 0 (residue 1 of a paper is position 0): "
        "give one position, (start, stop) as in sequence[start:stop], a list of positions, or "
        'text such as "26:33,50:58".'
    )


def test__read_region__a_long_value_is_shortened_in_the_message():
    with pytest.raises(InvalidRegionError) as caught:
        read_region(list(range(500)), length=10, index=0)
    assert len(str(caught.value)) < 400


@given(st.sets(st.integers(0, 29), min_size=1), st.randoms())
def test__read_region__every_way_of_writing_positions_gives_the_same(positions, random):
    shuffled = random.sample(sorted(positions), len(positions))
    spans = read_region(shuffled, length=31, index=0)
    assert positions_of(spans).tolist() == sorted(positions)
    for value in (
        np.array(shuffled),
        ",".join(map(str, shuffled)),
        ",".join(f"{start}:{stop}" for start, stop in spans),
    ):
        assert read_region(value, length=31, index=0) == spans


# ------------------------------------------------------------------ one region for all


@pytest.mark.parametrize("pooling", POOLED)
@pytest.mark.parametrize("layer", [0, 2])
def test__region__pools_the_slice_of_what_fair_esm_gives(esm2, residues, pooling, layer):
    found = esm2(region=(2, 6), pooling=pooling, layers=layer).fit_transform(SEQUENCES)
    expected = [POOLED[pooling](residues(s, layer)[2:6], axis=0) for s in SEQUENCES]
    assert_close(found, expected)


def test__region__is_not_the_same_as_cutting_the_sequence(esm2):
    part = esm2(region=(2, 6)).transform(SEQUENCES)
    cut = esm2().transform([sequence[2:6] for sequence in SEQUENCES])
    assert np.abs(part - cut).max() > 0.01


def test__region__is_that_of_each_chain(esm2, residues):
    frame = pd.DataFrame({"heavy": SEQUENCES[:2], "light": SEQUENCES[2:]})
    found = esm2(region=(1, 4)).fit_transform(frame)
    expected = [[residues(s)[1:4].mean(0) for s in row] for row in frame.to_numpy()]
    assert_close(found, np.reshape(expected, (2, 64)))
    with pytest.raises(InvalidRegionError, match="row 1 of column 'heavy'") as caught:
        esm2(region=(1, 4)).fit(pd.DataFrame({"heavy": ["MKTAY", "MKT"], "light": ["MKTA"] * 2}))
    assert caught.value.index == 1


def test__region__refuses_the_first_row_that_is_too_short(esm2):
    with pytest.raises(InvalidRegionError, match=r"The region \(2, 6\) in row 1 reaches") as caught:
        esm2(region=(2, 6)).fit(["MKTAYI", "MKT", "MK"])
    assert (caught.value.index, caught.value.region, caught.value.length) == (1, (2, 6), 3)


def test__region__is_of_the_sequence_as_it_was_cut(esm2, residues):
    estimator = esm2(region=(2, 6), max_residues=6, too_long="truncate")
    with pytest.warns(UserWarning, match="4 of 4 sequences were cut"):
        found = estimator.transform(SEQUENCES)
    assert_close(found, [residues(s[:6])[2:6].mean(0) for s in SEQUENCES])
    with pytest.raises(InvalidRegionError, match="has 5 residues"):
        esm2(region=(2, 6), max_residues=5, too_long="truncate").fit(SEQUENCES)


def test__region__that_is_the_whole_sequence_is_the_same_vector(esm2, tmp_path):
    expected = esm2(cache=tmp_path).transform(SEQUENCES[:2])
    rows = Cache(tmp_path).info().rows
    found = esm2(cache=tmp_path, region=(0, 10)).transform(SEQUENCES[:2])
    np.testing.assert_array_equal(found, expected)
    assert Cache(tmp_path).info().rows == rows


@pytest.mark.parametrize("region", [(5, 2), (2, 2), (-3, 5), (1, 2, 3), 7, (0.5, 3)], ids=str)
def test__region__that_no_sequence_can_have_is_refused(esm2, region):
    with pytest.raises((InputError, TypeError), match="region"):
        esm2(region=region).fit(SEQUENCES)


@pytest.mark.parametrize("region", [(2, 5), "site"], ids=str)
@pytest.mark.parametrize("pooling", ["cls", ["mean", "eos"]], ids=str)
def test__region__goes_without_special_tokens(esm2, region, pooling):
    with pytest.raises(InputError, match=r"(?s)pooling=.*region.*special token"):
        esm2(region=region, pooling=pooling).fit(FRAME)


@pytest.mark.parametrize("region", [(2, 5), "site"], ids=str)
def test__region__all_poolings_are_those_of_residues(esm2, region):
    X = FRAME if region == "site" else SEQUENCES
    found = esm2(region=region, pooling="all").fit_transform(X)
    expected = esm2(region=region, pooling=["mean", "max", "std"]).fit_transform(X)
    np.testing.assert_array_equal(found, expected)


# ------------------------------------------------------------------ a region for each row


@pytest.mark.parametrize("pooling", POOLED)
def test__region_column__pools_each_row_over_its_own(esm2, residues, pooling):
    found = esm2(region="site", pooling=pooling).fit_transform(FRAME)
    expected = [
        POOLED[pooling](residues(s)[at], axis=0) for s, at in zip(SEQUENCES, POSITIONS, strict=True)
    ]
    assert_close(found, expected)


CELLS = {
    "text": REGIONS,
    "lists": POSITIONS,
    "arrays": [np.array(at) for at in POSITIONS],
    "all kinds": [(2, 5), [7, 2, 1, 0, 0], 13, "4:6"],
}


@pytest.mark.parametrize("cells", CELLS.values(), ids=CELLS.keys())
def test__region_column__cells_of_every_kind_give_the_same(esm2, cells):
    frame = pd.DataFrame({"seq": SEQUENCES, "site": cells})
    np.testing.assert_array_equal(
        esm2(region="site").fit_transform(frame), esm2(region="site").fit_transform(FRAME)
    )


@pytest.mark.parametrize(
    "container",
    [
        pd.DataFrame,
        lambda data: (
            pd.DataFrame(data, dtype="string")
            if isinstance(data["site"][0], str)
            else pd.DataFrame(data)
        ),
        pl.DataFrame,
        pa.table,
        lambda data: pd.DataFrame(data)[["site", "seq"]],
    ],
    ids=["pandas", "pandas string", "Polars", "Arrow", "regions first"],
)
@pytest.mark.parametrize("cells", [REGIONS, POSITIONS, [2, 0, 13, 5]], ids=["text", "lists", "int"])
def test__region_column__is_the_same_in_every_frame(esm2, container, cells):
    data = {"seq": SEQUENCES, "site": cells}
    expected = esm2(region="site").fit_transform(pd.DataFrame(data))
    np.testing.assert_array_equal(esm2(region="site").fit_transform(container(data)), expected)


def test__region_column__ints_that_pandas_made_floats_of(esm2):
    frame = pd.read_csv(io.StringIO("seq,site\nMKTAYIAKQR,3\nGSHMVLSEGE,\n"))
    assert frame["site"].dtype == float
    found = esm2(region="site", on_missing="zero").fit_transform(frame)
    expected = esm2(region=(3, 4)).transform(["MKTAYIAKQR"])
    np.testing.assert_allclose(found, [expected[0], np.zeros(32)], rtol=0, atol=1e-6)


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA], ids=repr)
def test__region_column__a_missing_region_is_like_a_missing_sequence(esm2, missing):
    frame = pd.DataFrame(
        {"seq": [*SEQUENCES[:3], None], "site": ["2:5", missing, [1, 2], "99"]}, dtype=object
    )
    with pytest.raises(MissingSequenceError, match="row 3 of column 'seq'"):
        esm2(region="site").fit(frame)
    with pytest.raises(MissingSequenceError) as caught:
        esm2(region="site").fit(frame[:3])
    assert "Missing value in row 1 of column 'site', where a region is expec" in str(caught.value)
    assert caught.value.index == 1
    found = esm2(region="site", on_missing="nan").fit_transform(frame)
    assert np.isnan(found).all(1).tolist() == [False, True, False, True]
    expected = esm2(region="site").fit_transform(frame.iloc[[0, 2]])
    np.testing.assert_allclose(found[[0, 2]], expected, rtol=0, atol=1e-6)


def test__region_column__a_wrong_region_is_refused_with_row_and_column(esm2):
    frame = FRAME.assign(site=["2:5", "0:3", "13:15", "4:6"])
    for method in (esm2(region="site").fit, esm2(region="site").transform):
        with pytest.raises(InvalidRegionError, match="row 2 of column 'site'") as caught:
            method(frame)
        assert (
            vars(caught.value).items()
            >= {
                "index": 2,
                "region": "13:15",
                "length": 14,
            }.items()
        )


def test__region_column__is_measured_against_the_sequence_as_it_was_cut(esm2):
    estimator = esm2(region="site", max_residues=10, too_long="truncate")
    with pytest.raises(InvalidRegionError, match=r"row 2 .* has 10 residues"):
        estimator.fit(FRAME)


def test__region_column__counts_as_a_column_and_gives_none(esm2):
    estimator = esm2(region="site").fit(FRAME)
    assert estimator.n_features_in_ == 2
    assert estimator.feature_names_in_.tolist() == ["seq", "site"]
    names = estimator.get_feature_names_out().tolist()
    assert names == esm2().get_feature_names_out().tolist()
    assert names == esm2(region="site").get_feature_names_out().tolist()
    assert estimator.get_feature_names_out(["seq", "site"]).tolist() == names
    with pytest.raises(ValueError, match="input_features is not equal"):
        estimator.get_feature_names_out(["seq", "region"])
    with pytest.raises(ValueError, match="must be in the same order"):
        estimator.transform(FRAME[["site", "seq"]])


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (SEQUENCES, "the columns of X have no names"),
        ([["MKT", 1]], "the columns of X have no names"),
        (FRAME.to_numpy(), "the columns of X have no names"),
        (pd.DataFrame({0: SEQUENCES, 1: REGIONS}), "the columns of X have no names"),
        (FRAME[["seq"]], r"X has no column of this name; it has \['seq'\]"),
        (pd.Series(SEQUENCES, name="seq"), r"X has no column of this name; it has \['seq'\]"),
        (FRAME[["site"]], "there must be exactly one of sequences"),
        (FRAME.assign(light=SEQUENCES), "use a ColumnTransformer"),
        (FRAME[["seq", "site", "site"]], "there must be exactly one of sequences"),
    ],
    ids=["list", "rows", "array", "numbers", "absent", "Series", "alone", "chains", "twice"],
)
def test__region_column__must_be_there_beside_one_other(esm2, X, message):
    with pytest.raises(InputError, match="Got region='site'") as caught:
        esm2(region="site").fit(X)
    assert caught.match(message)


def test__region_column__numbers_are_still_refused_as_sequences(esm2):
    with pytest.raises(TypeError, match="column 'mass' holds numbers"):
        esm2(region="site").fit(pd.DataFrame({"mass": [1.5], "site": [2]}))
    with pytest.raises(TypeError, match="column 'site' holds numbers"):
        esm2().fit(pd.DataFrame({"seq": ["MKT"], "site": [2]}))


def test__region_column__each_view_is_computed_once_and_never_again(tiny_checkpoint, tmp_path):
    frame = pd.DataFrame(
        {"seq": ["MKTAYIAKQR"] * 4 + ["GSHMVLSEGE"], "site": ["2:5", "7", "0:10", "2:5", "7"]}
    )
    parameters = {"device": "cpu", "cache": tmp_path, "region": "site"}
    cold = CountingTransformer(tiny_checkpoint, **parameters).fit_transform(frame)
    counted = computed(tmp_path)
    del counted[LOADED]
    assert counted == dict.fromkeys(
        ["MKTAYIAKQR@2:5", "MKTAYIAKQR@7:8", "MKTAYIAKQR", "GSHMVLSEGE@7:8"], 1
    )
    assert Cache(tmp_path).info().rows == 4
    warm = CountingTransformer(tiny_checkpoint, **parameters).fit_transform(frame[::-1])
    np.testing.assert_array_equal(warm[::-1], cold)
    assert not computed(tmp_path)


def test__region_column__all_regions_of_a_sequence_come_from_one_forward_pass(esm2, ran):
    sequences = ["MKTAYIAKQR", "GSHMVLSEGE"] * 10
    frame = pd.DataFrame({"seq": sequences, "site": [i // 2 for i in range(20)]})
    esm2(region="site", batch_tokens=12).fit_transform(frame)
    assert sorted(ran) == ["GSHMVLSEGE", "MKTAYIAKQR"]


def test__precompute__fills_the_cache_for_regions(esm2, tmp_path):
    for region, X in (((2, 5), SEQUENCES), ("site", FRAME)):
        cache = tmp_path / str(region)
        esm2(region=region, cache=cache).precompute(X)
        cached = esm2(region=region, cache=cache, device="cuda:99", pooling="std", layers=[0, 2])
        expected = esm2(region=region, pooling="std", layers=[0, 2]).fit_transform(X)
        np.testing.assert_allclose(cached.fit_transform(X), expected, rtol=0, atol=1e-6)


def test__store__all_keeps_what_a_region_can_have(esm2, tmp_path):
    found = esm2(region="site", cache=tmp_path, store="all").fit_transform(FRAME)
    np.testing.assert_allclose(found, esm2(region="site").fit_transform(FRAME), rtol=0, atol=1e-6)
    warm = esm2(region="site", cache=tmp_path, device="cuda:99", layers=0, pooling="max")
    assert np.isfinite(warm.transform(FRAME)).all()


def test__window__pools_the_region_of_a_long_sequence(esm2):
    frame = pd.DataFrame({"seq": ["MKTAYIAKQRGSHMVLSEGE", "MKTAYIAKQR"], "site": ["11:15", "1:3"]})
    found = esm2(region="site", max_residues=12, too_long="window").fit_transform(frame)
    exact = esm2(region="site").fit_transform(frame)
    np.testing.assert_allclose(found[1], exact[1], rtol=0, atol=1e-6)
    assert np.isfinite(found).all()
    assert np.abs(found[0] - exact[0]).max() > 1e-4


# ------------------------------------------------------------------ scikit-learn


@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame], ids=["pandas", "polars"])
def test__column_transformer__one_transformer_for_each_chain(esm2, residues, library):
    table = library(
        {"heavy": SEQUENCES, "light": SEQUENCES[::-1], "cdr_h": REGIONS, "cdr_l": REGIONS[::-1]}
    )
    both = ColumnTransformer(
        [
            ("h", esm2(region="cdr_h"), ["heavy", "cdr_h"]),
            ("l", esm2(region="cdr_l"), ["light", "cdr_l"]),
        ]
    )
    found = both.fit_transform(table)
    expected = esm2(region="site").fit_transform(FRAME)
    np.testing.assert_allclose(found, np.hstack([expected, expected[::-1]]), rtol=0, atol=1e-6)
    assert both.get_feature_names_out()[[0, 32]].tolist() == [
        "h__tiny_L2_mean_0",
        "l__tiny_L2_mean_0",
    ]


def test__grid_search__over_regions(esm2, tmp_path):
    X = pd.concat([FRAME] * 3, ignore_index=True)
    y = np.arange(12.0)
    pipeline = make_pipeline(esm2(cache=tmp_path, region="site"), Ridge())
    search = GridSearchCV(pipeline, {"esm2transformer__pooling": ["mean", "max"]}, cv=2)
    assert np.isfinite(search.fit(X, y).cv_results_["mean_test_score"]).all()
    fixed = make_pipeline(esm2(cache=tmp_path), Ridge())
    grid = {"esm2transformer__region": [None, (0, 4), (2, 8)]}
    search = GridSearchCV(fixed, grid, cv=2).fit(X["seq"], y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test__set_output__has_the_names(esm2, library):
    X = FRAME if library == "pandas" else pl.DataFrame(FRAME.to_dict("list"))
    estimator = esm2(region="site").set_output(transform=library)
    out = estimator.fit_transform(X)
    assert list(out.columns) == estimator.get_feature_names_out().tolist()
    assert out.shape == (4, 32)


def test__clone_and_pickle__keep_the_region(esm2):
    for region, X in (((2, 5), SEQUENCES), ("site", FRAME)):
        estimator = esm2(region=region).fit(X)
        assert clone(estimator).get_params() == estimator.get_params()
        again = pickle.loads(pickle.dumps(estimator))
        np.testing.assert_array_equal(again.transform(X), estimator.transform(X))


# ------------------------------------------------------------------ what files make of regions


@pytest.mark.parametrize(
    ("text", "spans"),
    [("(2, 5)", ((2, 5),)), ("[2, 5]", ((2, 3), (5, 6))), (" [7] ", ((7, 8),))],
)
def test__read_region__text_that_csv_made_of_tuples_and_lists(text, spans):
    assert read_region(text, length=10, index=0) == spans


@pytest.mark.parametrize("text", ["(2, 5", "[a]", "[(1, 2)]", "(1, 2, 3)", "['1']"])
def test__read_region__other_text_in_brackets_is_refused(text):
    with pytest.raises(InvalidRegionError, match=r"cannot be read|is a tuple of 3"):
        read_region(text, length=10, index=0)


def test__regions__all_of_which_are_pairs_are_warned_of(esm2):
    X = pd.DataFrame({"seq": ["MKTAYIAKQR", "GSHMVLSEGE"], "site": [[2, 5], [3, 6]]})
    with pytest.warns(UserWarning, match="Every region in column 'site' is a list of two"):
        esm2(region="site").transform(X)


def test__regions__of_other_kinds_are_not_warned_of(esm2):
    for sites in ([(2, 5), (3, 6)], [[2, 5], [3]], [[5, 2], [3, 6]], ["2:5", "3:6"]):
        X = pd.DataFrame({"seq": ["MKTAYIAKQR", "GSHMVLSEGE"], "site": sites})
        esm2(region="site").transform(X)
