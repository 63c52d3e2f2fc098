"""Inputs are found and cut as they should be, and what cannot be read is told where."""

from __future__ import annotations

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_helpers import fasta, peptides

from esm2_features.distributed.sources import Reading, check_columns, find_sources
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


# ------------------------------------------------------------------ what is meant


def test__folder__means_its_fasta_and_parquet_files_in_order(tmp_path, table):
    for name in ("b.fasta.zst", "a.fa", "c.faa.gz", "notes.txt", ".hidden.fasta"):
        (tmp_path / name).write_text(">x\nMKT\n")
    (tmp_path / "sub.fasta").mkdir()
    names = [source.path.name for source in find_sources([tmp_path])]
    assert names == ["a.fa", "b.fasta.zst", "c.faa.gz", "t.parquet"]


def test__pattern__means_the_files_it_fits_each_once(tmp_path):
    for name in ("b.fasta", "a.fasta", "c.fa"):
        (tmp_path / name).write_text(">x\nMKT\n")
    found = find_sources([tmp_path / "*.fasta", tmp_path / "a.fasta", tmp_path / "c.fa"])
    assert [source.path.name for source in found] == ["a.fasta", "b.fasta", "c.fa"]


def test__file_with_a_pattern_in_its_name__is_that_file(tmp_path):
    path = fasta(tmp_path / "a[1].fasta", peptides(1))
    (tmp_path / "a1.fasta").touch()
    assert [source.path for source in find_sources([path])] == [path]


def test__stems__differ_and_are_seen_by_readers_of_folders(tmp_path):
    for name in ("a.fasta", "a.fa.gz", "_a.faa", "..fasta"):
        (tmp_path / name).touch()
    found = find_sources(tmp_path / name for name in ("a.fasta", "a.fa.gz", "_a.faa", "..fasta"))
    assert [source.stem for source in found] == ["a", "a-2", "a-3", "input"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("-", "Standard input cannot be cut"),
        ("none.fasta", "there is no such file"),
        ("*.fasta", "No file is called like"),
        (".", "holds no file that ends in"),
    ],
)
def test__input_that_is_none__is_refused(tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        find_sources([given])


# ------------------------------------------------------------------ FASTA


@pytest.mark.parametrize(("n", "sizes"), [(0, []), (3, [3]), (4, [4]), (9, [4, 4, 1])])
def test__fasta__is_cut_every_so_many_records(tmp_path, n, sizes):
    sequences = peptides(n)
    pieces, reading = read(fasta(tmp_path / "a.fasta", sequences), 4)
    assert [len(piece.ids) for piece in pieces] == sizes
    assert [piece.first for piece in pieces] == [0, 4, 8][: len(sizes)]
    assert [(i, s) for p in pieces for i, s in zip(p.ids, p.sequences, strict=True)] == list(
        sequences.items()
    )
    assert (reading.records, reading.pieces) == (n, len(sizes))


def test__fasta__gives_what_is_wanted(tmp_path):
    path = fasta(tmp_path / "a.fasta", peptides(9))
    pieces, reading = read(path, 2, lambda number: number in (1, 4))
    assert [(piece.number, piece.ids) for piece in pieces] == [(1, ["p2", "p3"]), (4, ["p8"])]
    assert (reading.records, reading.pieces) == (9, 5)


def test__fasta_whose_end_is_known__is_read_to_the_last_wanted_piece(tmp_path):
    path = tmp_path / "a.fasta.gz"
    text = fasta(tmp_path / "a.fasta", peptides(20_000)).read_bytes()
    path.write_bytes(gzip.compress(text)[:-9])  # the end is damaged
    [source] = find_sources([path])
    assert [p.number for p in Reading(source, 100, lambda n: n == 1, known=200)] == [1]
    with pytest.raises(InputError, match="cannot be read to its end"):
        list(Reading(source, 100, lambda n: n == 1))


def test__record_that_is_wrong__is_the_error_of_its_piece_alone(tmp_path):
    path = tmp_path / "a.fasta"
    path.write_text(">a\nMKT\n>b\n>c\nMKT\n>\nMKT\n>d\nMKT\n>e\nMKT\n")
    pieces, reading = read(path, 2)
    assert [piece.error is None for piece in pieces] == [False, False, True]
    assert "record 2 ('b') has no residues" in str(pieces[0].error)
    assert "record 4 has no id" in str(pieces[1].error)
    assert reading.pieces == 3


def test__id_that_occurs_twice__is_allowed(tmp_path):
    path = tmp_path / "a.fasta"
    path.write_text(">a\nMKT\n>a\nMKV\n")
    assert read(path, 5)[0][0].ids == ["a", "a"]


# ------------------------------------------------------------------ Parquet


def test__parquet__is_cut_at_row_groups_and_within_large_ones(table):
    pieces, reading = read(table, 3)
    assert [len(piece.ids) for piece in pieces] == [3, 1, 3, 1, 2]
    assert [piece.first for piece in pieces] == [0, 3, 4, 7, 8]
    assert [name for piece in pieces for name in piece.ids] == [f"r{i}" for i in range(10)]
    assert (reading.records, reading.pieces) == (10, 5)
    wanted, _ = read(table, 3, lambda number: number == 3)
    assert [piece.ids for piece in wanted] == [["r7"]]


def test__parquet__columns_can_have_other_names_and_ids_be_numbers(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"n": [7, 8], "text": ["MKT", None]}), path)
    [piece], _ = read(path, 3, sequence_column="text", id_column="n")
    assert (piece.ids, piece.sequences) == (["7", "8"], ["MKT", None])


def test__parquet_without_the_column__is_refused(table):
    [source] = find_sources([table], sequence_column="seq")
    with pytest.raises(InputError, match=r"no column 'seq'.*are id, sequence.*--sequence-column"):
        check_columns(source)


def test__parquet_without_an_id__is_the_error_of_its_piece(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": ["a", None, "c"], "sequence": ["MKT"] * 3}), path)
    pieces, _ = read(path, 2)
    assert "row 1 has no value in the column 'id'" in str(pieces[0].error)
    assert pieces[1].error is None


def test__parquet_with_a_damaged_row_group__is_the_error_of_its_pieces(table):
    content = bytearray(table.read_bytes())
    start = pq.ParquetFile(table).metadata.row_group(1).column(1).dictionary_page_offset
    content[start : start + 8] = b"\xff" * 8
    table.write_bytes(content)
    pieces, _ = read(table, 3)
    assert [piece.error is None for piece in pieces] == [True, True, False, False, True]
    assert "row group 1: cannot be read" in str(pieces[2].error)


def test__parquet_that_is_none__cannot_be_read(tmp_path):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 nothing")
    [source] = find_sources([path])
    check_columns(source)  # told when its turn comes
    with pytest.raises(InputError, match="cannot be read"):
        list(Reading(source, 3, everything))


def test__digest__tells_pieces_apart(tmp_path):
    def digest(text):
        path = tmp_path / "a.fasta"
        path.write_text(text)
        return read(path, 9)[0][0].digest()

    texts = [">a\nMKT\n", ">b\nMKT\n", ">a\nMKV\n", ">a\nMK\n>T\nM\n", ">a\nM\n>T\nMK\n"]
    assert len(set(map(digest, texts))) == len(texts)
    assert digest(">a x\nM\nKT\n") == digest(">a\nMKT\n")
