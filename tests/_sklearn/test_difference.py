"""`ESM2DifferenceTransformer`: mutant minus wild type, whole or around the site."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from esm2_features import ESM2DifferenceTransformer, ESM2Transformer, build_mutants
from esm2_features.exceptions import InputError, InvalidVariantError, MissingSequenceError

PAIRS = pd.DataFrame(
    {
        "wildtype": ["MKTAYIAKQR", "MKTAYIAKQR", "GSHMVLSEGE", "GSHMVLSEGE"],
        "mutant": ["MRTAYIAKQR", "MKTAYIAKQR", "GSHAVLSEGK", "GSHMVLSEGK"],
    }
)


@pytest.fixture
def difference(tiny_checkpoint):
    def make(**parameters):
        return ESM2DifferenceTransformer(tiny_checkpoint, **{"cache": None, **parameters})

    return make


@pytest.fixture
def esm2(tiny_checkpoint):
    def make(**parameters):
        return ESM2Transformer(tiny_checkpoint, cache=None, **parameters)

    return make


@pytest.mark.parametrize("pooling", ["mean", ["mean", "max"], "cls"])
def test__whole__is_mutant_minus_wildtype(difference, esm2, pooling):
    found = difference(pooling=pooling).fit_transform(PAIRS)
    one = esm2(pooling=pooling)
    expected = one.transform(PAIRS["mutant"]) - one.transform(PAIRS["wildtype"])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not found[1].any()


@pytest.mark.parametrize(
    ("window", "regions"),
    [(0, ["1", "3,9", "9"]), (2, ["0:4", "1:6,7:10", "7:10"]), (99, ["0:10", "0:10", "0:10"])],
)
def test__site__is_of_the_residues_around_the_mutations(difference, esm2, window, regions):
    found = difference(region="site", window=window).fit_transform(PAIRS)
    one = esm2(region="region")
    X = PAIRS.drop(index=1).assign(region=regions)
    expected = one.transform(X[["mutant", "region"]].rename(columns={"mutant": "s"}))
    expected -= one.transform(X[["wildtype", "region"]].rename(columns={"wildtype": "s"}))
    np.testing.assert_allclose(found[[0, 2, 3]], expected, atol=1e-5)
    assert not found[1].any(), "the wild type is no mutant"


@pytest.mark.parametrize("convert", [np.array, pl.from_pandas, lambda X: X.to_numpy().tolist()])
def test__containers__of_every_kind(difference, convert):
    np.testing.assert_array_equal(
        difference().fit_transform(convert(PAIRS)), difference().fit_transform(PAIRS)
    )


def test__missing__on_either_side_is_a_missing_row(difference):
    X = PAIRS.astype(object)
    X.loc[0, "wildtype"] = None
    X.loc[2, "mutant"] = np.nan
    with pytest.raises(MissingSequenceError):
        difference().fit(X)
    for region in ("whole", "site"):
        found = difference(on_missing="nan", region=region).fit_transform(X)
        assert np.isnan(found).all(axis=1).tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("parameters", "X", "error", "said"),
    [
        ({}, PAIRS["mutant"], InputError, "takes two columns, wild types and mutants"),
        ({}, PAIRS.assign(third="MKT"), InputError, "but got 3"),
        ({"region": "sites"}, PAIRS, InputError, "region='sites'; expected one of"),
        ({"window": 2}, PAIRS, InputError, 'window=2 with region="whole"'),
        ({"region": "site", "window": -1}, PAIRS, InputError, "window=-1; expected a whole"),
        ({"region": "site", "pooling": "cls"}, PAIRS, InputError, "with a region"),
        ({"region": "site", "too_long": "truncate"}, PAIRS, InputError, "could be cut off"),
        (
            {"region": "site"},
            PAIRS.assign(mutant="MKT"),
            InvalidVariantError,
            "The mutant in row 0 has 3 residues, the wild type has 10",
        ),
    ],
)
def test__wrong_input__is_named(difference, parameters, X, error, said):
    with pytest.raises(error, match=said):
        difference(**parameters).fit(X)


def test__names__are_those_of_the_features(difference):
    fitted = difference(pooling=["mean", "max"]).fit(PAIRS)
    names = fitted.get_feature_names_out()
    assert len(names) == fitted.transform(PAIRS).shape[1]
    assert names[0].endswith("_mean_0_difference")
    frame = fitted.set_output(transform="pandas").transform(PAIRS)
    assert list(frame.columns) == list(names)


def test__pipeline__is_searched_cloned_and_saved(difference, tmp_path):
    pipeline = make_pipeline(difference(region="site"), Ridge())
    search = GridSearchCV(
        pipeline, {"esm2differencetransformer__window": [0, 1]}, cv=2, error_score="raise"
    )
    y = [1.0, 0.0, 2.0, 1.5]
    best = clone(search).fit(PAIRS, y).best_estimator_
    path = tmp_path / "ddg.pickle"
    path.write_bytes(pickle.dumps(best))
    PAIRS.to_csv(tmp_path / "pairs.csv", index=False)
    code = (
        "import pickle, sys, pandas as pd\n"
        f"model = pickle.load(open({str(path)!r}, 'rb'))\n"
        f"print(model.predict(pd.read_csv({str(tmp_path / 'pairs.csv')!r})).round(4).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(best.predict(PAIRS).round(4).tolist())


def test__mutants__go_in_as_they_are_built(difference):
    mutants = build_mutants(["K2R", "WT"], "MKTAYIAKQR")
    X = pd.DataFrame({"wildtype": mutants.wildtypes, "mutant": mutants.sequences})
    expected = difference().fit_transform(PAIRS)[:2]
    np.testing.assert_allclose(difference().fit_transform(X), expected, atol=1e-6)


def test__words_for_the_wild_type__have_no_difference(difference):
    mutants = ["MRTAYIAKQR", "WT", "MKTAYIAKQW"]
    X = pd.DataFrame({"wildtype": ["MKTAYIAKQR"] * 3, "mutant": mutants})
    assert np.abs(difference().fit_transform(X)).any(axis=1).tolist() == [True, False, True]


def test__columns_that_are_named_the_other_way_round__are_refused(difference):
    X = PAIRS[["mutant", "wildtype"]]
    with pytest.raises(InputError, match="wild types come first"):
        difference().fit(X)
