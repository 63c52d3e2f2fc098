"""Files of variants are read row by row, or refused by the line that is wrong."""

from __future__ import annotations

import csv
import gzip
import io
import lzma
import sys

import numpy as np
import pytest
from full_disk import no_room

from esm2_features._inputs.alphabet import CANONICAL_RESIDUES
from esm2_features._io.paths import check_output
from esm2_features._io.variants import read_variant_file, write_scan, write_scores
from esm2_features.exceptions import FastaError, InputError


def read(tmp_path, name, content, **options):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_variant_file(str(path), **options)


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("name", ["x.txt", "variants", "x.list"])
def test__lines__one_variant_each_and_blank_lines_are_none(tmp_path, name):
    table = read(tmp_path, name, "\ufeffA1G\r\n\n  A1G:K2R \nWT")
    assert table.header == ["variant"]
    assert table.variants == ["A1G", "A1G:K2R", "WT"]
    assert table.rows == [["A1G"], ["A1G:K2R"], ["WT"]]
    assert table.positions == ["line 1", "line 3", "line 4"]


@pytest.mark.parametrize("column", ["variant", "mutant", "mutation", "hgvs_pro", "HGVS pro"])
@pytest.mark.parametrize(("name", "mark"), [("x.csv", ","), ("x.TSV", "\t"), ("a.b.csv", ",")])
def test__table__finds_its_column(tmp_path, column, name, mark):
    lines = [["id", column, "DMS"], ["1", "A1G", '"a\nb"'], [], ["2", "WT", ""]]
    table = read(tmp_path, name, "\n".join(mark.join(line) for line in lines))
    assert table.header == ["id", column, "DMS"]
    assert table.variants == ["A1G", "WT"]
    assert table.rows == [["1", "A1G", "a\nb"], ["2", "WT", ""]]
    assert table.positions == ["line 3", "line 5"]


def test__table__the_only_column_and_the_one_that_is_named(tmp_path):
    assert read(tmp_path, "x.csv", "any\nA1G\n").variants == ["A1G"]
    assert read(tmp_path, "x.csv", "mutant,variant\nG,A1G\n").variants == ["A1G"]
    content = "accession,hgvs_nt,hgvs_pro\nu:1,c.4A>G,p.Lys2Arg\n"  # MaveDB
    assert read(tmp_path, "x.csv", content).variants == ["p.Lys2Arg"]
    assert read(tmp_path, "x.csv", "hgvs_pro,Mutations\np.=,A1G\n").variants == ["A1G"]
    content = "variant,other\nA1G,K2R\n"
    assert read(tmp_path, "x.csv", content, column="other").variants == ["K2R"]


@pytest.mark.parametrize("blank", ["\n\n", "\ufeff\r\n", " \n,,\n"])
def test__table__blank_lines_above_the_header_are_skipped(tmp_path, blank):
    table = read(tmp_path, "x.csv", f"{blank}id,variant,DMS\n1,A1G,2\n")
    assert table.header == ["id", "variant", "DMS"]
    assert table.variants == ["A1G"]
    assert table.positions == [f"line {blank.count(chr(10)) + 2}"]


MISSING = ["NA", "nan", "NaN", "None", "null", "NULL", "N/A", "<NA>", " NA "]


@pytest.mark.parametrize("word", [*MISSING, "", " "])
def test__table__missing_variants_are_named_by_their_line(tmp_path, word):
    message = rf"x\.csv, line 4: '{word}' stands for a missing value"
    with pytest.raises(InputError, match=message):
        read(tmp_path, "x.csv", f"id,variant\nNA,A1G\n\n2,{word}\n")


@pytest.mark.parametrize("word", MISSING)
def test__lines__missing_variants_are_named_by_their_line(tmp_path, word):
    message = rf"x\.txt, line 3: '{word.strip()}' stands for a missing value"
    with pytest.raises(InputError, match=message):
        read(tmp_path, "x.txt", f"A1G\n\n{word}\n")


def test__fasta__spells_peptides_that_are_words_elsewhere(tmp_path):
    assert read(tmp_path, "x.fa", ">a\nNA\n>b\nNAN\n").variants == ["NA", "NAN"]
    assert read(tmp_path, "x.txt", "GAN\nNAN\n").variants == ["GAN", "NAN"]
    assert read(tmp_path, "x.txt", "NAN*\n").variants == ["NAN*"]


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test__standard_input__is_fasta_where_it_begins_so(monkeypatch, compress):
    def given(content):
        stdin = io.TextIOWrapper(io.BytesIO(compress(content)))
        monkeypatch.setattr(sys, "stdin", stdin)
        return read_variant_file("-")

    assert given(b"A1G\n\nWT\n").variants == ["A1G", "WT"]
    table = given(b"\n>m1 A1G\nGK\nT\n>m2\nNA\n")
    assert table.header == ["id"]
    assert table.variants == ["GKT", "NA"]
    assert table.positions == ["record 1, m1", "record 2, m2"]
    with pytest.raises(FastaError, match=r"^standard input: record 2"):
        given(b">m1\nGKT\n>m2\n")


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test__table__compressed(tmp_path, compress):
    ending = {gzip.compress: "gz", lzma.compress: "xz"}[compress]
    table = read(tmp_path, f"x.csv.{ending}", compress(b"variant\nA1G\n"))
    assert table.variants == ["A1G"]


@pytest.mark.parametrize("name", ["x.fasta", "x.fa", "x.faa.gz"])
def test__fasta__sequences_under_their_ids(tmp_path, name):
    content = b">m1 A1G\nGKT\n>m2\nAKV\n"
    table = read(tmp_path, name, gzip.compress(content) if name.endswith("gz") else content)
    assert table.header == ["id"]
    assert table.rows == [["m1"], ["m2"]]
    assert table.variants == ["GKT", "AKV"]
    assert table.positions == ["record 1, m1", "record 2, m2"]


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("x.txt", "\n\n", {}, "holds no variants"),
        ("x.csv", "variant\n", {}, "holds no variants"),
        ("x.csv", "", {}, "one column of variants, and has the columns none"),
        ("x.csv", "a,b\n1,2\n", {}, "one column of variants, and has the columns a, b. Name"),
        ("x.csv", "variant,variant\n1,2\n", {}, "should have the column 'variant' once"),
        ("x.csv", "a,b\n1,2\n", {"column": "c"}, "should have the column 'c' once"),
        ("x.csv", "variant,score\nA1G,2\n", {}, "has a column 'score' already"),
        ("x.csv", "variant,b\nA1G,2\n\nK2R\n", {}, "line 4 has 1 cells, and the header has 2"),
        ("x.csv", 'variant\n"A1G"x\n', {}, "line 2: .* Write the table anew"),
        ("x.txt", "A1G\n", {"column": "a"}, "Got --column a, but .* is not a table"),
        ("x.csv.gz", gzip.compress(b"variant\nA1G\n" * 99, mtime=0)[:-20], {}, "cannot be read"),
    ],
)
def test__read__what_is_wrong_is_named(tmp_path, name, content, options, message):
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, name, content, **options)
    assert name in str(caught.value)


def test__read__no_such_file(tmp_path):
    for name in ("x.csv", "x.fa", "x.txt"):
        with pytest.raises(InputError, match="there is no such file"):
            read_variant_file(str(tmp_path / name))


def test__write_scores__all_columns_and_every_digit(tmp_path):
    table = read(tmp_path, "x.tsv", 'id\tmutant\n"a\tb,c"\tA1G\n2\tWT\n')
    scores = [-1 / 3, 0.0]
    output = check_output(tmp_path / "out.csv", formats=("csv",))
    write_scores(output, table, scores)
    header, *rows = rows_of(output.path)
    assert header == ["id", "mutant", "score"]
    assert [row[:2] for row in rows] == [["a\tb,c", "A1G"], ["2", "WT"]]
    assert [float(row[2]) for row in rows] == scores


def test__write_scan__a_row_for_each_substitution(tmp_path):
    """An X in the wild type has none, for ESM-2 finds anything likelier."""
    scores = np.random.default_rng(0).standard_normal((3, 20))
    output = check_output(tmp_path / "out.csv", formats=("csv",))
    assert write_scan(output, "KXM", CANONICAL_RESIDUES, scores.tolist(), offset=-3) == 38
    header, *rows = rows_of(output.path)
    assert header == ["variant", "position", "wildtype", "mutant", "score"]
    assert rows[0] == ["K-2A", "-2", "K", "A", repr(float(scores[0, 0]))]
    assert rows[-1] == ["M0Y", "0", "M", "Y", repr(float(scores[2, 19]))]
    assert "K" not in [row[3] for row in rows[:19]]
    assert len(rows) == 38


def test__write__leaves_nothing_behind_when_the_disk_is_full(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    output = check_output(folder / "out.csv", formats=("csv",))
    with pytest.raises(OSError, match=r"out\.csv"), no_room():
        write_scan(output, "K" * 9, CANONICAL_RESIDUES, np.zeros((9, 20)).tolist(), offset=0)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "variant\nA1G\n", "line 1: 'variant' looks like a header"),
        ("x.txt", "Mutations\nA1G\n", "line 1: 'Mutations' looks like a header"),
        ("x.csv", "A1G\nK2R\n", "The first line of .* holds 'A1G', which is a variant"),
        ("x.csv", "A1G:K2R,0.5\nK2R,1\n", "holds 'A1G:K2R', which is a variant"),
        ("x.csv", "variant\n", "holds no variants below its header, variant"),
    ],
)
def test__headers__that_are_missing_or_too_many_are_noticed(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, name, content)


def test__table__names_of_columns_may_be_capitalised(tmp_path):
    assert read(tmp_path, "x.csv", "id,Mutant\n1,A1G\n").variants == ["A1G"]


def test__table__a_column_that_is_not_asked_for_may_be_called_anything(tmp_path):
    assert read(tmp_path, "x.csv", "mutant,H2O\nA1G,5\n").variants == ["A1G"]
    assert read(tmp_path, "y.csv", "id,H2O\nA1G,5\n", column="id").variants == ["A1G"]
    with pytest.raises(InputError, match="'A1G', which is a variant"):
        read(tmp_path, "z.csv", "A1G,0.5\nK2R,1\n", column="A1G")


@pytest.mark.parametrize(
    ("name", "content", "header", "rows"),
    [
        (
            "x.csv",
            "mutant;y\nA1G;0,2\nK2R;1,1\n",
            ["mutant", "y"],
            [["A1G", "0,2"], ["K2R", "1,1"]],
        ),
        ("x.csv", "mutant;y\r\nA1G;0.2\r\n", ["mutant", "y"], [["A1G", "0.2"]]),
        ("x.csv", "sep=;\nmutant;y\nA1G;0,2\n", ["mutant", "y"], [["A1G", "0,2"]]),
        ("x.csv", "mutant\ty\nA1G\t2\n", ["mutant", "y"], [["A1G", "2"]]),
        ("x.tsv", "mutant,y\nA1G,2\n", ["mutant", "y"], [["A1G", "2"]]),
        ("x.csv", "mutant|y\nA1G|2\n", ["mutant", "y"], [["A1G", "2"]]),
        ("x.csv", "# made by me\nmutant,y\nA1G,2\n", ["mutant", "y"], [["A1G", "2"]]),
        ("x.csv", "#id,mutant\n1,A1G\n", ["#id", "mutant"], [["1", "A1G"]]),
        ("x.csv", "mutant ,y\nA1G,2\n", ["mutant", "y"], [["A1G", "2"]]),
        ("x.csv", "Mutations,y\nA1G,2\n\n,,\n", ["Mutations", "y"], [["A1G", "2"]]),
        ("x.csv", ",mutant\n0,A1G\n", ["", "mutant"], [["0", "A1G"]]),
        ("x.csv", b"mutant,note\nA1G,caf\xe9\n", ["mutant", "note"], [["A1G", "caf\u00e9"]]),
        ("x.tsv", "mutant\ty\nA1G\t2\n".encode("utf-16"), ["mutant", "y"], [["A1G", "2"]]),
        ("x.csv", 'mutant,y\n"A1G","1,5"\n', ["mutant", "y"], [["A1G", "1,5"]]),
        ("x.csv", "mutant;y;z\nA1G;0,2;0,3\n", ["mutant", "y", "z"], [["A1G", "0,2", "0,3"]]),
        ("x.csv.gz", "mutant,y\nA1G,2\n", ["mutant", "y"], [["A1G", "2"]]),
        ("x.txt", ">a\nMKT\n", ["id"], [["a"]]),
        ("x.txt", "mutant,y\nA1G,2\n", ["mutant", "y"], [["A1G", "2"]]),
        ("x.csv", "mutant\nA1G:K2R\nWT\n", ["mutant"], [["A1G:K2R"], ["WT"]]),
    ],
)
def test__tables__as_programs_write_them(tmp_path, name, content, header, rows):
    table = read(tmp_path, name, content)
    assert (table.header, table.rows) == (header, rows)


def test__missing_variants__are_all_counted(tmp_path):
    with pytest.raises(InputError, match=r"^2 of 3 rows cannot be used:\n  .*line 2.*\n  .*line 4"):
        read(tmp_path, "x.csv", "mutant,y\nNA,1\nA1G,1\n,2\n")
