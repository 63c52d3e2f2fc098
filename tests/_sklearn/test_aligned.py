"""`AlignedTransformer`: one-hot and BLOSUM62 rows of aligned sequences."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
from Bio.Align import substitution_matrices
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline

from esm2_features import AlignedTransformer
from esm2_features.exceptions import InputError, InvalidSequenceError, MissingSequenceError

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
ROWS = ["MKT-AYI", "MRTGAYI", "MKTGA-W"]


def frame_of(X, encoding="onehot", **parameters):
    transformer = AlignedTransformer(encoding, **parameters).set_output(transform="pandas")
    return transformer.fit_transform(X)


def test__onehot__has_a_1_for_each_residue_and_gap():
    found = frame_of(ROWS)
    assert found.shape == (3, 7 * 21)
    for row, sequence in enumerate(ROWS):
        ones = found.columns[found.iloc[row] == 1]
        assert list(ones) == [f"onehot_{i}_{letter}" for i, letter in enumerate(sequence, 1)]
    assert found.to_numpy().sum() == 21


def test__blosum62__is_that_of_biopython():
    matrix = substitution_matrices.load("BLOSUM62")
    letters = RESIDUES + "BZX-UO"
    found = frame_of([letters], "blosum62").to_numpy().reshape(len(letters), 20)
    names = RESIDUES + "BZX*XX"
    np.testing.assert_array_equal(found, [[matrix[a][b] for b in RESIDUES] for a in names])


def test__blosum62__names_its_columns():
    names = AlignedTransformer("blosum62").fit(ROWS).get_feature_names_out()
    assert names[:20].tolist() == [f"blosum62_1_{residue}" for residue in RESIDUES]
    assert (len(names), names[-1]) == (140, "blosum62_7_Y")


@pytest.mark.parametrize("letter", ["X", "B", "Z", "U", "O", "<mask>"])
def test__onehot__of_other_letters_is_0(letter):
    found = frame_of([f"M{letter}T", "MKT"])
    assert found.iloc[0].sum() == 2
    assert not found.filter(like="onehot_2_").iloc[0].any()


@pytest.mark.parametrize("written", ["mkt.ayi", "MKT~AYI", " MKT-AYI*\n", "MKT-ayi"])
def test__gaps__and_letters_are_read_as_programs_write_them(written):
    transformer = AlignedTransformer().fit(ROWS)
    np.testing.assert_array_equal(transformer.transform([written]), transformer.transform(ROWS[:1]))


def test__gaps__can_be_a_whole_row():
    assert frame_of(["MKTAY", "-----"]).filter(regex="-$").sum(axis=1).tolist() == [0, 5]


def test__gaps__beside_letters_that_are_none_are_counted_in_the_position():
    with pytest.raises(InvalidSequenceError, match="'J' at position 5 of the sequence in row 1"):
        AlignedTransformer().fit(["MKT-AY", "M--AJY"])
    found = AlignedTransformer("blosum62", unknown="X").fit_transform(["M--AJY", "M--AXY"])
    np.testing.assert_array_equal(found[0], found[1])


def test__another_length__names_the_row_in_fit():
    X = pd.Series(["MKT-AY", "MKTA", "MRTGAY", "MK"], index=list("abcd"))
    said = r"row 1 \(index 'b'\) \(the first of 2\) has 4 positions.*most have 6: 'MKTA'"
    with pytest.raises(InvalidSequenceError, match=said) as caught:
        AlignedTransformer().fit(X)
    assert caught.value.index == 1
    with pytest.raises(InvalidSequenceError, match=r"row 0 .*has 2 positions.*most have 6"):
        AlignedTransformer().fit(["MK", "MKTAYI", "MKTAYL"])


def test__another_length__names_the_row_in_transform():
    transformer = AlignedTransformer().fit(ROWS)
    with pytest.raises(InvalidSequenceError, match=r"row 1 has 3 positions.*`fit` saw 7"):
        transformer.transform(["MKT-AYI", "MKT"])


def test__chains__have_lengths_of_their_own():
    X = pd.DataFrame({"heavy": ["MKT-", "MRTA"], "light": ["GS", "G-"]})
    transformer = AlignedTransformer().fit(X)
    assert transformer.lengths_ == [4, 2]
    names = transformer.get_feature_names_out()
    assert (len(names), names[0], names[-1]) == (126, "heavy__onehot_1_A", "light__onehot_2_-")
    assert transformer.transform(X).shape == (2, 126)
    with pytest.raises(InvalidSequenceError, match="row 1 of column 'light' has 3 positions"):
        transformer.transform(X.assign(light=["GS", "GSH"]))
    with pytest.raises(InvalidSequenceError, match="row 1 of column 'light' has 3 positions"):
        transformer.fit(pd.DataFrame({"heavy": ["MK"] * 3, "light": ["GS", "GSH", "GA"]}))


def test__fit__is_needed_for_names_and_numbers():
    for method in (lambda t: t.transform(ROWS), lambda t: t.get_feature_names_out()):
        with pytest.raises(NotFittedError):
            method(AlignedTransformer())


def test__fit__again_forgets_the_lengths_before():
    transformer = AlignedTransformer().fit(ROWS)
    assert transformer.fit(["MK", "M-"]).transform(["MK"]).shape == (1, 42)


@pytest.mark.parametrize("encoding", ["onehot", "blosum62"])
def test__missing__rows_are_refused_or_filled(encoding):
    X = ["MKT-", None, "MRTA"]
    with pytest.raises(MissingSequenceError, match="row 1"):
        AlignedTransformer(encoding).fit(X)
    found = AlignedTransformer(encoding, on_missing="nan").fit_transform(X)
    assert np.isnan(found).all(axis=1).tolist() == [False, True, False]
    found = AlignedTransformer(encoding, on_missing="zero").fit_transform(X)
    assert found.any(axis=1).tolist() == [True, False, True]


def test__missing__in_all_rows_is_refused_in_fit_and_filled_after_it():
    X = pd.DataFrame({"heavy": ["MKT", "MRT"], "light": ["GS", None]})
    transformer = AlignedTransformer(on_missing="nan").fit(X)
    assert np.isnan(transformer.transform(X.assign(light=[None, None]))[:, 63:]).all()
    with pytest.raises(InputError, match="Column 'light' of X has no sequence"):
        transformer.fit(X.assign(light=None))


@pytest.mark.parametrize("convert", [tuple, np.array, pd.Series, pl.Series])
def test__containers__of_every_kind(convert):
    found = AlignedTransformer().fit_transform(convert(ROWS))
    np.testing.assert_array_equal(found, AlignedTransformer().fit_transform(ROWS))


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"encoding": "one-hot"}, "encoding='one-hot'.*Did you mean \"onehot\""),
        ({"encoding": "blosum50"}, "encoding='blosum50'"),
        ({"on_missing": "drop"}, "on_missing="),
        ({"unknown": "gap"}, "unknown="),
    ],
)
def test__wrong_parameters__are_named(parameters, said):
    with pytest.raises(InputError, match=said):
        AlignedTransformer(**parameters).fit(ROWS)


def test__pipeline__is_cloned_fitted_and_saved():
    pipeline = clone(make_pipeline(AlignedTransformer("blosum62"), Ridge())).fit(ROWS, [0, 1, 2])
    again = pickle.loads(pickle.dumps(pipeline))
    np.testing.assert_array_equal(again.predict(ROWS), pipeline.predict(ROWS))
    assert "AlignedTransformer" in again._repr_html_()
