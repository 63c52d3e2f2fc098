"""`residue_table`: equal to `Engine.residues`, with labels and groups in their places, and back."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict

from esm2_features import Engine, ResidueTable, residue_table
from esm2_features.exceptions import (
    InputError,
    InvalidSequenceError,
    MissingSequenceError,
    SequenceTooLongError,
    TruncationWarning,
)

ENGINE = Engine("mini", cache=None)
SEQUENCES = ["MKTAYIAKQR", "GSHMV", "CYIQNCPLG"]
LABELS = ["CHHHHHHHCC", "CCEE-", "-CCCCCCC-"]


def rows_of(sequences, engine=ENGINE):
    layers = list(engine.layers)
    found = engine.residues(sequences, layers=layers)
    return [np.hstack([by_layer[layer] for layer in layers]) for by_layer in found]


# ------------------------------------------------------------------ the table


def test__table__has_a_row_for_each_residue_with_a_label():
    table = residue_table(SEQUENCES, LABELS, model=ENGINE, ignore="-")
    assert "".join(table.y) == "".join(LABELS).replace("-", "")
    assert table.sequence.tolist() == [0] * 10 + [1] * 4 + [2] * 7
    assert table.position.tolist() == [*range(10), *range(4), *range(1, 8)]
    assert table.lengths.tolist() == [10, 5, 9]
    first, second, third = rows_of(SEQUENCES)
    np.testing.assert_array_equal(table.X, np.vstack([first, second[:4], third[1:8]]))
    assert table.X.dtype == np.float32


def test__table__without_labels_has_all_residues():
    table = residue_table(SEQUENCES, model=ENGINE)
    assert table.y is None
    np.testing.assert_array_equal(table.X, np.vstack(rows_of(SEQUENCES)))


def test__model__is_an_engine_or_what_makes_one(tmp_path, monkeypatch):
    monkeypatch.setenv("ESM2_FEATURES_CACHE", str(tmp_path))
    found = residue_table(SEQUENCES, model="mini")
    np.testing.assert_array_equal(found.X, residue_table(SEQUENCES, model=ENGINE).X)
    assert Engine("mini", cache=tmp_path).cache.info().rows == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": [3, -1]},
        {"pooling": ["max", "cls"]},
        {"max_residues": 8, "too_long": "window"},
        {"cache_dtype": "float16"},
    ],
)
def test__cache__gives_the_same_and_computes_once(tmp_path, options):
    engine = Engine("mini", cache=tmp_path, **options)
    sequences = [*SEQUENCES, "MKTAYIAKQRQISFVKSHFSRQ"]
    labels = [*LABELS, "H" * 20 + "--"]
    streamed = residue_table(sequences, labels, model=engine, ignore="-")
    cached = residue_table(sequences, labels, model=engine, ignore="-", cache=True)
    n = engine.n_computed
    again = residue_table(sequences, labels, model=engine, ignore="-", cache=True)
    assert engine.n_computed == n > 0
    assert engine.cache.info().rows == len(streamed.X) * len(engine.layers)
    np.testing.assert_array_equal(cached.X, again.X)
    if engine.cache_dtype == "float16":
        np.testing.assert_array_equal(cached.X, streamed.X.astype(np.float16))
    else:
        np.testing.assert_array_equal(cached.X, streamed.X)


def test__many_residues__come_in_portions(tmp_path, monkeypatch):
    monkeypatch.setattr("esm2_features._residue_table._SITES_AT_A_TIME", 6)
    monkeypatch.setattr("esm2_features._residue_table._BYTES_AT_A_TIME", 192 * 4 * 12)
    labels = ["CHHHHHHHCC", "-----", "-CCCCCCC-"]
    engine = Engine("mini", cache=tmp_path)
    whole = rows_of(SEQUENCES)
    for cache in (False, True):
        table = residue_table(SEQUENCES, labels, model=engine, ignore="-", cache=cache)
        np.testing.assert_array_equal(table.X, np.vstack([whole[0], whole[2][1:8]]))


# ------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    ("labels", "ignore", "expected"),
    [
        (["HHC", "EE"], None, list("HHCEE")),
        (["H C", " E"], None, list("H C E")),  # DSSP's blank is a label
        (["H?C", "-E"], "?-", list("HCE")),
        ([["H", None, "C"], ["E", np.nan]], None, list("HCE")),
        ([["helix", "none", "coil"], ("none", "coil")], "none", ["helix", "coil", "coil"]),
        ([[1, -1, 2], [-1, 3]], -1, [1, 2, 3]),
        ([[1, -1, 2], [-100, 3]], [-1, -100], [1, 2, 3]),
        ([np.array([0.5, np.nan, 1]), np.array([2.0, 3])], None, [0.5, 1, 2, 3]),
        ([pd.Series([1, 2, 3]), pl.Series([4, None])], None, [1, 2, 3, 4]),
        ([np.array([True, False, True]), [False, True]], None, [True, False, True, False, True]),
        ([np.array(["H", "H", "C"]), "EE"], None, list("HHCEE")),
        ([[None] * 3, "EE"], None, list("EE")),
    ],
)
def test__labels__of_many_kinds(labels, ignore, expected):
    for container in (list, tuple, pd.Series):
        table = residue_table(["MKT", "GS"], container(labels), model=ENGINE, ignore=ignore)
        assert table.y.tolist() == expected
        assert table.y.dtype.kind == np.array(expected).dtype.kind


def test__labels__as_one_array_or_column():
    array = np.array([[0, 1, 0], [1, 1, -1]])
    table = residue_table(["MKT", "GSH"], array, model=ENGINE, ignore=-1)
    assert table.y.tolist() == [0, 1, 0, 1, 1]
    frame = pl.DataFrame({"sequence": ["MKT", "GSH"], "dssp": ["HHH", "CCC"]})
    table = residue_table(frame["sequence"], frame["dssp"], model=ENGINE)
    assert "".join(table.y) == "HHHCCC"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            ["HHH", "C"],
            r"row 1 \(index 'q'\) has a length of 2 residues, but .* a length of 1: 'C'.*ignore",
        ),
        (["HHH"], "labels of 1 sequences, but 2 sequences"),
        (["HHH", None], r"row 1 \(index 'q'\) are missing"),
        (["---", "--"], "No residue has a label"),
    ],
)
def test__wrong_labels__are_named(labels, message):
    with pytest.raises(InputError, match=message):
        residue_table(pd.Series(["MKT", "GS"], list("pq")), labels, model=ENGINE, ignore="-")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("HHHCC", "Got str as labels"),
        (["HHH", 7], "labels in row 1 are 7"),
        (["HHH", [1, 2]], "row 1, position 0, is 1. Pass text in all labels, or numbers in all"),
        ([np.eye(3), np.ones((2, 3))], "row 0, position 0"),
        ([{"a": 1}, "HH"], "row 0 are {'a': 1}"),
    ],
)
def test__labels_of_another_type__are_type_errors(labels, message):
    with pytest.raises(TypeError, match=message):
        residue_table(["MKT", "GS"], labels, model=ENGINE)


def test__ignore__without_labels_is_an_error():
    with pytest.raises(InputError, match="no labels"):
        residue_table(["MKT"], model=ENGINE, ignore="-")


# ------------------------------------------------------------------ sequences and groups


def test__sequences__are_read_as_the_engine_does():
    table = residue_table(["mk<mask>ay*", "NA*", "GK"], ["HHHHH", "C-", "--"], model=ENGINE,
                          ignore="-")  # fmt: skip
    expected = rows_of(["MK<mask>AY", "NA*"])
    np.testing.assert_array_equal(table.X, np.vstack([expected[0], expected[1][:1]]))
    with pytest.raises(MissingSequenceError, match="row 1"):
        residue_table(["MKT", None], ["HHH", "H"], model=ENGINE)
    with pytest.raises(InvalidSequenceError, match="position 3"):
        residue_table(["MKJAY"], ["HHHHH"], model=ENGINE)
    masked = Engine("mini", cache=None, unknown="mask")
    np.testing.assert_array_equal(
        residue_table(["MKJAY"], ["HHHHH"], model=masked).X, rows_of(["MK<mask>AY"])[0]
    )


def test__long_sequences__are_cut_with_their_labels():
    engine = Engine("mini", cache=None, max_residues=6, too_long="truncate")
    with pytest.warns(TruncationWarning, match="2 of 3 sequences"):
        table = residue_table(SEQUENCES, LABELS, model=engine, ignore="-")
    assert "".join(table.y) == "CHHHHH" + "CCEE" + "CCCCC"
    assert table.lengths.tolist() == [10, 5, 9]
    assert "".join(table.by_sequence(table.y, fill=".")[2]) == ".CCCCC..."
    first, second, third = (rows_of([s[:6]])[0] for s in SEQUENCES)
    np.testing.assert_array_equal(table.X, np.vstack([first, second[:4], third[1:]]))
    engine = Engine("mini", cache=None, max_residues=6)
    with pytest.raises(SequenceTooLongError, match="row 0"):
        residue_table(SEQUENCES, LABELS, model=engine)


def test__groups__are_of_sequences():
    sequences = ["MKT", "GS", "mkt"]
    assert residue_table(sequences, model=ENGINE).groups.tolist() == [0, 0, 0, 1, 1, 0, 0, 0]
    table = residue_table(sequences, ["HHH", "-C", "-H-"], model=ENGINE, ignore="-",
                          groups=pd.Series(list("aba")))  # fmt: skip
    assert table.groups.tolist() == ["a", "a", "a", "b", "a"]
    with pytest.raises(InputError, match="2 groups for 3 sequences"):
        residue_table(sequences, model=ENGINE, groups=[1, 2])
    with pytest.raises(InputError, match="group of row 1 is missing"):
        residue_table(sequences, model=ENGINE, groups=["a", None, "b"])


def test__no_sequences__give_an_empty_table():
    table = residue_table([], [], model=ENGINE)
    assert table.X.shape == (0, 192)
    assert table.by_sequence([]) == []


def test__engines__that_cannot_do_it():
    with pytest.raises(InputError, match="without a region"):
        residue_table(["MKT"], model=Engine("mini", cache=None, region=(0, 2)))
    with pytest.raises(InputError, match="no cache"):
        residue_table(["MKT"], model=ENGINE, cache=True)


# ------------------------------------------------------------------ and back


@given(st.lists(st.text("AB-", min_size=0, max_size=6), max_size=6), st.integers(0, 3))
@settings(deadline=None)
def test__by_sequence__puts_everything_back(labels, k):
    kept = [
        (i, j) for i, text in enumerate(labels) for j, letter in enumerate(text) if letter > "-"
    ]
    sequence, position = np.array(kept, np.intp).reshape(-1, 2).T
    lengths = np.array([len(text) for text in labels], np.intp)
    y = np.array([labels[i][j] for i, j in kept], "U1")
    table = ResidueTable(np.empty((len(kept), 2), np.float32), y, sequence, sequence, position,
                         lengths)  # fmt: skip
    assert ["".join(values) for values in table.by_sequence(y, fill="-")] == labels
    found = table.by_sequence(np.ones((len(kept), k)), fill=np.nan)
    assert [values.shape for values in found] == [(n, k) for n in lengths]


@pytest.mark.parametrize(
    ("values", "fill", "expected", "kind"),
    [
        ([1, 2, 3], np.nan, [[1, np.nan], [2, 3]], "f"),
        ([1, 2, 3], -1, [[1, -1], [2, 3]], "i"),
        ([0.5, 1.5, 2.5], 0, [[0.5, 0], [1.5, 2.5]], "f"),
        (["H", "H", "C"], "coil", [["H", "coil"], ["H", "C"]], "U"),
        (["H", "H", "C"], 0, [["H", 0], ["H", "C"]], "O"),
    ],
)
def test__fill__stands_for_residues_without_a_row(values, fill, expected, kind):
    table = residue_table(["MK", "GS"], ["H-", "HC"], model=ENGINE, ignore="-")
    for part, of_sequence in zip(table.by_sequence(values, fill=fill), expected, strict=True):
        np.testing.assert_array_equal(part, np.array(of_sequence, part.dtype))
        assert part.dtype.kind == kind


def test__by_sequence__of_a_whole_table_needs_no_fill():
    table = residue_table(["MK", "GS"], model=ENGINE)
    for values in ([1, 2, 3, 4], list("abcd"), [True, False, True, True]):
        found = np.concatenate(table.by_sequence(values))
        np.testing.assert_array_equal(found, values)
        assert found.dtype == np.array(values).dtype


def test__by_sequence__names_what_is_wrong():
    table = residue_table(["MK", "GS"], ["H-", "HC"], model=ENGINE, ignore="-")
    with pytest.raises(InputError, match=r"shape \(2,\), but the table has 3 rows"):
        table.by_sequence([1, 2])
    with pytest.raises(InputError, match=r"3 residues of 4\. Pass the value"):
        table.by_sequence([1, 2, 3])
    again = pickle.loads(pickle.dumps(table))
    np.testing.assert_array_equal(again.X, table.X)


def test__a_learner__is_validated_by_groups():
    table = residue_table(SEQUENCES, LABELS, model=ENGINE, ignore="-")
    predicted = cross_val_predict(
        LogisticRegression(), table.X, table.y == "C", groups=table.groups, cv=GroupKFold(3)
    )
    parts = table.by_sequence(predicted.astype(float), fill=np.nan)
    assert [np.isnan(part).sum() for part in parts] == [0, 1, 2]
