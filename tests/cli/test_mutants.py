"""`mutants` writes what `build_mutants` finds, beside the columns of the table."""

from __future__ import annotations

import csv
import re

import pytest
from click.testing import CliRunner

from esm2_features.cli import main

WILDTYPE = "MKTAYIAKQR"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.fasta").write_text(f">P1 a protein\n{WILDTYPE}\n")
    (tmp_path / "two.fasta").write_text(f">P1\n{WILDTYPE}\n>P2\nGSHMVLSEGE\n")

    def run(table, *words, code=0, name="x.csv"):
        (tmp_path / name).write_text(table)
        result = CliRunner().invoke(main, ["mutants", name, "-o", "out.csv", *map(str, words)])
        assert result.exit_code == code, result.output
        rows = []
        if code < 2:
            with (tmp_path / "out.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))
        return rows, result.stderr

    return run


NAMED = ("--column", "what", "--protein-column", "who")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (f"mutation,wildtype_sequence,ddG\nK2R,{WILDTYPE},1\n", ()),
        (f"mut;wt;ddG\nK2R;{WILDTYPE};0,5\n", ("--wildtype-column", "wt")),
        ("mutant\tDMS\nK2R\t1\n", ("--wildtypes", "p.fasta")),
        ("hgvs_pro,score\np.Lys2Arg,1\n", ("--wildtypes", "p.fasta")),
        ("hgvs_p,target\np.Lys2Arg,1\n", ("--wildtypes", "p.fasta")),
        ("WT_name,mut_type,aa\nP1,1,K2R\n", ("--wildtypes", "two.fasta", "--column", "aa")),
        ("protein_id,mutation\nP1,K2R\n", ("--wildtypes", "two.fasta")),
        ("who,what\nP1,K2R\n", ("--wildtypes", "two.fasta", *NAMED)),
        ("protein_id,mutation\nP1,K25R\n", ("--wildtypes", "two.fasta", "--offset", "P1=23")),
        ("mutation\nK25R\n", ("--wildtypes", "p.fasta", "--offset", 23)),
    ],
)
def test__table__gets_columns(run, table, words):
    [row], said = run(table, *words)
    assert (row["mutant_sequence"], row["positions"]) == ("MRTAYIAKQR", "1")
    assert WILDTYPE in row.values()
    assert row["status"] in ("ok", "offset")
    assert "1 mutants of 1 rows -> " in said


def test__rows_without_a_mutant__are_named_and_the_exit_code_is_1(run):
    table = f"mutation,wildtype\nK2R,{WILDTYPE}\n\nA2R,{WILDTYPE}\nQ9E,{WILDTYPE}\n"
    rows, said = run(table, "--offset", 0, code=1)
    assert [row["status"] for row in rows] == ["ok", "unfit", "ok"]
    assert "it replaces A at 2" in rows[1]["problem"]
    assert "x.csv, line 4: 'A2R' does not fit" in said
    assert "Error: 1 rows have no mutant" in said


BOTH = ("--wildtypes", "p.fasta", "--wildtype-column", "wt")


@pytest.mark.parametrize(
    ("table", "words", "said"),
    [
        ("mutation\nK2R\n", (), "one column of wild types.* --wildtypes"),
        ("a,b\n1,2\n", (), "one column of mutations, and has the columns a, b"),
        ("mutation\nK2R\n", ("--wildtypes", "two.fasta"), "one column of proteins"),
        ("mutation\nK2R\n", ("--wildtypes", "no.fasta"), "there is no such file"),
        (f"mutation,wt\nK2R,{WILDTYPE}\n", BOTH, "both give wild types"),
        (f"mutation,wt,status\nK2R,{WILDTYPE},1\n", (), "has a column 'status' already"),
        (f"mutation,wt\nK2R,{WILDTYPE}\n", ("--offset", "x"), "neither a number nor PROTEIN"),
        (f"mutation,wt\nK2R,{WILDTYPE}\n", ("--protein-column", "x"), "no column 'x'"),
    ],
)
def test__wrong_input__is_named(run, table, words, said):
    assert re.search(said, run(table, *words, code=2)[1])
