"""Parquet from anywhere: what would fill the memory is refused, and what only repeats is read."""

from __future__ import annotations

import inspect
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from esm2_features._arrow import FooterError, batches_of, cells_of, open_parquet
from esm2_features._inputs.tables import open_table
from esm2_features.distributed.sources import InputFile, Reading
from esm2_features.exceptions import InputError


def repeated(value, n):
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([value]))


def write(path, **columns):
    """Write one row group, with a page for each column."""
    table = pa.table(columns)
    one_page = {
        "write_statistics": False,
        "write_batch_size": len(table),
        "data_page_size": 1 << 30,
    }
    if "max_rows_per_page" in inspect.signature(pq.ParquetWriter).parameters:
        one_page["max_rows_per_page"] = len(table)
    pq.write_table(table, path, row_group_size=len(table), compression="zstd", **one_page)
    return path


def of_table(path):
    with open_table(str(path), "parquet") as table:
        return sum(len(cells) == 1 for _, cells in table.rows)


def of_source(path):
    found = list(Reading(InputFile(path, "x"), 1000, lambda number: True))
    for one in found:
        if one.error is not None:
            raise one.error
    return sum(len(one.sequences) for one in found)


READERS = pytest.mark.parametrize("read", [of_table, of_source])


@READERS
def test__parquet__of_millions_of_rows_in_few_bytes_is_refused(tmp_path, read):
    path = write(tmp_path / "x.parquet", sequence=repeated("MKTAYIAKQR", 3_000_000))
    assert path.stat().st_size < 3000
    with pytest.raises(InputError, match=r"promises 3,000,000 rows, more than a real file of"):
        read(path)


@READERS
def test__parquet__that_unpacks_to_a_long_text_is_refused(tmp_path, read):
    path = write(tmp_path / "x.parquet", sequence=pa.array(["A" * (66 << 20)]))
    with pytest.raises(InputError, match=r"promises 69,\d\d\d,\d\d\d unpacked bytes"):
        read(path)


@READERS
def test__parquet__in_which_all_rows_are_alike_is_read_in_little_memory(tmp_path, read):
    path = write(tmp_path / "x.parquet", sequence=repeated("A" * 10_000, 40_000))
    assert path.stat().st_size < 3000
    tracemalloc.start()
    assert read(path) == 40_000  # 400 MB, if each were a text of its own
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@READERS
def test__parquet__without_values_is_read(tmp_path, read):
    path = write(tmp_path / "x.parquet", sequence=pa.nulls(500_000, pa.string()))
    assert read(path) == 500_000


@READERS
@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "large_binary"])
def test__parquet__of_any_kind_of_text_is_the_same(tmp_path, read, kind):
    texts = pa.array(["MKT", "AYI", "MKT", None] * 10).cast(kind)
    pq.write_table(pa.table({"sequence": texts}), tmp_path / "x.parquet", row_group_size=7)
    assert read(tmp_path / "x.parquet") == 40
    with (tmp_path / "x.parquet").open("rb") as stream:
        file = open_parquet(stream, "Reading Parquet")
        found = [cell for batch in batches_of(file, ["sequence"]) for cell in cells_of(batch[0])]
    assert found == texts.to_pylist()


def test__batches__are_small_where_rows_are_large(tmp_path):
    rows = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(2e7, dtype=np.float32)), 80_000)
    pq.write_table(pa.table({"x": rows}), tmp_path / "x.parquet", use_dictionary=False)
    with open_parquet(tmp_path / "x.parquet", "Reading Parquet") as file:
        sizes = [batch.nbytes for batch in batches_of(file, ["x"])]
    assert sum(sizes) >= 8e7
    assert max(sizes) < 1.1 * (1 << 26) < sum(sizes)


def test__footer__that_contradicts_itself(tmp_path):
    path = write(tmp_path / "x.parquet", sequence=pa.array(["MKT"] * 100))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"\xc8\x01", b"\xc6\x01", whole.count(b"\xc8\x01") - 1))
    with pytest.raises((FooterError, OSError)):
        open_parquet(path, "Reading Parquet")
