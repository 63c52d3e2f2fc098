"""Inputs and their ranges of records, and the errors of what cannot be read."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_helpers import fasta, peptides

from esm2_features.distributed.sources import Reading, check_columns, find_sources, repeated
from esm2_features.exceptions import InputError


def everything(_):
    return True


def read(path, size, wanted=everything, **columns):
    [source] = find_sources([path], **columns)
    reading = Reading(source, size, wanted)
    return list(reading), reading


@pytest.fixture
def table(tmp_path):
    """Row groups of 4, 4 and 2 rows."""
    path = tmp_path / "t.parquet"
    columns = {"id": [f"r{i}" for i in range(10)], "sequence": ["MKT" + "A" * i for i in range(10)]}
    pq.write_table(pa.table(columns), path, row_group_size=4)
    return path


# ------------------------------------------------------------------ names of inputs


def test__folder__means_its_fasta_and_parquet_files_in_order(tmp_path, table):
    for name in ("b.fasta.zst", "a.fa", "c.faa.gz", "notes.txt", ".hidden.fasta"):
        (tmp_path / name).write_text(">x\nMKT\n")
    (tmp_path / "sub.fasta").mkdir()
    names = [source.path.name for source in find_sources([tmp_path])]
    assert names == ["a.fa", "b.fasta.zst", "c.faa.gz", "t.parquet"]


def test__pattern__means_the_matching_files_each_once(tmp_path):
    for name in ("b.fasta", "a.fasta", "c.fa"):
        (tmp_path / name).write_text(">x\nMKT\n")
    found = find_sources([tmp_path / "*.fasta", tmp_path / "a.fasta", tmp_path / "c.fa"])
    assert [source.path.name for source in found] == ["a.fasta", "b.fasta", "c.fa"]


def test__file_of_several_names__is_read_once_under_the_first(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    path = fasta(tmp_path / "in/b.fasta", peptides(1))
    shutil.copy(path, tmp_path / "in/copy.fasta")
    (tmp_path / "a.fasta").symlink_to(path)
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    os.link(path, tmp_path / "hard.fasta")
    monkeypatch.chdir(tmp_path)
    for name in (
        *("a.fasta", "hard.fasta", "./in/b.fasta", "in/../in/b.fasta", "in//b.fasta"),
        *(path, tmp_path / "in", "in", "linked", "linked/b.fasta", "in/b*"),
    ):
        [source, *others] = find_sources(["in/b.fasta", name])
        assert (source.path, source.stem) == (Path("in/b.fasta"), "b")
        assert [one.path.name for one in others] in ([], ["copy.fasta"]), name
    assert [one.path.name for one in find_sources(["hard.fasta", "in"])] == [
        "hard.fasta",
        "copy.fasta",
    ]
    assert repeated(["in/b.fasta", "a.fasta", "in/b.fasta", "in/copy.fasta"]) == [
        "a.fasta is the same file as in/b.fasta"
    ]


def test__file_with_a_pattern_in_its_name__is_that_file(tmp_path):
    path = fasta(tmp_path / "a[1].fasta", peptides(1))
    (tmp_path / "a1.fasta").touch()
    assert [source.path for source in find_sources([path])] == [path]


def test__stems__are_unique_and_not_hidden(tmp_path):
    for name in ("a.fasta", "a.fa.gz", "_a.faa", "..fasta"):
        (tmp_path / name).touch()
    found = find_sources(tmp_path / name for name in ("a.fasta", "a.fa.gz", "_a.faa", "..fasta"))
    assert [source.stem for source in found] == ["a", "a-2", "a-3", "input"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("-", "Standard input cannot be cut"),
        ("none.fasta", "there is no such file"),
        ("*.fasta", "No file matches"),
        (".", "holds no file that ends in"),
    ],
)
def test__missing_input__is_an_error(tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        find_sources([given])


# ------------------------------------------------------------------ FASTA


@pytest.mark.parametrize(("n", "sizes"), [(0, []), (3, [3]), (4, [4]), (9, [4, 4, 1])])
def test__fasta__is_cut_every_so_many_records(tmp_path, n, sizes):
    sequences = peptides(n)
    ranges, reading = read(fasta(tmp_path / "a.fasta", sequences), 4)
    assert [len(records.ids) for records in ranges] == sizes
    assert [records.first for records in ranges] == [0, 4, 8][: len(sizes)]
    assert [(i, s) for p in ranges for i, s in zip(p.ids, p.sequences, strict=True)] == list(
        sequences.items()
    )
    assert (reading.n_records, reading.n_ranges) == (n, len(sizes))


def test__fasta__yields_the_wanted_ranges(tmp_path):
    path = fasta(tmp_path / "a.fasta", peptides(9))
    ranges, reading = read(path, 2, lambda number: number in (1, 4))
    assert [(records.number, records.ids) for records in ranges] == [(1, ["p2", "p3"]), (4, ["p8"])]
    assert (reading.n_records, reading.n_ranges) == (9, 5)


def test__fasta_of_known_length__is_read_to_the_last_wanted_range(tmp_path):
    path = tmp_path / "a.fasta.gz"
    text = fasta(tmp_path / "a.fasta", peptides(20_000)).read_bytes()
    path.write_bytes(gzip.compress(text)[:-9])  # the end is damaged
    [source] = find_sources([path])
    assert [p.number for p in Reading(source, 100, lambda n: n == 1, total=200)] == [1]
    with pytest.raises(InputError, match="cannot be read to its end"):
        list(Reading(source, 100, lambda n: n == 1))


def test__invalid_record__is_an_error_alone(tmp_path):
    path = tmp_path / "a.fasta"
    path.write_text(">a\nMKT\n>b\n>c\nMKT\n>\nMKT\n>d\nMKT\n>e\nMKT\n")
    ranges, reading = read(path, 2)
    assert [records.error for records in ranges] == [None] * 3
    assert [list(records.errors) for records in ranges] == [[1], [3], []]
    assert "record 2 ('b') has no residues" in str(ranges[0].errors[1])
    assert "record 4 has no id" in str(ranges[1].errors[3])
    assert reading.n_ranges == 3


def test__id_that_occurs_twice__is_allowed(tmp_path):
    path = tmp_path / "a.fasta"
    path.write_text(">a\nMKT\n>a\nMKV\n")
    assert read(path, 5)[0][0].ids == ["a", "a"]


# ------------------------------------------------------------------ Parquet


def test__parquet__is_cut_at_row_groups_and_within_large_ones(table):
    ranges, reading = read(table, 3)
    assert [len(records.ids) for records in ranges] == [3, 1, 3, 1, 2]
    assert [records.first for records in ranges] == [0, 3, 4, 7, 8]
    assert [name for records in ranges for name in records.ids] == [f"r{i}" for i in range(10)]
    assert (reading.n_records, reading.n_ranges) == (10, 5)
    wanted, _ = read(table, 3, lambda number: number == 3)
    assert [records.ids for records in wanted] == [["r7"]]


def test__parquet__columns_can_have_other_names_and_ids_be_numbers(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"n": [7, 8], "text": ["MKT", None]}), path)
    [records], _ = read(path, 3, sequence_column="text", id_column="n")
    assert (records.ids, records.sequences) == (["7", "8"], ["MKT", None])


def test__parquet_without_the_column__is_an_error(table):
    [source] = find_sources([table], sequence_column="seq")
    with pytest.raises(
        InputError, match=r"should have the column 'seq' once.* id, sequence\. .*: --column"
    ):
        check_columns(source)


def test__parquet_without_an_id__is_an_error_of_its_row(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": ["a", None, "c"], "sequence": ["MKT"] * 3}), path)
    ranges, _ = read(path, 2)
    assert "row 1 has no value in the column 'id'" in str(ranges[0].errors[1])
    assert not ranges[1].errors


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(2)])
def test__parquet_with_binary_columns__holds_their_text(tmp_path, kind):
    path = tmp_path / "t.parquet"
    ids = pa.array([b"i0", b"\xff1", b"i2"], kind)
    pq.write_table(pa.table({"id": ids, "sequence": [b"MKT"] * 3}), path)
    [records], _ = read(path, 3, id_column="id")
    assert records.ids == ["i0", "", "i2"]
    assert list(records.errors) == [1]
    assert r"the id of row 1, '\udcff1', is not UTF-8" in str(records.errors[1])


def test__parquet_with_a_damaged_row_group__is_the_error_of_its_ranges(table):
    content = bytearray(table.read_bytes())
    start = pq.ParquetFile(table).metadata.row_group(1).column(1).dictionary_page_offset
    content[start : start + 8] = b"\xff" * 8
    table.write_bytes(content)
    ranges, _ = read(table, 3)
    assert [records.error is None for records in ranges] == [True, True, False, False, True]
    assert "row group 1: cannot be read" in str(ranges[2].error)


def test__file_that_is_no_parquet__cannot_be_read(tmp_path):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 nothing")
    [source] = find_sources([path])
    check_columns(source)  # told when its turn comes
    with pytest.raises(InputError, match="cannot be read"):
        list(Reading(source, 3, everything))


def test__digest__differs_between_ranges(tmp_path):
    def digest(text):
        path = tmp_path / "a.fasta"
        path.write_text(text)
        return read(path, 9)[0][0].digest()

    texts = [">a\nMKT\n", ">b\nMKT\n", ">a\nMKV\n", ">a\nMK\n>T\nM\n", ">a\nM\n>T\nMK\n"]
    assert len(set(map(digest, texts))) == len(texts)
    assert digest(">a x\nM\nKT\n") == digest(">a\nMKT\n")
