"""Containers of every kind give the same columns, or an error that says what to pass."""

from __future__ import annotations

import collections
import csv
import io
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from Bio.Align import MultipleSeqAlignment
from Bio.Seq import MutableSeq, Seq
from Bio.SeqRecord import SeqRecord
from scipy import sparse

from esm2_features._inputs.cells import is_missing
from esm2_features._inputs.containers import columns, single_column
from esm2_features._inputs.fasta import FastaRecord
from esm2_features._inputs.residues import normalise
from esm2_features.exceptions import (
    InputError,
)

StringDType = getattr(np.dtypes, "StringDType", None)  # since NumPy 2
SEQUENCES = ["MKTAYIAKQR", "GSHMVLSEGE", "ACDEFGHIKL"]
LIGHT = ["DIQMTQ", "EIVLTQ", "QSALTQ"]


def read(X):
    """Every column of X, normalised: what the library goes on with."""
    return [
        (name, [normalise(cell, index=i) for i, cell in enumerate(cells)])
        for name, cells, *_ in columns(X, owner="Test")
    ]


ONE_UNNAMED_COLUMN = {
    "list": SEQUENCES,
    "tuple": tuple(SEQUENCES),
    "deque": collections.deque(SEQUENCES),
    "dict values": dict(enumerate(SEQUENCES)).values(),
    "dict keys": dict.fromkeys(SEQUENCES).keys(),
    "list of str_": list(np.array(SEQUENCES)),
    "list of bytes": [s.encode() for s in SEQUENCES],
    "list of Seq": [Seq(s) for s in SEQUENCES],
    "list of MutableSeq": [MutableSeq(s) for s in SEQUENCES],
    "list of SeqRecord": [SeqRecord(Seq(s), id="x") for s in SEQUENCES],
    "list of FastaRecord": [FastaRecord("x", "x", s) for s in SEQUENCES],
    "list of named tuples": [collections.namedtuple("Row", "id seq")("x", s) for s in SEQUENCES],
    "list of any .seq": [SimpleNamespace(seq=s) for s in SEQUENCES],
    "alignment": MultipleSeqAlignment([SeqRecord(Seq(s), id="x") for s in SEQUENCES]),
    "rows of one chain": [[s] for s in SEQUENCES],
    "rows that are arrays": [np.array([s]) for s in SEQUENCES],
    "array U": np.array(SEQUENCES),
    "array S": np.array(SEQUENCES, dtype="S"),
    "array object": np.array(SEQUENCES, dtype=object),
    **({"array StringDType": np.array(SEQUENCES, dtype=StringDType())} if StringDType else {}),
    "array (n, 1)": np.array(SEQUENCES)[:, None],
    "array masked": np.ma.array(SEQUENCES),
    "array not contiguous": np.array(SEQUENCES * 2, dtype=object)[::2][[0, 2, 1]],
    "Series without name": pd.Series(SEQUENCES),
    "Series with a number as name": pd.Series(SEQUENCES, name=0),
    "Series with rows called seq, name and columns": pd.Series(
        SEQUENCES, index=["seq", "name", "columns"]
    ),
    "Index": pd.Index(SEQUENCES),
    "pandas array": pd.array(SEQUENCES, dtype="string"),
    "Categorical": pd.Categorical(SEQUENCES),
    "Polars Series without name": pl.Series(SEQUENCES),
    "Arrow array": pa.array(SEQUENCES),
    "Arrow dictionary array": pa.array(SEQUENCES).dictionary_encode(),
    "Arrow large strings": pa.array(SEQUENCES, pa.large_string()),
    "Arrow chunked array": pa.chunked_array([SEQUENCES[:1], SEQUENCES[1:]]),
    "frame with a number as name": pd.DataFrame({0: SEQUENCES}),
}

ONE_NAMED_COLUMN = {
    **{
        f"Series {dtype}": pd.Series(SEQUENCES, name="seq", dtype=dtype)
        for dtype in (object, "str", "string", "string[python]", "string[pyarrow]", "category")
    },
    "Series ArrowDtype": pd.Series(SEQUENCES, name="seq", dtype=pd.ArrowDtype(pa.string())),
    "Series with another index": pd.Series(SEQUENCES, name="seq", index=[7, 7, 3]),
    "Index": pd.Index(SEQUENCES, name="seq"),
    "Polars Series": pl.Series("seq", SEQUENCES),
    "Polars Series categorical": pl.Series("seq", SEQUENCES, dtype=pl.Categorical),
    "frame": pd.DataFrame({"seq": SEQUENCES}),
    "frame category": pd.DataFrame({"seq": pd.Categorical(SEQUENCES)}),
    "Polars frame": pl.DataFrame({"seq": SEQUENCES}),
    "Arrow table": pa.table({"seq": SEQUENCES}),
    "Arrow record batch": pa.RecordBatch.from_pydict({"seq": SEQUENCES}),
}

TWO_NAMED_COLUMNS = {
    "frame": pd.DataFrame({"HEAVY": SEQUENCES, "LIGHT": LIGHT}),
    "frame with another index": pd.DataFrame(
        {"HEAVY": SEQUENCES, "LIGHT": LIGHT}, index=["seq", "b", "c"]
    ),
    "Polars frame": pl.DataFrame({"HEAVY": SEQUENCES, "LIGHT": LIGHT}),
    "Arrow table": pa.table({"HEAVY": SEQUENCES, "LIGHT": LIGHT}),
}

TWO_UNNAMED_COLUMNS = {
    "array U": np.array([SEQUENCES, LIGHT]).T,
    "array object": np.array([SEQUENCES, LIGHT], dtype=object).T,
    "list of lists": [list(pair) for pair in zip(SEQUENCES, LIGHT, strict=True)],
    "tuple of lists": tuple([*row] for row in zip(SEQUENCES, LIGHT, strict=True)),
    "frame with numbers as names": pd.DataFrame({0: SEQUENCES, 1: LIGHT}),
    "frame with levels of names": pd.DataFrame({("a", "b"): SEQUENCES, ("a", "c"): LIGHT}),
}


def parametrize(cases):
    return pytest.mark.parametrize("X", cases.values(), ids=cases.keys())


@parametrize(ONE_UNNAMED_COLUMN)
def test__columns__one_unnamed_column(X):
    [(name, sequences)] = read(X)
    assert name is None
    assert sorted(sequences) == sorted(SEQUENCES)
    assert sequences[0] == SEQUENCES[0]


@parametrize(ONE_NAMED_COLUMN)
def test__columns__one_named_column(X):
    assert read(X) == [("seq", SEQUENCES)]


@parametrize(TWO_NAMED_COLUMNS)
def test__columns__names_of_a_frame_are_names_and_never_sequences(X):
    assert read(X) == [("HEAVY", SEQUENCES), ("LIGHT", LIGHT)]


@parametrize(TWO_UNNAMED_COLUMNS)
def test__columns__two_unnamed_columns(X):
    assert read(X) == [(None, SEQUENCES), (None, LIGHT)]


def test__columns__pandas_frame_with_a_name_twice():
    frame = pd.DataFrame(list(zip(SEQUENCES, LIGHT, strict=True)), columns=["chain", "chain"])
    assert read(frame) == [("chain", SEQUENCES), ("chain", LIGHT)]


def test__columns__arrow_table_with_a_name_twice():
    table = pa.table([pa.array(SEQUENCES), pa.array(LIGHT)], names=["chain", "chain"])
    assert read(table) == [("chain", SEQUENCES), ("chain", LIGHT)]


def test__columns__frame_whose_columns_are_called_like_what_is_asked_of_containers():
    names = ["seq", "collect", "nnz", "iloc", "shape", "to_list", "column_names"]
    frame = pd.DataFrame(dict.fromkeys(names, SEQUENCES))
    assert read(frame) == [(name, SEQUENCES) for name in names]


def test__columns__leaves_the_container_as_it_is():
    rows = [["MKT", None], ["GSH", "ACD"]]
    columns(rows, owner="Test")
    assert rows == [["MKT", None], ["GSH", "ACD"]]


MISSING = {
    "list": [None, "MKT"],
    "list nan": [float("nan"), "MKT"],
    "list NA": [pd.NA, "MKT"],
    "record without sequence": [SeqRecord(None), "MKT"],
    "array object": np.array([np.nan, "MKT"], dtype=object),
    "array masked": np.ma.array(["GSH", "MKT"], mask=[True, False]),
    **{
        f"StringDType {name}": np.array([value, "MKT"], dtype=StringDType(na_object=value))
        for name, value in (("nan", np.nan), ("None", None), ("any", Ellipsis))
        if StringDType
    },
    **{
        f"Series {dtype}": pd.Series([None, "MKT"], dtype=dtype)
        for dtype in (object, "str", "string", "string[pyarrow]", "category")
    },
    "Series ArrowDtype": pd.Series([None, "MKT"], dtype=pd.ArrowDtype(pa.string())),
    "frame": pd.DataFrame({"seq": [None, "MKT"]}),
    "Polars Series": pl.Series([None, "MKT"]),
    "Polars frame": pl.DataFrame({"seq": [None, "MKT"]}),
    "Arrow array": pa.array([None, "MKT"]),
    "Arrow table": pa.table({"seq": [None, "MKT"]}),
    "rows": [[None], ["MKT"]],
}


@parametrize(MISSING)
def test__columns__missing_values_are_cells_that_are_missing(X):
    [column] = columns(X, owner="Test")
    assert [is_missing(cell) for cell in column.values] == [True, False]
    assert normalise(column.values[1], index=1) == "MKT"


def test__columns__a_column_without_any_value_is_missing_values_and_not_numbers():
    [column] = columns(pd.DataFrame({"seq": [np.nan, np.nan]}), owner="Test")
    assert all(map(is_missing, column.values))


SPARSE = sparse.csr_matrix(np.eye(3))
NO_CONTAINER = {
    "str": ("MKT", "a single string. Pass a list: [sequence]; for a file, read_fasta(path)."),
    "bytes": (b"MKT", "a single string. Pass a list: [sequence]; for a file, read_fasta(path)."),
    "str_": (np.str_("MKT"), "a single string."),
    "Seq": (Seq("MKT"), "a single Seq. Pass a list: [record]."),
    "SeqRecord": (SeqRecord(Seq("MKT")), "a single SeqRecord. Pass a list: [record]."),
    "dict": ({"a": "MKT"}, "a dict. Pass its sequences: list(d.values())."),
    "dict items": ({"a": "MKT"}.items(), "a dict_items. Pass its sequences: list(d.values())."),
    "set": ({"MKT"}, "a set, which has no order. Pass a list: sorted(sequences)."),
    "frozenset": (frozenset({"MKT"}), "a frozenset, which has no order."),
    "path": (Path("a.fasta"), "a path. Pass what is in the file: read_fasta(path)."),
    "generator": ((s for s in SEQUENCES), "a generator, which the first look would use up. "),
    "map": (map(str.upper, SEQUENCES), "a map, which the first look would use up. Pass a list: "),
    "open file": (io.StringIO(">a\nMKT"), "a StringIO, which the first look would use up. "),
    "sparse matrix": (SPARSE, "sparse data. Pass sequences as text."),
    "sparse array": (sparse.coo_array(SPARSE), "sparse data. Pass sequences as text."),
    "None": (None, "NoneType. Pass a list of sequences, a Series or a data frame."),
    "int": (3, "int. Pass a list of sequences, a Series or a data frame."),
    "lazy frame": (
        pl.LazyFrame({"seq": SEQUENCES}),
        "a LazyFrame, whose rows are not computed yet. Pass X.collect().",
    ),
    "0-D array": (np.array("MKT"), "an array of 0 dimensions. Pass one dimension (sequences), "),
    "3-D array": (np.full((2, 2, 2), "MKT"), "an array of 3 dimensions. Pass one dimension "),
    "numbers": ([1, 2], "a column holds numbers (such as 1). Select the columns that hold "),
    "range": (range(3), "a column holds numbers (such as 0)."),
    "numbers after a missing value": ([None, 2.5], "a column holds numbers (such as 2.5)."),
    "number array": (np.arange(3), "a column holds numbers (such as 0)."),
    "number array 2-D": (np.ones((3, 2)), "a column holds numbers (such as 1.0)."),
    "booleans": (pd.Series([True]), "a column holds numbers (such as True)."),
    "column of numbers": (
        pd.DataFrame({"seq": ["MKT"], "mass": [1.5]}),
        "column 'mass' holds numbers (such as 1.5). Select the columns that hold sequences: "
        "X[['seq']].",
    ),
    "Polars numbers": (pl.Series("mass", [1.5]), "column 'mass' holds numbers (such as 1.5)."),
    "Arrow numbers": (pa.array([1, 2]), "a column holds numbers (such as 1)."),
}


@pytest.mark.parametrize(("X", "message"), NO_CONTAINER.values(), ids=NO_CONTAINER.keys())
def test__columns__what_is_no_container_of_sequences(X, message):
    with pytest.raises(TypeError) as caught:
        columns(X, owner="Test")
    assert str(caught.value).startswith("Test ")
    assert message in str(caught.value)


def test__columns__whole_message_of_a_single_string():
    with pytest.raises(TypeError) as caught:
        columns("MKT", owner="ESM2Transformer")
    assert str(caught.value) == (
        "ESM2Transformer needs protein sequences, one for each row, but got a single string. "
        "Pass a list: [sequence]; for a file, read_fasta(path)."
    )


def test__columns__names_that_are_strings_in_part():
    frame = pd.DataFrame({"heavy": SEQUENCES, 1: LIGHT})
    with pytest.raises(TypeError, match="Feature names are only supported if all input features"):
        columns(frame, owner="Test")


WITH_REGIONS = {
    "frame": pd.DataFrame({"seq": SEQUENCES, "site": [2, 3, 4]}),
    "Polars frame": pl.DataFrame({"seq": SEQUENCES, "site": [2, 3, 4]}),
    "Arrow table": pa.table({"seq": SEQUENCES, "site": [2, 3, 4]}),
}


@parametrize(WITH_REGIONS)
def test__columns__regions_may_be_numbers(X):
    found = columns(X, owner="Test", region="site")
    assert [column[:2] for column in found] == [("seq", SEQUENCES), ("site", [2, 3, 4])]
    with pytest.raises(TypeError, match="column 'site' holds numbers"):
        columns(X, owner="Test")


LISTS = {
    "frame": pd.DataFrame({"seq": SEQUENCES, "site": [[2, 3], [4], [5]]}),
    "Polars frame": pl.DataFrame({"seq": SEQUENCES, "site": [[2, 3], [4], [5]]}),
    "Arrow table": pa.table({"seq": SEQUENCES, "site": [[2, 3], [4], [5]]}),
}


@parametrize(LISTS)
def test__columns__regions_may_be_lists(X):
    [_, (name, cells, *_)] = columns(X, owner="Test", region="site")
    assert name == "site"
    assert cells == [[2, 3], [4], [5]]


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.array([["MKT", 1]], dtype=object), "the columns of X have no names"),
        (pd.DataFrame({"seq": ["MKT"]}), "no column of this name; it has ['seq']"),
        (pd.DataFrame({"site": [1]}), "there must be exactly one of sequences"),
        (
            pd.DataFrame({"heavy": ["MKT"], "light": ["MKT"], "site": [1]}),
            "use a ColumnTransformer with one transformer for each chain and its regions",
        ),
    ],
    ids=["no names", "absent", "alone", "beside two"],
)
def test__columns__regions_stand_beside_one_column_of_sequences(X, message):
    with pytest.raises(InputError, match="Got region='site'") as caught:
        columns(X, owner="Test", region="site")
    assert message in str(caught.value)


NO_ROWS = {
    "list": ([], "(0,)"),
    "tuple": ((), "(0,)"),
    "array": (np.array([], dtype=str), "(0,)"),
    "array of numbers": (np.empty((0, 3)), "(0, 3)"),
    "Series": (pd.Series([], dtype=str), "(0,)"),
    "frame": (pd.DataFrame({"a": [], "b": []}), "(0, 2)"),
    "Polars Series": (pl.Series([], dtype=pl.String), "(0,)"),
    "Polars frame": (pl.DataFrame({"a": []}), "(0, 1)"),
    "Arrow array": (pa.array([], pa.string()), "(0,)"),
    "Arrow table": (pa.table({"a": []}), "(0, 1)"),
}


@pytest.mark.parametrize(("X", "shape"), NO_ROWS.values(), ids=NO_ROWS.keys())
def test__columns__no_rows(X, shape):
    with pytest.raises(InputError) as caught:
        columns(X, owner="Test")
    assert str(caught.value) == (
        f"Found array with 0 sample(s) (shape={shape}) while a minimum of 1 is required by Test."
    )


NO_COLUMNS = {
    "array": (np.empty((12, 0)), "(12, 0)"),
    "frame": (pd.DataFrame(index=range(12)), "(12, 0)"),
    "frame without rows": (pd.DataFrame(), "(0, 0)"),
    "Polars frame": (pl.DataFrame(), "(0, 0)"),
    "Arrow table": (pa.table({}), "(0, 0)"),
    "rows": ([[], []], "(2, 0)"),
}


@pytest.mark.parametrize(("X", "shape"), NO_COLUMNS.values(), ids=NO_COLUMNS.keys())
def test__columns__no_columns(X, shape):
    with pytest.raises(InputError) as caught:
        columns(X, owner="Test")
    assert str(caught.value) == (
        f"Found array with 0 feature(s) (shape={shape}) while a minimum of 1 is required by Test."
    )


def test__columns__label_and_sequence_pairs_are_not_taken_for_two_chains():
    with pytest.raises(InputError, match=r"\[sequence for label, sequence in rows\]"):
        columns([("protein", "MKTV"), ("other", "ACD")], owner="Test")


def test__columns__rows_of_different_lengths():
    with pytest.raises(InputError) as caught:
        columns([list("MKT"), list("MKT"), list("GSHM")], owner="Test")
    assert str(caught.value) == (
        "Row 0 has 3 chains, but row 2 has 4. Give every row the same number, with None for a "
        "chain that is missing. If a row is one sequence, letter by letter, join them: "
        '["".join(row) for row in X].'
    )


def test__columns__rows_and_sequences_mixed():
    with pytest.raises(InputError, match="lists of chains, but row 1 is a str"):
        columns([["MKT", "GSH"], "MKT"], owner="Test")


def test__module__imports_no_library_of_containers():
    code = (
        "import sys; from esm2_features._inputs.residues import normalise; "
        "from esm2_features._inputs.containers import columns; "
        "normalise(columns(['MKT'], owner='Test')[0].values[0], index=0); "
        "print(sorted({'torch', 'pandas', 'polars', 'pyarrow', 'Bio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


class Relation:
    """What a relation of DuckDB has that is asked for: names, and rows that can be read again."""

    def __init__(self, table):
        self._table = table

    @property
    def columns(self):
        return list(self._table)

    def fetchall(self):
        return list(zip(*self._table.values(), strict=True))

    def execute(self):
        return self

    def select(self, *names):
        return Relation({name: self._table[name] for name in names})


class Dataset:
    """What a data set of Hugging Face has that is asked for."""

    def __init__(self, table):
        self._table = table

    @property
    def column_names(self):
        return list(self._table)

    def __len__(self):
        return len(next(iter(self._table.values())))

    def __iter__(self):
        for cells in zip(*self._table.values(), strict=True):
            yield dict(zip(self._table, cells, strict=True))

    def __getitem__(self, name):
        return self._table[name]

    def select_columns(self, names):
        return Dataset({name: self._table[name] for name in names})


class StreamedDataset:
    column_names = None

    def __iter__(self):
        yield {"sequence": "MKT"}

    def select_columns(self, names):
        return self


class DaskSeries:
    def compute(self):
        return pd.Series(SEQUENCES)

    def persist(self):
        return self

    def to_list(self):
        raise AssertionError("dask would compute everything here")


class SparkFrame:
    columns = ("seq",)

    def collect(self):
        return SEQUENCES

    def toPandas(self):  # noqa: N802
        return pd.DataFrame({"seq": SEQUENCES})


TABLE = {"seq": SEQUENCES, "set": ["train", "test", "train"]}
ROWS = [dict(zip(TABLE, row, strict=True)) for row in zip(*TABLE.values(), strict=True)]
READ = {
    "DuckDB": Relation({"seq": SEQUENCES}),
    "Hugging Face": Dataset({"seq": SEQUENCES}),
    "mappings": [{"seq": sequence} for sequence in SEQUENCES],
    "csv.DictReader": list(csv.DictReader(io.StringIO("seq\n" + "\n".join(SEQUENCES)))),
}


@parametrize(READ)
def test__columns__of_other_libraries_are_read(X):
    assert read(X) == [("seq", SEQUENCES)]
    assert single_column(X, owner="Test").values == SEQUENCES
    assert read(X) == [("seq", SEQUENCES)], "and once more"


@pytest.mark.parametrize("X", [[(s,) for s in SEQUENCES], [(s.encode(),) for s in SEQUENCES]])
def test__columns__rows_of_databases_are_read(X):
    assert read(X) == [(None, SEQUENCES)]


@pytest.mark.parametrize(
    ("X", "remedy"),
    [
        (Relation(TABLE), "X.select('seq')"),
        (Dataset(TABLE), "X.select_columns(['seq'])"),
        (ROWS, "[row['seq'] for row in X]"),
    ],
    ids=["DuckDB", "Hugging Face", "mappings"],
)
def test__single_column__says_how_to_select_from_other_libraries(X, remedy):
    with pytest.raises(InputError, match="column 'set' of X holds labels") as caught:
        single_column(X, owner="Test")
    assert f": {remedy}." in str(caught.value)
    assert single_column(eval(remedy, {"X": X}), owner="Test").values == SEQUENCES


LATER = {
    "dask": (DaskSeries(), "a DaskSeries, whose rows are not computed yet. Pass X.compute()."),
    "Spark": (SparkFrame(), "a SparkFrame, whose rows are not computed yet. Pass X.toPandas()."),
    "Polars": (pl.LazyFrame({"seq": SEQUENCES}), "Pass X.collect()."),
    "splits": (
        {"train": Dataset(TABLE), "test": Dataset(TABLE)},
        "Pass one of its parts: X['train']",
    ),
    "streamed": (StreamedDataset(), '[row["sequence"] for row in X]'),
    "dict of lists": (
        {"seq": SEQUENCES},
        "Pass one of its lists, or a data frame: pandas.DataFrame(d)",
    ),
    "cursor": (sqlite3.connect(":memory:").execute("select 'MKT'"), "Pass X.fetchall()"),
}


@pytest.mark.parametrize(("X", "message"), LATER.values(), ids=LATER.keys())
def test__columns__what_has_to_be_asked_for_its_rows(X, message):
    with pytest.raises(TypeError) as caught:
        single_column(X, owner="Test")
    assert message in str(caught.value)
    followed = re.search(r"Pass (X\.\w+\(\))", message)
    if followed:
        columns(eval(followed[1], {"X": X}), owner="Test")


def test__columns__mappings_of_different_keys():
    with pytest.raises(InputError, match=r"Row 0 has the keys \['a'\], but row 1 has \['b'\]"):
        columns([{"a": "MKT"}, {"b": "MKT"}], owner="Test")


def test__columns__tuples_of_three():
    with pytest.raises(InputError) as caught:
        columns([("MKT", "train", 1)], owner="Test")
    assert "[sequence for sequence, *_ in rows]" in str(caught.value)
