"""Vectors from elsewhere come in as they are, and what cannot be right does not come in."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from esm2_features._cache.vector_files import read_vectors
from esm2_features.exceptions import InputError

DIM = 3
SEQUENCES = ["GIGAVLKVLTTGLPALISWIKRKRQQ", "acd*", "CYIQNCPLG"]


def bits(rows):
    return np.ascontiguousarray(rows, np.float32).view(np.uint32)


def some_rows(n=3, dim=DIM):
    rng = np.random.default_rng(1)
    # Tiny and huge, so that a number read with too few digits shows.
    return (rng.standard_normal((n, dim)) * 10.0 ** rng.integers(-30, 30, (n, dim))).astype("f4")


def written_csv(path, header, *rows):
    text = "\n".join(",".join(map(str, row)) for row in [header, *rows]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("text", ["U", "S"])
def test__npz__as_users_write_it(tmp_path, save, text):
    rows = some_rows()
    save(
        tmp_path / "x.npz",
        embedding=rows,
        sequence=np.array(SEQUENCES, dtype=text),
        label=np.array([0, None, "x"], dtype=object),
    )
    vectors = read_vectors(tmp_path / "x.npz", dim=DIM)
    assert vectors.sequences == SEQUENCES
    assert all(type(sequence) is str for sequence in vectors.sequences)
    np.testing.assert_array_equal(bits(vectors.rows), bits(rows))


@pytest.mark.parametrize("kind", ["f2", "f8", ">f4"])
def test__npz__other_floats_become_float32(tmp_path, kind):
    rows = np.asfortranarray(np.array([[0.1, 2], [3, 4], [5, -0.0]], dtype=kind))
    np.savez(tmp_path / "x.npz", sequence=SEQUENCES, embedding=rows)
    found = read_vectors(tmp_path / "x.npz", dim=2).rows
    assert found.dtype == np.dtype(np.float32)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(bits(found), bits(rows.astype(np.float32)))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"sequence": np.array(SEQUENCES, object)},
            r"Object arrays .*=np\.array\(sequences",
        ),
        ({"sequence": np.arange(3)}, "'sequence' is int64 .* where text"),
        ({"sequence": np.array([SEQUENCES])}, r"'sequence' has the shape \(1, 3\)"),
        ({"sequence": SEQUENCES[:2]}, r"\(2,\) and 'embedding' \(3, 3\), .* one row for each"),
        ({"embedding": np.zeros((3, 4))}, r"\(3, 4\), where \(n,\) and \(n, 3\) .* the model"),
        ({"embedding": np.zeros(9)}, r"'embedding' \(9,\)"),
        ({"embedding": np.zeros((3, 3), int)}, "'embedding' is int64, where text and float32"),
        ({"embedding": np.diag([1, np.nan, 1])}, "row 1: component 1 of the vector is nan"),
        ({"embedding": np.diag([1, 1, 1e300])}, "row 2: component 2 of the vector is inf"),
        ({"embedding": np.zeros((0, 3)), "sequence": np.array([], "U1")}, "holds no sequences"),
    ],
)
def test__npz__refused(tmp_path, arrays, message):
    arrays = {"sequence": SEQUENCES, "embedding": some_rows()} | arrays
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=message):
        read_vectors(tmp_path / "x.npz", dim=DIM)


def test__npz__missing_array(tmp_path):
    np.savez(tmp_path / "x.npz", sequences=SEQUENCES, embedding=some_rows())
    with pytest.raises(InputError, match=r"holds 'sequences', 'embedding'. Write it with np\.sav"):
        read_vectors(tmp_path / "x.npz", dim=DIM)


def test__npz__damaged(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, sequence=SEQUENCES, embedding=some_rows(3, 50))
    whole = path.read_bytes()
    place = whole.index(b"embedding.npy") + 60
    for contents in [b"", b"no zip", whole[:-30], whole[:place] + b"????" + whole[place + 4 :]]:
        path.write_bytes(contents)
        with pytest.raises(InputError, match=r"cannot be read .* damaged"):
            read_vectors(path, dim=50)


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "X.CSV"])
def test__csv__as_users_write_it(tmp_path, name):
    rows = some_rows()
    header = ["id", "f0", "sequence", "f1", "label", "f2"]
    table = [
        [f"P{i}", row[0], sequence, row[1], "toxic", row[2]]
        for i, (sequence, row) in enumerate(zip(SEQUENCES, rows, strict=True))
    ]
    vectors = read_vectors(written_csv(tmp_path / name, header, *table, []), dim=DIM)
    assert vectors.sequences == SEQUENCES
    assert vectors.rows.dtype == np.float32
    np.testing.assert_array_equal(bits(vectors.rows), bits(rows))


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 4)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
def test__csv__text_of_a_float32_is_the_same_float32(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    header = ["sequence", *map(str, range(rows.shape[1]))]
    written_csv(path, header, *(["ACD", *row] for row in rows))
    np.testing.assert_array_equal(bits(read_vectors(path, dim=rows.shape[1]).rows), bits(rows))


def test__csv__byte_order_mark_quotes_and_other_line_ends(tmp_path):
    text = '\ufeffsequence,f0,f1\r\n"ACD","1.5", 2e-3\r\n\r\nAÄ,3,4'
    (tmp_path / "x.csv").write_bytes(text.encode())
    vectors = read_vectors(tmp_path / "x.csv", dim=2)
    assert vectors.sequences == ["ACD", "AÄ"]  # which residues there are is not said here
    np.testing.assert_array_equal(vectors.rows, np.array([[1.5, 2e-3], [3, 4]], np.float32))


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("seq,a,b", "ACD,1,2", r"needs one column 'sequence', .* are 'seq', 'a', 'b'"),
        ("sequence;a;b", "ACD;1;2", "are 'sequence;a;b'.* separate them by commas"),
        ("sequence,sequence,a,b", "A,A,1,2", "needs one column 'sequence'"),
        ("sequence,a", "ACD,1", "has 1 columns besides .* has 2 components. They are 'a'"),
        (",sequence,a,b", "0,ACD,1,2", "has 3 columns .* They are '', 'a', 'b'. Remove"),
        ("sequence,a,b", "ACD,1", r"row 1 \(line 3\): there are 2 cells under 3 columns"),
        ("sequence,a,b", "ACD,1,2,3", r"row 1 \(line 3\): there are 4 cells under 3 columns"),
        ("sequence,a,b", "ACD,1,x", r"row 1 \(line 3\): 'x' in the column 'b' is no number"),
        ("sequence,a,b", "ACD,,2", r"row 1 \(line 3\): '' in the column 'a' is no number"),
        ("sequence,a,b", "ACD,1,nan", "row 1: component 1 of the vector is nan"),
        ("sequence,a,b", "ACD,1e300,2", "row 1: component 0 of the vector is inf"),
        ("sequence,a,b", "A" * 200_000 + ",1,2", "cannot be read .*field larger than"),
    ],
)
def test__csv__refused(tmp_path, header, row, message):
    good = ",".join("1" for _ in header.split(","))
    (tmp_path / "x.csv").write_text(f"{header}\n{good}\n{row}\n")
    with pytest.raises(InputError, match=message):
        read_vectors(tmp_path / "x.csv", dim=2)


def test__csv__many_columns_are_shown_from_both_ends(tmp_path):
    path = written_csv(tmp_path / "x.csv", ["sequence", "organism", *range(100), "note"])
    with pytest.raises(InputError, match=r"'organism', '0', '1', '2', .*, '98', '99', 'note'\."):
        read_vectors(path, dim=100)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "its columns are none"), ("sequence,a,b\n", "holds no sequences")],
)
def test__csv__empty(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_vectors(tmp_path / "x.csv", dim=2)


@pytest.mark.parametrize("end", [5, 30, -3])
def test__csv__cut_short(tmp_path, end):
    header, row = ["sequence", *range(50)], ["ACD", *some_rows(1, 50)[0]]
    path = written_csv(tmp_path / "x.csv.gz", header, row)
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(InputError, match=r"cannot be read .* damaged"):
        read_vectors(path, dim=50)


@pytest.mark.parametrize("name", ["x", "x.h5", "x.parquet", "x.npz.gz"])
def test__read_vectors__other_endings(tmp_path, name):
    with pytest.raises(InputError, match=r"ends in .* \.parquet, .* \.npz, \.csv or \.csv\.gz"):
        read_vectors(tmp_path / name, dim=DIM)


@pytest.mark.parametrize("name", ["x.npz", "x.csv", "x.csv.gz"])
def test__read_vectors__no_such_file(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name):
        read_vectors(tmp_path / name, dim=DIM)
    (tmp_path / name).mkdir()
    with pytest.raises(OSError, match=name):
        read_vectors(tmp_path / name, dim=DIM)
