"""Files are decompressed and decoded by what they hold, or named for what they are."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import itertools
import lzma
import re
import tracemalloc
import zipfile
from functools import partial

import numpy as np
import pytest
from click.testing import CliRunner

from esm2_features import read_fasta
from esm2_features._inputs.fasta import _split
from esm2_features._inputs.records import iter_entries
from esm2_features._inputs.streams import MOST_BYTES, open_bytes, open_text
from esm2_features.cli import main
from esm2_features.exceptions import FastaError, InputError

compress = partial(gzip.compress, mtime=0)  # the same names of tests in all processes
TEXT = ">P1 x\nMKT\n"


def zipped(content, *names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("folder/", b"")
        for name in names or ("a.fasta",):
            archive.writestr(name, content)
    return file.getvalue()


def read(content):
    with open_text(io.BytesIO(content)) as text:
        return text.read()


@pytest.mark.parametrize(
    "content",
    [
        compress(compress(TEXT.encode())),
        compress(TEXT.encode()) + compress(b""),
        zipped(TEXT.encode()),
        zipped(compress(TEXT.encode())),
        zipped(TEXT.encode(), "a.fasta", "__MACOSX/._a.fasta"),
        compress(zipped(TEXT.encode())),
        bz2.compress(lzma.compress(TEXT.encode())),
    ],
    ids=["gz in gz", "gz and gz", "zip", "gz in zip", "zip of a Mac", "zip in gz", "xz in bz2"],
)
def test__compressed__whatever_and_however_often(content, tmp_path):
    assert read(content) == TEXT
    path = tmp_path / "a.fasta.gz"
    path.write_bytes(content)
    assert [record.seq for record in read_fasta(path)] == ["MKT"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test__text__in_unicode_of_any_width(encoding):
    assert read(TEXT.encode(encoding)) == TEXT


@pytest.mark.parametrize("mark", ["utf-16-be", "utf-32"])
def test__text__with_a_byte_order_mark(mark):
    content = codecs.BOM_UTF16_BE + TEXT.encode(mark) if "16" in mark else TEXT.encode(mark)
    assert read(content) == TEXT


def test__text__bytes_that_are_no_unicode_are_those_of_windows():
    assert read(b"caf\xe9 \x80 \x81 \xce\xb1") == "caf\u00e9 \u20ac \x81 \u03b1"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS .* git lfs pull"),
        (b"<!DOCTYPE html>\n<html>", "is a web page"),
        (b"\n <HTML><body>Please log in", "is a web page"),
        (b"%PDF-1.7", "is a PDF"),
        (b"{\\rtf1", "rich text"),
        (b"SQLite format 3\0", "SQLite"),
        (b"\xd0\xcf\x11\xe0\xa1", r"old Office .* \.xlsx"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"x" * 257 + b"ustar\x00", "tar archive"),
        (compress(b"x" * 257 + b"ustar\x00"), "tar archive"),
        (zipped(b"x", "a.fasta", "b.fasta"), r"2 files \(a\.fasta, b\.fasta\). Unpack"),
        (zipped(b"x" * 999)[:-30], "cannot be read to its end"),
        (compress(bytes(range(256)) * 99)[:-40], "cannot be read to its end"),
    ],
)
def test__what_is_no_text__is_named(content, said):
    with pytest.raises(InputError, match=rf"^<BytesIO>: .*{said}"):
        list(read_lines(content))
    with pytest.raises(FastaError, match=said):
        read_fasta(io.BytesIO(content))


def read_lines(content):
    from esm2_features._inputs.streams import lines

    with open_text(io.BytesIO(content)) as text:
        yield from lines(text, "<BytesIO>")


def test__the_callers_file__stays_open():
    file = io.BytesIO(compress(TEXT.encode()))
    with open_bytes(file) as stream:
        assert stream.read() == TEXT.encode()
    assert not file.closed


# ------------------------------------------------------------------ small files that hold much


@pytest.fixture
def short_lines(monkeypatch):
    for module in ("streams", "fasta"):
        monkeypatch.setattr(f"esm2_features._inputs.{module}.LONGEST_LINE", 1000)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b">a\n" + b"M" * 1000, "a line of 1,000 characters"),
        (b">" + b"a" * 5000, "a line of 1,000 characters"),
        (
            b">a\n" + (b"M" * 79 + b"\n") * 20,
            r"ends in line 14 \('a'\) has more than 1,000 residues",
        ),
        (b"M" * 2000, "a line of 1,000 characters"),
        (b"sequence,label\n" + b"M" * 2000, "a line of 1,000 characters"),
    ],
)
def test__lines__without_an_end_are_an_error(tmp_path, short_lines, text, what):
    for number, data in enumerate((text, compress(text))):
        path = tmp_path / f"{number}.{'csv' if b',' in text else 'fasta'}"
        path.write_bytes(data)
        done = CliRunner().invoke(main, ["estimate", str(path), "--model", "mini"])
        assert done.exit_code == 2
        assert re.search(what, done.output), done.output


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("x.gb", b"LOCUS       X 9 aa PRI 1-JAN-2000\nDEFINITION  "),
        ("x.dat", b"ID   X   Reviewed;  9 AA.\nAC   "),
    ],
)
def test__lines__of_flat_files_without_an_end_are_an_error(tmp_path, short_lines, name, start):
    pytest.importorskip("Bio", reason="flat files")
    path = tmp_path / name
    path.write_bytes(start + b"M" * 2000)
    with pytest.raises(InputError, match="a line of 1,000 characters"):
        list(iter_entries(str(path)))


def test__blank_lines__of_a_record_take_no_memory():
    [(_, residues)] = [*_split(iter([">a", "MKV", *[""] * 1000, "A"]), "x")]
    assert residues == "MKVA"
    kept = []
    rows = itertools.chain([">a", "MKV"], itertools.repeat("\n", 10**6))
    tracemalloc.start()
    kept += _split(rows, "x")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept == [("a", "MKV")]
    assert peak < 1e6


def test__lines__of_the_longest_length_are_read(tmp_path, short_lines):
    path = tmp_path / "x.fasta"
    path.write_bytes(b">a\n" + b"M" * 998 + b"\n")
    assert len(read_fasta(path)[0].seq) == 998


@pytest.mark.parametrize("pack", [bytes, compress, lambda data: compress(compress(data))])
def test__max_input__is_of_what_is_read_after_decompression(tmp_path, pack):
    path = tmp_path / "x.fasta.gz"
    path.write_bytes(pack(b"".join(b">%d\nMKTAY\n" % i for i in range(2000))))
    arguments = ["estimate", str(path), "--model", "mini", "--max-input"]
    done = CliRunner().invoke(main, [*arguments, "10kB"])
    assert done.exit_code == 2
    assert "more than 10,000 bytes after decompression" in done.output
    assert "--max-input" in done.output
    assert CliRunner().invoke(main, [*arguments, "1MB"]).exit_code == 0
    assert MOST_BYTES.get() is None


def test__max_input__holds_for_tables_that_are_not_read_in_order(tmp_path):
    pandas = pytest.importorskip("pandas", reason="tables")
    path = tmp_path / "x.parquet"
    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list("ACDEFGHIKL"), 50)) for _ in range(500)]
    pandas.DataFrame({"sequence": sequences}).to_parquet(path)
    output = tmp_path / "x.npz"
    arguments = [
        "embed",
        str(path),
        "-o",
        str(output),
        "--model",
        "mini",
        "--dry-run",
        "--max-input",
    ]
    assert "more than 2,000 bytes" in CliRunner().invoke(main, [*arguments, "2kB"]).output
    assert CliRunner().invoke(main, [*arguments, "1MB"]).exit_code == 0
