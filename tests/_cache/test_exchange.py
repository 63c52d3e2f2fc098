"""Vectors of any file become parts of the spec that they were computed for."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from cache_helpers import DIM, SPEC, part_of, rows_of

from esm2_features._cache.exchange import read_parts
from esm2_features._cache.keys import Spec
from esm2_features._cache.parquet import write_parquet
from esm2_features._checkpoints.catalogue import OFFICIAL
from esm2_features.exceptions import InputError

T6 = "esm2_t6_8M_UR50D"
MEAN = {
    "model": T6,
    "layer": -1,
    "pooling": "mean",
    "precision": "float32",
    "cache_dtype": "float32",
}
NOTHING = dict.fromkeys(MEAN)


def written_npz(folder, sequences, dim=DIM):
    np.savez(folder / "x.npz", sequence=sequences, embedding=rows_of(range(len(sequences)), dim))
    return folder / "x.npz"


def test__npz__the_last_layer_of_an_official_model(tmp_path):
    path = written_npz(tmp_path, ["ACD", "MKTAYI"])
    (part,) = read_parts(path, MEAN)
    assert part.spec == Spec(OFFICIAL[T6].identity, 6, "mean", "float32")
    assert part.spec.model == T6
    np.testing.assert_array_equal(part.keys, part.spec.keys(["ACD", "MKTAYI"]))
    np.testing.assert_array_equal(part.rows, rows_of(range(2)))
    assert part.rows.dtype == np.float32


@pytest.mark.parametrize(("layer", "number"), [(6, 6), (0, 0), (-2, 5), (-7, 0)])
def test__npz__layers_count_from_both_ends(tmp_path, layer, number):
    path = written_npz(tmp_path, ["ACD"])
    options = {"layer": layer, "pooling": "cls", "precision": "bfloat16", "cache_dtype": "float16"}
    (part,) = read_parts(path, MEAN | options)
    assert part.spec == Spec(OFFICIAL[T6].identity, number, "cls", "bfloat16", "float16")


def test__csv__sequences_are_normalised(tmp_path):
    rows = rows_of(range(3))
    texts = ["gigavlkv", "ACD*", " MKT "]
    lines = [",".join(["sequence", *map(str, range(DIM))])]
    lines += [",".join([text, *map(str, row)]) for text, row in zip(texts, rows, strict=True)]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    (part,) = read_parts(tmp_path / "x.csv", MEAN)
    np.testing.assert_array_equal(part.keys, part.spec.keys(["GIGAVLKV", "ACD", "MKT"]))
    np.testing.assert_array_equal(part.rows, rows)


def test__npz__many_rows_come_in_parts(tmp_path):
    alphabet = "ACDEFGHIKLMNPQRSTVWY"
    sequences = [a + b + c for a in alphabet for b in alphabet for c in alphabet[:13]]
    parts = list(read_parts(written_npz(tmp_path, sequences), MEAN))
    assert [len(part.keys) for part in parts] == [4096, 1104]
    keys = np.concatenate([part.keys for part in parts])
    np.testing.assert_array_equal(keys, parts[0].spec.keys(sequences))
    rows = np.concatenate([part.rows for part in parts])
    np.testing.assert_array_equal(rows, rows_of(range(5200)))


@pytest.mark.parametrize("model", ["", "mini", "esm2_t6", "t6", "tiny.pt"])
def test__npz__needs_the_name_of_an_official_model(tmp_path, model):
    path = written_npz(tmp_path, ["ACD"])
    with pytest.raises(InputError, match=r"Got model=.*; expected one of .esm2_t6_8M_UR50D.,"):
        list(read_parts(path, MEAN | {"model": model}))


@pytest.mark.parametrize("option", ["model", "layer", "pooling"])
def test__npz__what_it_does_not_say_has_to_be_said(tmp_path, option):
    path = written_npz(tmp_path, ["ACD"])
    with pytest.raises(InputError, match=rf"x.npz does not say .*: {option} must be given, too"):
        list(read_parts(path, MEAN | {option: None}))


@pytest.mark.parametrize("option", ["precision", "cache_dtype"])
def test__npz__float32_need_not_be_said(tmp_path, option):
    (part,) = read_parts(written_npz(tmp_path, ["ACD"]), MEAN | {option: None})
    assert part.spec == Spec(OFFICIAL[T6].identity, 6, "mean", "float32")


def test__npz__of_another_width_than_the_model(tmp_path):
    path = written_npz(tmp_path, ["ACD"], dim=480)
    with pytest.raises(InputError, match=r"\(1, 480\), where \(n,\) and \(n, 320\) are needed"):
        list(read_parts(path, MEAN))
    (part,) = read_parts(path, MEAN | {"model": "esm2_t12_35M_UR50D"})
    assert part.spec.layer == 12


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("layer", 7, "7"),
        ("layer", -8, "-8"),
        ("pooling", "median", 'Got pooling=.median.; expected one of "mean"'),
        ("precision", "int8", "Got precision=.int8.; expected one of"),
        ("cache_dtype", "float64", "Got cache_dtype=.float64.; expected one of"),
    ],
)
def test__npz__parameters_that_cannot_be(tmp_path, option, value, message):
    path = written_npz(tmp_path, ["ACD"])
    with pytest.raises(InputError, match=message):
        list(read_parts(path, MEAN | {option: value}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("AC1", "x.npz, row 2: '1' at position 3 of 'AC1' is no residue. Correct it, or remove"),
        ("", "x.npz, row 2: the sequence is empty"),
        ("nan", "in row 2"),
    ],
)
def test__npz__what_is_no_sequence_is_named_by_its_row(tmp_path, text, message):
    path = written_npz(tmp_path, ["ACD", "MKT", text])
    with pytest.raises(InputError, match=message):
        list(read_parts(path, MEAN))


@pytest.mark.parametrize("name", ["x.parquet", "X.PARQUET"])
def test__parquet__says_what_its_vectors_are(tmp_path, name):
    write_parquet(tmp_path / name, [part_of(range(5))])
    for option, value in MEAN.items():
        with pytest.raises(InputError, match=rf"Got {option}=.* says that of each .* Leave it out"):
            list(read_parts(tmp_path / name, NOTHING | {option: value}))
    (part,) = read_parts(tmp_path / name, NOTHING)
    assert part.spec == SPEC
    np.testing.assert_array_equal(part.keys, part_of(range(5)).keys)
    np.testing.assert_array_equal(part.rows, rows_of(range(5)))


def test__other_endings_are_refused(tmp_path):
    (tmp_path / "x.hdf").touch()
    with pytest.raises(InputError, match=r"ends in '\.hdf'"):
        list(read_parts(tmp_path / "x.hdf", NOTHING))


@pytest.mark.parametrize("name", ["x.npz", "x.csv", "x.parquet"])
def test__no_such_file(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name):
        list(read_parts(tmp_path / name, NOTHING))


def test__import__brings_neither_torch_nor_pyarrow():
    code = (
        "import esm2_features._cache.exchange, esm2_features._cache.cache, sys;"
        "assert 'torch' not in sys.modules and 'pyarrow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
