"""`score` and `scan` write what the library computes, and name the variant that is wrong."""

from __future__ import annotations

import csv
import re

import numpy as np
import pytest
from click.testing import CliRunner

from esm2_features import Cache, Engine, scan_variants, score_variants
from esm2_features._inputs.alphabet import CANONICAL_RESIDUES
from esm2_features.cli import main
from esm2_features.cli.options import METHODS

PROTEIN = "MKTAYIAKQR"
VARIANTS = ["K2R", "K2R:Q9E", "WT", "MKTAYIAKQE"]


@pytest.fixture
def run(tmp_path):
    """Run a command on the protein, into an empty folder."""
    (tmp_path / "protein.fasta").write_text(f">P1 a protein\n{PROTEIN}\n")
    (tmp_path / "out").mkdir()

    def run(command, *words, protein=tmp_path / "protein.fasta", code=0, out="out.csv", **runner):
        path = tmp_path / "out" / out
        words = [command, protein, *words, "-o", path, "--model", "mini"]
        result = CliRunner().invoke(main, [str(word) for word in words], **runner)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        if code:
            assert "Traceback" not in result.stderr
            assert list((tmp_path / "out").iterdir()) == []
        return path, result.stderr

    return run


@pytest.fixture
def variants(tmp_path):
    def write(name, content):
        (tmp_path / name).write_text(content)
        return tmp_path / name

    return write


@pytest.fixture
def engine():
    return Engine("mini", cache=None)


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test__methods__are_those_of_the_library():
    from esm2_features import _variants

    assert METHODS == _variants.METHODS


# ------------------------------------------------------------------ score


@pytest.mark.parametrize("method", METHODS)
def test__score__is_that_of_the_library(run, variants, engine, method):
    file = variants("x.txt", "\n".join(VARIANTS))
    path, said = run("score", file, "--method", method, "--cache", "none")
    header, *rows = rows_of(path)
    assert header == ["variant", "score"]
    assert [row[0] for row in rows] == VARIANTS
    expected = score_variants(engine, PROTEIN, VARIANTS, method)
    assert [float(row[1]) for row in rows] == expected.tolist()
    assert re.fullmatch(rf"scores of 4 variants -> {re.escape(str(path))} \(\d+\.\d s\)\n", said)


def test__score__hgvs_as_mavedb_has_it(run, variants, engine):
    content = "accession,hgvs_pro\nu:1,p.Lys2Arg\nu:2,p.[Lys2Arg;Gln9Glu]\nu:3,p.=\n"
    path, _ = run("score", variants("x.csv", content))
    expected = score_variants(engine, PROTEIN, ["K2R", "K2R:Q9E", "WT"])
    assert [float(row[-1]) for row in rows_of(path)[1:]] == expected.tolist()


def test__score__all_columns_of_a_table(run, variants, engine):
    content = "id,mutant,DMS\n1,K2R,0.5\n2,WT,\n"
    path, _ = run("score", variants("x.csv", content))
    header, *rows = rows_of(path)
    assert header == ["id", "mutant", "DMS", "score"]
    assert [row[:3] for row in rows] == [["1", "K2R", "0.5"], ["2", "WT", ""]]
    expected = score_variants(engine, PROTEIN, ["K2R", "WT"])
    assert [float(row[3]) for row in rows] == expected.tolist()


def test__score__the_column_that_is_named(run, variants):
    file = variants("x.tsv", "variant\tother\nK2R\tWT\n")
    path, _ = run("score", file, "--column", "other")
    assert rows_of(path)[1] == ["K2R", "WT", "0.0"]


def test__score__sequences_of_mutants(run, variants, engine):
    file = variants("x.fasta", ">m1\nMKTAYIAKQE\n>m2\nMKTAYIAKQRG\n")
    path, _ = run("score", file, "--method", "pseudo-perplexity", "--per-residue")
    header, *rows = rows_of(path)
    assert header == ["id", "score"]
    sequences = ["MKTAYIAKQE", "MKTAYIAKQRG"]
    method = "pseudo-perplexity"
    expected = score_variants(engine, PROTEIN, sequences, method, per_residue=True)
    assert [row[0] for row in rows] == ["m1", "m2"]
    assert [float(row[1]) for row in rows] == expected.tolist()


def test__score__numbers_residues_as_asked(run, variants, engine):
    path, _ = run("score", variants("x.txt", "K25R"), "--offset", 23)
    [score] = score_variants(engine, PROTEIN, ["K2R"])
    assert rows_of(path)[1] == ["K25R", repr(float(score))]


def test__score__one_record_of_several(run, variants, tmp_path):
    (tmp_path / "two.fasta").write_text(f">a\nMMMM\n>b\n{PROTEIN}\n")
    run("score", variants("x.txt", "K2R"), "--id", "b", protein=tmp_path / "two.fasta")
    run("scan", "--id", "b", protein=tmp_path / "two.fasta", out="scan.csv")


def test__score__keeps_probabilities_in_the_cache(run, variants, tmp_path):
    words = ["score", variants("x.txt", "K2R"), "--cache", tmp_path / "cache"]
    run(*words)
    assert Cache(tmp_path / "cache").info().rows > 0


def test__score__standard_input(run):
    path, _ = run("score", "-", input="K2R\nWT\n")
    assert [row[0] for row in rows_of(path)] == ["variant", "K2R", "WT"]
    path, _ = run("score", "-", "--force", input=">m1\nMRTAYIAKQR\n>m2\nMKTAYIAKQR\n")
    assert [row[0] for row in rows_of(path)] == ["id", "m1", "m2"]


def test__score__standard_input_is_read_once(run):
    _, said = run("score", "-", protein="-", input=f">a\n{PROTEIN}\n", code=2)
    assert "PROTEIN and VARIANTS are both -" in said


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "K2R\n\nM2R\n", r"x\.txt, line 3: The variant 'M2R' in row 1 replaces M"),
        ("x.csv", "mutant\nK2R\nK20R\n", r"x\.csv, line 3: The variant 'K20R' .* --offset 0"),
        ("x.fa", ">a\nMKTAYIAKQE\n>b\nMKT\n", r"x\.fa, record 2, b: .* --method pseudo-perplexity"),
        ("x.fa", ">a\nMKTAYIAKQE\n>b\nMK!\n", r"x\.fa, record 2, b: '!' at position 3"),
        ("x.txt", "", "holds no variants"),
        ("x.csv", "a,b\n1,2\n", "Name the column of variants: --column"),
    ],
)
def test__score__wrong_variants_are_named(run, variants, name, content, message):
    _, said = run("score", variants(name, content), code=2)
    assert said.startswith("Error: ")
    assert re.search(message, said)


@pytest.mark.parametrize("command", ["score", "scan"])
@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (">a\nMKT\n>b\nMKV\n", [], "has 2 records (a, b), but variants are of one protein"),
        (">a\nMKT\n", ["--id", "b"], "has no record with the id 'b', but a."),
        (">a\nMK!\n", [], "Record 1, a: '!' at position 3"),
        (">a\nMKT\n>b\nMK!\n", ["--id", "b"], "Record 2, b: '!' at position 3"),
        (">a\nMKJT\n", ["--unknown", "mask"], "Record 1, a: The wild type holds a <mask>"),
        (">a\n" + "M" * 1023, [], "Record 1, a: The wild type has 1023 residues"),
        ("", [], "holds no records"),
    ],
)
def test__protein__that_is_wrong_is_named(
    run, variants, tmp_path, command, content, options, message
):
    (tmp_path / "wrong.fasta").write_text(content)
    words = [variants("x.txt", "WT")] if command == "score" else []
    _, said = run(command, *words, *options, protein=tmp_path / "wrong.fasta", code=2)
    assert message in said


@pytest.mark.parametrize("command", ["score", "scan"])
def test__too_long__is_never_cut(run, variants, command):
    words = [variants("x.txt", "WT")] if command == "score" else []
    _, said = run(command, *words, "--max-residues", 9, code=2)
    assert "Pass --too-long window to run it in overlapping windows, or --max-residues" in said
    assert "truncate" not in said
    _, said = run(command, *words, "--too-long", "truncate", code=2)
    assert "'truncate' is not one of 'raise', 'window'" in said
    run(command, *words, "--max-residues", 9, "--too-long", "window")


def test__score__sequences_of_mutants_are_never_cut(run, variants):
    file = variants("x.fasta", ">m1\nMKTAYIAKQRG\n")
    words = ["--method", "pseudo-perplexity", "--max-residues", 10]
    _, said = run("score", file, *words, code=2)
    assert "record 1, m1: The sequence in row 0 of column 'variants' has 11 residues" in said
    assert "truncate" not in said


def test__score__missing_variants_are_named(run, variants):
    _, said = run("score", variants("x.csv", "id,variant\n1,K2R\n2,NA\n"), code=2)
    assert "x.csv, line 3: 'NA' stands for a missing value" in said


def test__score__a_shifted_numbering_is_asked_for(run, variants):
    _, said = run("score", variants("x.txt", "K25R\nT26A\nA27G"), code=2)
    assert "Is the numbering shifted? All 3 mutations would fit with --offset 23." in said


def test__score__no_such_file(run, tmp_path):
    _, said = run("score", tmp_path / "nowhere.txt", code=2)
    assert "nowhere.txt: there is no such file" in said
    _, said = run("score", tmp_path / "nowhere.fa", code=2)
    assert "there is no such file" in said


@pytest.mark.parametrize("command", ["score", "scan"])
def test__output__is_checked_before_the_input(run, command):
    words = ["nowhere.txt"] if command == "score" else []
    _, said = run(command, *words, protein="nowhere.fasta", out="x.tsv", code=2)
    assert "which is not a format. Let it end in .csv." in said


def test__score__never_overwrites_its_own_input(run, variants):
    file = variants("x.csv", "variant\nWT\n")
    _, said = run("score", file, "--force", out=file, code=2)
    assert "OUT is IN" in said
    assert file.read_text() == "variant\nWT\n"


@pytest.mark.parametrize(("cache", "kept"), [("none", "nothing is kept"), ("there", "is in the")])
def test__score__interrupted(run, variants, tmp_path, cache, kept, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("esm2_features._variants.score_variants", interrupted)
    folder = "none" if cache == "none" else tmp_path / cache
    path, said = run("score", variants("x.txt", "WT"), "--cache", folder, code=130)
    assert f"Interrupted; {path} was not written, and " in said
    assert kept in said


# ------------------------------------------------------------------ scan


@pytest.mark.parametrize("method", METHODS[:2])
def test__scan__is_that_of_the_library(run, engine, method):
    path, said = run("scan", "--method", method, "--offset", 23)
    header, *rows = rows_of(path)
    assert header == ["variant", "position", "wildtype", "mutant", "score"]
    expected = scan_variants(engine, PROTEIN, method)
    assert len(rows) == 19 * len(PROTEIN)
    for variant, position, wildtype, mutant, score in rows:
        at = int(position) - 24
        assert variant == f"{wildtype}{position}{mutant}"
        assert wildtype == PROTEIN[at] != mutant
        assert float(score) == expected[at, CANONICAL_RESIDUES.index(mutant)]
    assert said.startswith(f"scores of 190 substitutions -> {path} (")


def test__scan__agrees_with_score(run, variants):
    path, _ = run("scan", "--offset", 5)
    _, *rows = rows_of(path)
    again, _ = run("score", path_without_scores(path, variants), "--offset", 5, out="again.csv")
    found = [float(row[-1]) for row in rows_of(again)[1:]]
    np.testing.assert_allclose(found, [float(row[-1]) for row in rows], atol=1e-12)


def path_without_scores(path, variants):
    return variants("x.csv", "\n".join(",".join(row[:-1]) for row in rows_of(path)))


def test__scan__is_drawn_where_asked(run, tmp_path):
    picture = tmp_path / "out" / "scan.png"
    path, said = run("scan", "--plot", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"{path}, drawn in {picture} (" in said
    assert sorted(item.name for item in path.parent.iterdir()) == ["out.csv", "scan.png"]


@pytest.mark.parametrize("plot", ["scan.pdf", "no/scan.png"])
def test__scan__place_of_the_picture_is_checked_first(run, tmp_path, plot):
    _, said = run("scan", "--plot", tmp_path / "out" / plot, protein="nowhere.fasta", code=2)
    assert "Let it end in .png" in said or "There is no folder" in said


def test__scan__never_draws_over_its_own_input(run, tmp_path):
    protein = tmp_path / "protein.png"
    protein.write_text(f">a\n{PROTEIN}\n")
    _, said = run("scan", "--plot", protein, "--force", protein=protein, code=2)
    assert "The picture is IN" in said
    assert protein.read_text() == f">a\n{PROTEIN}\n"


def test__scan__leaves_out_residues_that_are_not_canonical_and_says_so(run, tmp_path):
    (tmp_path / "odd.fasta").write_text(">a\nMX\n")
    _, said = run("scan", protein=tmp_path / "odd.fasta")
    assert said.startswith("scores of 19 substitutions")
    assert "without 1 positions that hold none of the 20 residues" in said


def test__scan__refuses_what_would_take_forever(run):
    _, said = run("scan", "--method", "pseudo-perplexity", code=2)
    assert "'pseudo-perplexity' is not one of" in said


@pytest.mark.filterwarnings("default:The sequence in row 0 has 11 residues")
def test__score__warns_of_another_length_in_the_words_of_the_shell(run, variants):
    file = variants("x.fasta", ">m1\nMKTAYIAKQRG\n")
    _, said = run("score", file, "--method", "pseudo-perplexity")
    assert "Warning: The sequence in row 0 has 11 residues, the wild type 10." in said
    assert "Pass --per-residue to compare means." in said


def test__score__words_for_the_wild_type(run, variants):
    path, _ = run("score", variants("x.csv", "mutant\nnative\n_sy\np.=\nK2=\n"))
    assert [row[1] for row in rows_of(path)[1:]] == ["0.0"] * 4


def test__score__remedies_are_options(run, variants):
    _, said = run("score", variants("x.txt", "MKTAYI\n"), code=2)
    assert "pass --method pseudo-perplexity with --per-residue" in said
    _, said = run("score", variants("y.fasta", ">a\nMK-AYIAKQR\n"), code=2)
    assert "Remove the alignment gaps ('-')." in said
    assert "sequence.replace" not in said
