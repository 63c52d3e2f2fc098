"""Rows are called what the user calls them: by their labels in a pandas index, too."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold, cross_val_score
from sklearn.pipeline import make_pipeline

from esm2_features import Engine, ESM2LikelihoodTransformer, ESM2Transformer, score_variants
from esm2_features._inputs.rows import labelled, place_of
from esm2_features.exceptions import Esm2FeaturesError, InputError, InvalidSequenceError

IDS = ["P1", "P2", "P3", "P4"]
BAD = ["MKTAYIAKQR", "GSHMVLSEGE", "MKJTAYIAKQ", "ACDEFGHIKL"]


def esm2(**parameters):
    return ESM2Transformer("mini", cache=None, **parameters)


@pytest.mark.parametrize(
    ("index", "label"),
    [
        (IDS, "'P3'"),
        ([10, 11, 12, 13], "12"),
        ([3, 2, 1, 0], "1"),
        (pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1), ("b", 2)]), "('b', 1)"),
        (pd.date_range("2020-01-01", periods=4), "Timestamp('2020-01-03 00:00:00')"),
        (pd.RangeIndex(5, 9), "7"),
        (["x" * 100] * 4, "'" + "x" * 36 + "..."),
        (pd.Index(IDS, dtype="category"), "'P3'"),
    ],
)
def test__error__names_the_label_of_a_pandas_index(index, label):
    frame = pd.DataFrame({"seq": BAD}, index=index)
    for call, X in (
        (esm2().fit, frame),
        (esm2().transform, frame),
        (esm2().fit, frame["seq"]),
        (Engine("mini", cache=None).embed, frame["seq"]),
        (Engine("mini", cache=None).residues, frame),
    ):
        with pytest.raises(InvalidSequenceError) as caught:
            call(X)
        assert f"of the sequence in row 2 (index {label}) is not" in str(caught.value)
        assert caught.value.index == 2


@pytest.mark.parametrize(
    "X", [BAD, np.array(BAD), pd.Series(BAD), pd.DataFrame({"s": BAD}), pl.DataFrame({"s": BAD})]
)
def test__error__names_the_number_alone_where_there_are_no_labels(X):
    with pytest.raises(InvalidSequenceError, match="of the sequence in row 2 is not"):
        esm2().fit(X)


FRAME = pd.DataFrame(
    {"heavy": ["MKTAYIAKQR"] * 4, "light": ["GSHMVLSEGE"] * 4, "site": ["1:3"] * 4}, index=IDS
)
WRONG = {
    "missing": (esm2(), FRAME[["heavy"]].replace({"heavy": {"MKTAYIAKQR": None}}), "P1"),
    "too long": (esm2(max_residues=5), FRAME[["heavy"]], "P1"),
    "chain": (esm2(), FRAME[["heavy", "light"]].assign(light=[*["MK"] * 3, "M-K"]), "P4"),
    "joined": (
        esm2(join="linker", max_residues=12, linker_length=0),
        FRAME[["heavy", "light"]],
        "P1",
    ),
    "region": (
        esm2(region="site"),
        FRAME[["heavy", "site"]].assign(site=["1:3", "1:3", "8:99", "1:3"]),
        "P3",
    ),
    "fixed region": (esm2(region=(8, 99)), FRAME[["heavy"]], "P1"),
    "masks": (
        ESM2LikelihoodTransformer("mini", cache=None),
        FRAME[["heavy"]].assign(heavy=["MK", "<mask>", "MK", "MK"]),
        "P2",
    ),
    "length": (
        ESM2LikelihoodTransformer("mini", cache=None, wildtype="MKT"),
        FRAME[["heavy"]].assign(heavy=["MKT", "MKV", "MKTA", "MKT"]),
        "P3",
    ),
}


@pytest.mark.parametrize(("estimator", "X", "label"), WRONG.values(), ids=WRONG.keys())
def test__error__of_every_kind_names_the_label(estimator, X, label):
    with pytest.raises(InputError, match=rf"row [0-3].* \(index '{label}'\)") as caught:
        estimator.fit(X)
    assert caught.value.index == IDS.index(label)


def test__warning__names_the_label():
    genes = pd.Series(["MKTAYIAKQR", "ATGAAAACCGCGTATATTGCGAAACAG"], index=["protein", "gene"])
    with pytest.warns(UserWarning, match=r"row 1 \(index 'gene'\) holds the letters ACGTUN"):
        esm2().fit(genes)
    variants = pd.Series(["WT", "MKTAYI"], index=["a", "b"])
    with pytest.warns(UserWarning, match=r"row 1 \(index 'b'\) has 6 residues, the wild type 10"):
        score_variants("mini", "MKTAYIAKQR", variants, "pseudo-perplexity")


def test__engine__names_the_label_of_a_region():
    sequences = pd.Series(["MKTAYIAKQR"] * 2, index=["a", "b"])
    with pytest.raises(InputError, match=r"'8:99' in row 1 \(index 'b'\)"):
        Engine("mini", cache=None).embed(sequences, regions=["1:3", "8:99"])


def test__score_variants__names_the_label():
    variants = pd.Series(["K2R", "A2R"], index=["v1", "v2"])
    with pytest.raises(InputError, match=r"'A2R' in row 1 \(index 'v2'\) replaces A"):
        score_variants("mini", "MKTAYIAKQR", variants)


@pytest.mark.parametrize("index", [IDS * 3, None], ids=["ids", "numbers"])
def test__cross_validation__names_the_row_of_the_whole_table(index):
    X = pd.DataFrame({"seq": [*BAD[:2] * 4, *BAD]})
    if index is not None:
        X.index = [f"{label}-{i}" for i, label in enumerate(index)]
    label = repr(X.index[10]) if index is not None else "10"
    folds = KFold(3, shuffle=True, random_state=0)
    with pytest.raises(Esm2FeaturesError) as caught:
        cross_val_score(make_pipeline(esm2(), Ridge()), X, range(12), cv=folds, error_score="raise")
    assert f"(index {label}) is not a residue" in str(caught.value)


def test__place_of__ends_with_its_context():
    with labelled(["a"]):
        assert place_of(0, "seq") == "row 0 of column 'seq' (index 'a')"
        assert place_of(5) == "row 5"
        with labelled(None):
            assert place_of(0) == "row 0"
    assert place_of(0) == "row 0"
