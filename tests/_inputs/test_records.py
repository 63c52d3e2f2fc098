"""One reader for files of sequences of every kind, which names every record that is wrong."""

from __future__ import annotations

import gzip
import io
import os
import sys
import threading
from functools import partial

import numpy as np
import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from esm2_features._inputs.records import iter_entries, read_records
from esm2_features.exceptions import InputError

compress = partial(gzip.compress, mtime=0)  # the same names of tests in all processes
A, B = "MKTAYIAKQR", "GSHMVLSEGE"

GENBANK = """LOCUS       NP_1                      10 aa            linear   PRI 01-JAN-2024
DEFINITION  a protein.
ACCESSION   NP_1
VERSION     NP_1.1
FEATURES             Location/Qualifiers
     source          1..10
ORIGIN
        1 mktayiakqr
//
"""
GENOME = """LOCUS       NC_1                      36 bp    DNA     linear   BCT 01-JAN-2024
DEFINITION  a genome.
ACCESSION   NC_1
VERSION     NC_1.1
FEATURES             Location/Qualifiers
     CDS             1..33
                     /locus_tag="b0001"
                     /product="a peptide"
                     /protein_id="NP_2.1"
                     /translation="MKTAYIAKQR"
ORIGIN
        1 atgaaaacag cgtatattgc gaaacagcgt taaaaa
//
"""
PDB = """HEADER    HYDROLASE                               01-JAN-24   1ABC
DBREF  1ABC A    1    10  UNP    P01308   INS_HUMAN        1     10
DBREF  1ABC B    1     3  UNP    P01308   INS_HUMAN       11     13
SEQRES   1 A   10  MET LYS THR ALA TYR ILE ALA LYS GLN ARG
SEQRES   1 B    3  GLY MSE HIS
ATOM      1  N   MET A   1      11.104   6.134  -6.504  1.00  0.00           N
"""
SWISS = """ID   INS_HUMAN               Reviewed;          10 AA.
AC   P01308;
DT   21-JUL-1986, integrated into UniProtKB/Swiss-Prot.
DT   21-JUL-1986, sequence version 1.
DT   27-MAR-2024, entry version 271.
DE   RecName: Full=Insulin;
OS   Homo sapiens (Human).
OC   Eukaryota.
OX   NCBI_TaxID=9606;
SQ   SEQUENCE   10 AA;  1200 MW;  C2C3B23B85E520E5 CRC64;
     MKTAYIAKQR
//
"""
CIF = """data_1ABC
loop_
_pdbx_poly_seq_scheme.asym_id
_pdbx_poly_seq_scheme.mon_id
_pdbx_poly_seq_scheme.pdb_strand_id
A MET A
A LYS A
A THR A
#
"""


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def pairs(source, **columns):
    return [(record.id, record.seq) for record in read_records(source, **columns).records]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.fasta", f">a x\n{A}\n>b\n{B}\n"),
        ("x.csv", f"id,sequence\na,{A}\nb,{B}\n"),
        ("x.csv", f"id;sequence;y\na;{A};0,2\nb;{B};1,1\n"),
        ("x.csv", f"sep=;\nid;sequence;y\na;{A};0,2\nb;{B};1,1\n"),
        ("x.tsv", f"Entry\tReviewed\tSequence\na\treviewed\t{A}\nb\tunreviewed\t{B}\n"),  # UniProt
        ("x.tsv", f"Entry\tSequence\na\t{A}\nb\t{B}\n".encode("utf-16")),
        ("x.csv", f"\ufeffID,Seq\r\na,{A}\r\nb,{B}\r\n"),
        ("x.csv", f"accession,protein_sequence\na,{A}\nb,{B}\n"),
        ("x.csv", f"seq_id,AA Sequence,set\na,{A},train\nb,{B},test\n"),
        ("x.csv", f"id,mutant,mutated_sequence,DMS_score\na,K2R,{A},1\nb,WT,{B},2\n"),
        ("x.csv", f"# by a vendor\n# of peptides\nid,peptide\na,{A}\nb,{B}\n"),
        ("x.csv", f"#id,sequence\na,{A}\nb,{B}\n".replace("#", "")),
        ("x.csv.gz", compress(f"id,sequence\na,{A}\nb,{B}\n".encode())),
        ("x.csv.gz", f"id,sequence\na,{A}\nb,{B}\n"),
        ("x.dat.txt", f"id,sequence\na,{A}\nb,{B}\n"),
        ("x", f"id\tsequence\na\t{A}\nb\t{B}\n"),
        ("x.csv", f">a\n{A}\n>b\n{B}\n"),  # FASTA under another name
        ("x.csv", f"id,sequence\na,{A}\nb,{B}\n,\n\n"),
        ("x.csv", f'id,"sequence"\n"a","{A}"\n"b","{B}"\n'),
        ("x.csv", f"id|sequence\na|{A}\nb|{B}\n"),
    ],
)
def test__read__as_programs_write_them(tmp_path, name, content):
    assert pairs(write(tmp_path, name, content)) == [("a", A), ("b", B)]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("x.gp", GENBANK, [("NP_1.1", A)]),
        ("x.gbk", GENOME, [("NP_2.1", A)]),
        ("x.txt", GENBANK, [("NP_1.1", A)]),
        ("1abc.pdb", PDB, [("1ABC:A", A), ("1ABC:B", "GMH")]),
        ("1abc.ent.gz", compress(PDB.encode()), [("1ABC:A", A), ("1ABC:B", "GMH")]),
        ("x.txt", SWISS, [("P01308", A)]),
        ("1abc.cif", CIF, [("A", "MKT")]),
    ],
)
def test__flat_files__by_biopython(tmp_path, name, content, found):
    assert pairs(write(tmp_path, name, content)) == found


def test__flat_files__without_biopython(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "Bio.SeqIO", None)
    monkeypatch.setitem(sys.modules, "Bio", None)
    with pytest.raises(ImportError, match=r'pip install "esm2-features\[biopython\]"'):
        read_records(write(tmp_path, "x.gp", GENBANK))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.pdb", "ATOM      1  N   MET A   1\n", "holds no SEQRES records. Download"),
        ("x.gb", GENOME.replace("     CDS  ", "     gene "), "holds no protein sequences"),
    ],
)
def test__flat_files__without_proteins(tmp_path, name, content, said):
    with pytest.raises(InputError, match=said):
        read_records(write(tmp_path, name, content))


@pytest.mark.parametrize("kind", ["parquet", "excel"])
def test__binary_tables(tmp_path, kind):
    frame = pd.DataFrame({"id": ["a", "b"], "vector": [[1.0], [2.0]], "sequence": [A, B]})
    if kind == "parquet":
        frame.to_parquet(path := tmp_path / "x.parquet", index=False)
    else:
        frame["vector"] = [0.5, 1.5]
        frame.to_excel(path := tmp_path / "x.xlsx", index=False)
    assert pairs(path) == [("a", A), ("b", B)]
    assert pairs(write(tmp_path, "odd.txt", path.read_bytes())) == [("a", A), ("b", B)]
    places = read_records(path).places
    assert places[1] == f"{path}: {'Row 1' if kind == 'parquet' else 'Row 3'}, b"


def test__excel__numbers_and_empty_rows(tmp_path):
    book = openpyxl.Workbook()
    for row in (["id", "sequence", None], [7, A], [None, None], [8, B, "note"]):
        book.active.append(row)
    book.save(tmp_path / "x.xlsx")
    assert pairs(tmp_path / "x.xlsx") == [("7", A), ("8", B)]


def test__excel__without_openpyxl(tmp_path, monkeypatch):
    pd.DataFrame({"sequence": [A]}).to_excel(tmp_path / "x.xlsx")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ImportError, match=r'pip install "esm2-features\[excel\]"'):
        read_records(tmp_path / "x.xlsx")


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"column": "light", "id_column": "name"}, [("m1", B)]),
        ({"column": "light", "id_column": "none"}, [("0", B)]),
        ({"column": "heavy"}, [("0", A)]),
    ],
)
def test__columns__as_they_are_named(tmp_path, columns, found):
    path = write(tmp_path, "x.csv", f"name,heavy,light\nm1,{A},{B}\n")
    assert pairs(path, **columns) == found


@pytest.mark.parametrize(
    ("content", "columns", "said"),
    [
        (
            f"heavy,light\n{A},{B}\n",
            {},
            "one column of sequences, and has the columns heavy, light",
        ),
        (f"seq,sequence\n{A},{B}\n", {}, r"one column of sequences.*: --column\.$"),
        (f"sequence\n{A}\n", {"column": "seq"}, "the column 'seq' once, and has the columns sequ"),
        (f"sequence\n{A}\n", {"id_column": "nr"}, "the column 'nr' once.*of ids: --id-column"),
        (f"{A},{B}\n{A},{B}\n", {}, "the first row holds the sequence 'MKTAYIAKQR' where"),
        (f"{A}\n{B}\n", {}, "Write a header above it"),
        ("id,sequence\n", {}, "holds no records below its header, id, sequence"),
        ("", {}, "holds no records"),
        *(
            (f"id,sequence\na,{A}\nb,{word}\n", {}, rf"line 3 \('b'\): '{word}' stands for a miss")
            for word in ("NULL", "null", "nan", "None", "N/A")
        ),
        (
            f"id,sequence\na,{A}\na,{B}\n",
            {},
            "lines 2 and 3 have the same id, 'a'.*--id-column none",
        ),
        (f"id,sequence\na,{A}\n,{B}\n", {}, "line 3 has no id"),
        (f"id,sequence\na,{A}\nb,\n", {}, r"line 3 \('b'\) has no sequence"),
        (f"id,sequence\na,{A}\nb,{B},1\n", {}, "line 3 has 3 cells, and the header has 2"),
        (f'id,sequence\na,"{A}"x\n', {}, "line 2: .* Write the table anew"),
    ],
)
def test__tables__what_is_wrong_is_named(tmp_path, content, columns, said):
    with pytest.raises(InputError, match=said):
        read_records(write(tmp_path, "x.csv", content), **columns)


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ([["M", "K"]], "list<"),
        ([1.5], "double"),
        ([{"a": 1}], "struct<"),
        ([7], "int64"),
        ([True], "bool"),
    ],
)
def test__parquet__columns_of_something_else_than_text(tmp_path, column, kind):
    pq.write_table(pa.table({"id": ["a"], "sequence": column}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=f"'sequence' holds {kind}.*where text is needed"):
        read_records(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.binary(), pa.dictionary(pa.int8(), pa.string())]
)
def test__parquet__text_of_every_kind(tmp_path, kind):
    column = (
        pa.array([A, B]).cast(kind) if kind != pa.binary() else pa.array([A.encode(), B.encode()])
    )
    pq.write_table(pa.table({"sequence": column}), tmp_path / "x.parquet")
    assert pairs(tmp_path / "x.parquet") == [("0", A), ("1", B)]


def test__columns__are_of_tables_only(tmp_path):
    with pytest.raises(InputError, match=r"Got --column seq, but .* is not a table"):
        read_records(write(tmp_path, "x.fasta", f">a\n{A}\n"), column="seq")


def test__problems__are_all_counted(tmp_path):
    content = "id,sequence\n" + f"a,{A}\n" + "b,\n" * 11 + f"a,{B}\n,{A}\n"
    with pytest.raises(InputError) as caught:
        read_records(write(tmp_path, "x.csv", content))
    said = str(caught.value)
    assert said.startswith("13 of 14 records cannot be used:\n")
    assert "x.csv, line 3 ('b') has no sequence" in said
    assert said.endswith("... and 3 more")


@pytest.mark.parametrize(
    "content",
    [f">a\n{A}\n", f"id,sequence\na,{A}\n", compress(f"id\tsequence\na\t{A}\n".encode())],
)
def test__standard_input__of_every_kind(monkeypatch, content):
    content = content if isinstance(content, bytes) else content.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert pairs("-") == [("a", A)]


def test__entries__come_one_by_one(tmp_path):
    path = write(tmp_path, "x.csv", f"id,sequence\na,{A}\nb\nc,{B}\n")
    entries = list(iter_entries(path))
    assert [entry.place for entry in entries] == ["line 2", "line 3", "line 4"]
    assert [entry.error is None for entry in entries] == [True, False, True]
    assert np.array_equal([entry.record is None for entry in entries], [False, True, False])


@pytest.mark.parametrize("kind", ["parquet", "xlsx", "fasta.gz", "csv.gz"])
def test__pipes__are_read_once(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    frame = pd.DataFrame({"id": ["a"], "sequence": [A]})
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind == "xlsx":
        frame.to_excel(path)
    else:
        text = f">a\n{A}\n" if "fasta" in kind else f"id,sequence\na,{A}\n"
        path.write_bytes(compress(text.encode()))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    thread = threading.Thread(target=lambda: pipe.write_bytes(path.read_bytes()))
    thread.start()
    assert pairs(pipe) == [("a", A)]
    thread.join()


def test__standard_input__is_not_held_in_memory(monkeypatch):
    class Endless(io.RawIOBase):
        asked = 0

        def readable(self):
            return True

        def readinto(self, buffer):
            self.asked += 1
            line = b">r%d\nMKT\n" % self.asked
            buffer[: len(line)] = line
            return len(line)

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Endless())))
    entries = iter_entries("-")
    assert [next(entries).record.id for _ in range(3)] == ["r1", "r2", "r3"]
    entries.close()
