"""Texts that a spreadsheet would compute."""

import csv

import pytest
from click.testing import CliRunner

from esm2_features._io.cells import harmless
from esm2_features.cli import main


@pytest.mark.parametrize(
    "text",
    ["=1+1", "=cmd|'/C calc'!A0", "+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "--", "'=1"],
)
def test__harmless__formulas_get_an_apostrophe(text):
    assert harmless(text) == f"'{text}"


@pytest.mark.parametrize(
    "value",
    ["P12345", "sp|P1|X", "'a", "-", "+", "-5", "+1.5", "-1e-3", "", "a=1", 0.5, -3, None, True],
)
def test__harmless__everything_else_stays_as_it_is(value):
    assert harmless(value) is value


def test__embed__ids_in_csv_are_no_formulas_and_others_are_as_they_are(tmp_path):
    ids = ["=HYPERLINK(1)", "@a", "P12345", "-7"]
    fasta, output = tmp_path / "in.fasta", tmp_path / "out.csv"
    fasta.write_text("".join(f">{name}\nMKTAY\n" for name in ids))
    done = CliRunner().invoke(main, ["embed", str(fasta), "-o", str(output), "--model", "mini"])
    assert done.exit_code == 0, done.output
    with output.open(newline="") as file:
        assert [row[0] for row in csv.reader(file)] == [
            "id",
            "'=HYPERLINK(1)",
            "'@a",
            "P12345",
            "-7",
        ]
