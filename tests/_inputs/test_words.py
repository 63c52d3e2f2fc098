"""Words for a missing value are missing values; NA and NAN are peptides where others are."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import polars as pl
import pytest

from esm2_features import Engine, ESM2LikelihoodTransformer, ESM2Transformer
from esm2_features._inputs.words import is_missing_word, missing_words, peptide_sizes
from esm2_features.exceptions import MissingSequenceError

PROTEINS = ["MKTAYIAKQRQISFVKSHFSRQ", "GSHMVLSEGEWQLVLHVWAKVE", "MALWMRLLPLLALLALWGPDPA"]
WORDS = [
    *("NA", "N/A", "n/a", "#N/A", "#NA", "<NA>", "N.A.", "NaN", "nan", "NAN", "-NaN", "NaT", "NA "),
    *("None", "NONE", "none", "NULL", "null", "Null", "(null)", "\\N", "nil", "missing", "Missing"),
    *("MISSING", "unknown", "Unknown", "UNKNOWN", "TRUE", "True", "FALSE", "false", "-", "--", "?"),
    *(".", "...", "not available", "Not Determined", "n.d.", "ND", "TBD", "no sequence", "empty"),
    *("Sequence unavailable", "#VALUE!", "#REF!", "#DIV/0!", "1.#QNAN", "\u2014", "unassigned"),
]


def esm2(**parameters):
    return ESM2Transformer("mini", cache=None, **parameters)


@pytest.mark.parametrize("word", WORDS)
def test__word__is_a_missing_value_among_proteins(word):
    expected = esm2(on_missing="nan").fit_transform([*PROTEINS, None])
    for X in ([*PROTEINS, word], pd.Series([*PROTEINS, word]), pl.Series([*PROTEINS, word])):
        with pytest.raises(
            MissingSequenceError, match=r"in row 3 .*means a missing value"
        ) as caught:
            esm2().fit(X)
        assert caught.value.index == 3
        assert repr(word.strip()) in str(caught.value)
        np.testing.assert_array_equal(esm2(on_missing="nan").fit_transform(X), expected)
    with pytest.raises(MissingSequenceError, match="row 3"):
        Engine("mini", cache=None).embed([*PROTEINS, word])
    with pytest.raises(MissingSequenceError, match="row 3"):
        list(Engine("mini", cache=None).stream(iter([*PROTEINS, word])))


def test__word__counts_with_other_missing_values():
    with pytest.raises(MissingSequenceError, match=r"'NA' in row 1 \(the first of 3\)"):
        esm2().fit([PROTEINS[0], "NA", None, "null"])
    with pytest.raises(MissingSequenceError, match=r"Missing value in row 1 \(the first of 2\)"):
        esm2().fit([PROTEINS[0], None, "null"])


def test__word__in_a_column_of_regions_is_a_missing_region():
    X = pd.DataFrame({"seq": PROTEINS, "site": ["2:4", "NA", "1:3"]})
    assert np.isnan(esm2(region="site", on_missing="nan").fit_transform(X)[1]).all()


def test__word__for_the_likelihood_transformer():
    rows = ESM2LikelihoodTransformer("mini", cache=None, on_missing="nan").fit_transform(
        ["MKTAY", "NULL"]
    )
    assert np.isnan(rows).all(axis=1).tolist() == [False, True]


def test__text_of_a_table__without_the_defaults_of_pandas():
    table = "sequence,y\nMKTAYIAKQR,1\nNA,2\nNULL,3\nGSHMVLSEGE,4\n"
    X = pd.read_csv(io.StringIO(table), keep_default_na=False)[["sequence"]]
    assert np.isnan(esm2(on_missing="nan").fit_transform(X)[:, 0]).tolist() == [0, 1, 1, 0]
    X = pl.read_csv(io.StringIO(table))[["sequence"]]
    assert np.isnan(esm2(on_missing="nan").fit_transform(X)[:, 0]).tolist() == [0, 1, 1, 0]


PEPTIDES = {
    "dipeptides": (["GA", "NA", "VY", "LL"], "NA"),
    "two dipeptides": (["NA", "GP"], "NA"),
    "tripeptides": (["IPP", "NAN", "VPP", "LKP"], "NAN"),
    "of two and three": (["NA", "IPP", "NAN"], "NA"),
    "many lengths": (["NA", "GP", "AVF", "LLFPW", "VY", "MKTAYIAKQR", "LL"], "NA"),
    "not determined": (["ND", "GD", "EE", "DE"], "ND"),
    "marked": ([*PROTEINS, "NA*"], "NA*"),
    "long and marked": ([*PROTEINS, "MISSING*"], "MISSING*"),
}


@pytest.mark.parametrize(("cells", "word"), PEPTIDES.values(), ids=PEPTIDES.keys())
def test__peptide__among_others_of_its_size_is_one(cells, word):
    alone = esm2().transform([word.rstrip("*") + "*"])[0]
    np.testing.assert_allclose(esm2().fit_transform(cells)[cells.index(word)], alone, atol=1e-6)
    assert Engine("mini", cache=None).embed(cells).shape == (len(cells), 192)


MISSING_AMONG_PEPTIDES = {
    "alone": ["NA"],
    "only words": ["NA", "NAN", "NA"],
    "among proteins": [*PROTEINS, "NA"],
    "more often than any peptide": ["GA", "NA", "VY", "NA", "LL", "NA", "GP"],
    "one dipeptide among proteins": [*PROTEINS, *PROTEINS, "GA", "NA"],
    "lower case": ["ga", "na", "vy", "ll"],
    "a word of seven letters among others of seven": ["MKTAYIA", "GSHMVLS", "ACDEFGH", "MISSING"],
    "beside mutations": ["K2R", "NA"],
}


@pytest.mark.parametrize(
    "cells", MISSING_AMONG_PEPTIDES.values(), ids=MISSING_AMONG_PEPTIDES.keys()
)
def test__word__that_is_no_peptide_there(cells):
    words = {row for row, cell in enumerate(cells) if is_missing_word(cell)}
    assert missing_words(cells) == words


def test__fit__decides_for_the_rows_of_transform():
    dipeptides = esm2().fit(["GA", "NA", "VY", "LL"])
    assert dipeptides.transform(["NA"]).shape == (1, 192)
    assert dipeptides.transform(["NA", "NA", "NA", "GA"]).shape == (4, 192)
    proteins = esm2().fit(PROTEINS)
    with pytest.raises(MissingSequenceError):
        proteins.transform(["NA", "GA", "VY", "LL"])
    with pytest.raises(MissingSequenceError):
        esm2().transform(["NA"])
    assert esm2().transform(["NA", "GA"]).shape == (2, 192)


def test__fit__decides_for_each_column():
    X = pd.DataFrame({"peptide": ["GA", "NA", "VY"], "long": PROTEINS})
    fitted = esm2().fit(X)
    assert fitted.transform(X.iloc[[1]]).shape == (1, 384)
    with pytest.raises(MissingSequenceError, match="'NA' in row 0 of column 'long'"):
        fitted.transform(X.iloc[[1]].assign(long="NA"))


def test__peptide_sizes__of_bytes_and_records():
    from Bio.Seq import Seq
    from Bio.SeqRecord import SeqRecord

    for make in (str.encode, Seq, lambda text: SeqRecord(Seq(text))):
        cells = [make(text) for text in ("GA", "NA", "VY")]
        assert 2 in peptide_sizes(cells)
        assert missing_words(cells) == set()
        assert missing_words([make("MKTAYIAK"), make("NA")]) == {1}
    assert missing_words([Seq(None, length=3), SeqRecord(None), 7, None]) == set()
