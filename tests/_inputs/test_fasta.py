"""FASTA files give every record they hold, or an error that names the record."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm2_features._inputs.containers import columns
from esm2_features._inputs.fasta import FastaRecord, iter_fasta, read_fasta
from esm2_features._inputs.residues import normalise
from esm2_features.exceptions import FastaError

TEXT = b">P01308 insulin, human\nMALWM\nRLLPL\n\n>b\nmkt*\n"
RECORDS = [
    FastaRecord("P01308", "P01308 insulin, human", "MALWMRLLPL"),
    FastaRecord("b", "b", "mkt*"),
]
COMPRESSORS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


def error_of(content):
    with pytest.raises(FastaError) as caught:
        read_fasta(io.BytesIO(content))
    assert caught.value.path == "<BytesIO>"
    return str(caught.value).removeprefix("<BytesIO>: ")


def test__read_fasta__file(tmp_path):
    path = tmp_path / "peptides.fasta"
    path.write_bytes(TEXT)
    assert read_fasta(path) == read_fasta(str(path)) == RECORDS


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test__read_fasta__compressed(tmp_path, suffix):
    path = tmp_path / f"peptides.fasta.{suffix}"
    path.write_bytes(COMPRESSORS[suffix](TEXT))
    assert read_fasta(path) == RECORDS


def test__read_fasta__zstandard(tmp_path):
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    path = tmp_path / "peptides.fasta.zst"
    path.write_bytes(zstd.compress(TEXT))
    assert read_fasta(path) == RECORDS


def test__read_fasta__compressed_whatever_it_is_called(tmp_path):
    path = tmp_path / "peptides.fasta"
    path.write_bytes(gzip.compress(TEXT))
    assert read_fasta(path) == RECORDS


@pytest.mark.parametrize("content", [TEXT, gzip.compress(TEXT)], ids=["plain", "gz"])
def test__read_fasta__standard_input(content):
    code = "from esm2_features._inputs.fasta import read_fasta; print(len(read_fasta('-')))"
    done = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True)
    assert (done.stdout.strip(), done.stderr) == (b"2", b"")


def test__read_fasta__errors_of_standard_input_are_the_same_in_any_locale(tmp_path):
    code = (
        "from esm2_features._inputs.fasta import read_fasta\n"
        "try: read_fasta('-')\n"
        "except ValueError as error: print(error.path, error)"
    )
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code],
        input=">a\nMKT\n>caf\u00e9\u200b\nMKT".encode(),
        capture_output=True,
        env={"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.startswith(rb"- standard input: the id of record 2 ('caf\xe9\u200b') holds")


@pytest.mark.parametrize("content", [TEXT, gzip.compress(TEXT)], ids=["plain", "gz"])
def test__iter_fasta__leaves_the_callers_file_open(content):
    file = io.BytesIO(content)
    assert next(iter_fasta(file)) == RECORDS[0]
    assert not file.closed


def test__iter_fasta__leaves_the_callers_file_open_after_an_error():
    file = io.BytesIO(b">a\n>b\nMKT\n")
    with pytest.raises(FastaError):
        next(iter_fasta(file))
    assert not file.closed


def test__iter_fasta__gives_the_records_before_an_error():
    records = iter_fasta(io.BytesIO(TEXT + b">c\n"))
    assert [next(records), next(records)] == RECORDS
    with pytest.raises(FastaError):
        next(records)


def test__iter_fasta__is_lazy():
    class Endless(io.RawIOBase):
        asked = 0

        def readable(self):
            return True

        def readinto(self, buffer):
            self.asked += 1
            line = b">r%d\nMKT\n" % self.asked
            buffer[: len(line)] = line
            return len(line)

    records = iter_fasta(io.BufferedReader(Endless()))
    assert [next(records).id for _ in range(3)] == ["r1", "r2", "r3"]


def test__read_fasta__records_are_input_as_they_are():
    [column] = columns(read_fasta(io.BytesIO(TEXT)), owner="Test")
    assert [normalise(cell, index=0) for cell in column.values] == ["MALWMRLLPL", "MKT"]


@pytest.mark.parametrize(
    "content",
    [
        TEXT.replace(b"\n", b"\r\n"),
        TEXT.replace(b"\n", b"\r"),
        b"\xef\xbb\xbf" + TEXT,
        b"\n\n" + TEXT,
    ],
    ids=["Windows", "old Mac", "byte order mark", "blank lines"],
)
def test__read_fasta__variants_of_text(content):
    assert read_fasta(io.BytesIO(content)) == RECORDS


def test__read_fasta__loses_nothing():
    # A line that another program takes for a comment; whether it holds residues is not said here.
    [record] = read_fasta(io.BytesIO("> a b\nM K\n#GSH\n;ACD\n\u0410".encode()))
    assert record == FastaRecord("a", "a b", "M K#GSH;ACD\u0410")


identifiers = st.text("abcXYZ019|._-", min_size=1)
descriptions = st.text("ab >;:\t()", max_size=12).map(str.strip)
sequences = st.text("ACDEFGHIKLMNPQRSTVWYX*-", min_size=1, max_size=150)


@given(
    st.lists(
        st.tuples(identifiers, descriptions, sequences),
        min_size=1,
        unique_by=lambda record: record[0],
    ),
    st.integers(1, 70),
)
def test__read_fasta__round_trip(records, width):
    text = "".join(
        f">{name} {rest}\n"
        + "".join(sequence[i : i + width] + "\n" for i in range(0, len(sequence), width))
        for name, rest, sequence in records
    )
    assert read_fasta(io.BytesIO(text.encode())) == [
        FastaRecord(name, f"{name} {rest}".strip(), sequence) for name, rest, sequence in records
    ]


@pytest.mark.parametrize("content", [b"", b"\n \n", gzip.compress(b"", mtime=0)], ids=repr)
def test__read_fasta__no_records(content):
    assert error_of(content) == ("holds no records. A record is a '>' line and lines of residues.")


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b"\nMKT\n>a\nMKT\n", "line 2, 'MKT',"),
        (b"; comment\n>a\nMKT\n", "line 1, '; comment',"),
        (b"\x00\x01\xff\xfe\n", "line 1, '\\x00\\x01\\xff\\xfe',"),
        (b"A" * 1000, f"line 1, '{'A' * 57}...',"),
    ],
)
def test__read_fasta__text_before_the_first_header(content, shown):
    assert error_of(content) == (
        f"{shown} stands before the first header. A FASTA file starts with '>'."
    )


@pytest.mark.parametrize(
    ("content", "record"),
    [(b">a\nMKT\n>b\n", "2 ('b')"), (b">a x\n\n>b\nMKT\n", "1 ('a')"), (b">a\n \t\n", "1 ('a')")],
)
def test__read_fasta__record_without_residues(content, record):
    assert error_of(content) == (
        f"record {record} has no residues. Remove its header, or add its sequence."
    )


def test__read_fasta__id_twice():
    assert error_of(b">a x\nMKT\n>b\nMKT\n>a y\nGSH\n") == (
        "records 1 and 3 have the same id, 'a'. Give every record an id of its own; results are "
        "labelled by it."
    )


@pytest.mark.parametrize(
    ("header", "identifier"),
    [
        (b"WP_1.1 thing [Bug]\x01ABC1.1 thing [Bug two]", "WP_1.1"),  # NCBI's nr
        (b"gi|1|ref|WP_1.1|\x01gi|2|gb|A.1|", "gi|1|ref|WP_1.1|"),
        ("P1 \u03b1-synuclein [S\u00e3o Paulo]".encode(), "P1"),
        ("P1 prot\u00a0one".encode(), "P1"),
        ("P1\u00a0protein".encode(), "P1"),
        (b"P1\tprotein", "P1"),
        ("P1 \u86cb\u767d\u8d28".encode(), "P1"),
        (b"P1 caf\xe9", "P1"),  # Windows' own encoding
        ("caf\u00e9 x".encode(), "caf\u00e9"),
        (b"caf\xe9", "caf\u00e9"),
        (b"sp|P01308|INS_HUMAN Insulin OS=Homo sapiens\x00", "sp|P01308|INS_HUMAN"),
        (b"pdb|1ABC|A \x1b[31mred", "pdb|1ABC|A"),
        ("a b\u2028c".encode(), "a"),
    ],
)
def test__read_fasta__description_may_hold_anything(header, identifier):
    [_, record] = read_fasta(io.BytesIO(b">a1\nMKT\n>" + header + b"\nMKT\n"))
    assert (record.id, record.seq) == (identifier, "MKT")
    assert record.description.startswith(identifier)
    record.description.encode()  # whatever it holds, it can be written


@pytest.mark.parametrize(
    ("header", "shown"),
    [
        (b"a\x00", r"'a\\x00'\) holds '\\x00'"),
        ("P\u200b1 x".encode(), r"'P\\u200b1'\) holds '\\u200b'"),
        ("\ufeffP1".encode(), r"holds '\\ufeff'"),
        (b"a\x1b[31m", r"holds '\\x1b'"),
    ],
)
def test__read_fasta__id_that_cannot_be_printed(header, shown):
    with pytest.raises(FastaError, match=rf"the id of record 2 .*{shown}, which cannot"):
        read_fasta(io.BytesIO(b">a\nMKT\n>" + header + b"\nMKT\n"))


def test__read_fasta__all_wrong_records_are_counted_and_ten_are_shown():
    content = b"".join(b">a%d\n\n" % i for i in range(12)) + b">b\nMKT\n>b\nMKT\n>\nM\n"
    said = error_of(content)
    assert said.startswith("14 of 15 records cannot be used:\n  <BytesIO>: record 1 ('a0') has no")
    assert said.count("\n  <BytesIO>: record ") == 10
    assert said.endswith("\n  ... and 4 more")


@pytest.mark.parametrize("header", [b">", b">  "])
def test__read_fasta__record_without_id(header):
    assert error_of(b">a\nMKT\n" + header + b"\nMKT\n") == (
        "record 2 has no id after its '>'. Give it one."
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"@read\nACGT\n+\nIIII\n", "is a FASTQ file (its first line starts "),
        (b"LOCUS       X\n", "is a GenBank file. Read it with Biopython"),
        (b"data_1ABC\n", "is an mmCIF file"),
        (b"HEADER    HYDROLASE\n", "is a PDB file"),
        (b"CLUSTAL W (1.8)\n", "is an alignment in Clustal format"),
        (b"# STOCKHOLM 1.0\n", "is an alignment in Stockholm format"),
    ],
)
def test__read_fasta__other_formats_are_named(content, said):
    assert error_of(content).startswith(said)


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("kept", [8, -10])
def test__read_fasta__compressed_file_that_was_cut(tmp_path, suffix, kept):
    path = tmp_path / f"peptides.fasta.{suffix}"
    path.write_bytes(COMPRESSORS[suffix](TEXT)[:kept])
    with pytest.raises(FastaError, match=r"cannot be read to its end .* was cut short") as caught:
        read_fasta(path)
    assert caught.value.path == str(path)


@pytest.mark.parametrize("suffix", [*COMPRESSORS, "zst", "zip"])
def test__read_fasta__compressed_in_name_only(tmp_path, suffix):
    path = tmp_path / f"peptides.fasta.{suffix}"
    path.write_bytes(TEXT)
    assert read_fasta(path) == RECORDS


def test__read_fasta__no_such_file(tmp_path):
    path = tmp_path / "peptides.fasta"
    with pytest.raises(FastaError) as caught:
        read_fasta(path)
    assert str(caught.value).startswith(f"{path}: there is no such file (relative names start at ")
    assert caught.value.path == str(path)


def test__read_fasta__folder(tmp_path):
    with pytest.raises(FastaError, match="is a folder"):
        read_fasta(tmp_path)


@pytest.mark.parametrize(
    "path", [None, 3, io.StringIO(">a\nMKT"), [">a"]], ids=["None", "3", "text", "list"]
)
def test__read_fasta__neither_a_path_nor_a_binary_file(path):
    with pytest.raises(TypeError, match=r"Open files with open\(path, 'rb'\)\."):
        read_fasta(path)
