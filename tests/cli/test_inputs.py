"""All commands read the same files, expand paths, and name all that is wrong in a file."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from esm2_features import open_embeddings
from esm2_features.cli import main

A, B = "MKTAYIAKQR", "GSHMVLSEGE"
FRAME = pd.DataFrame({"name": ["a", "b"], "chain": [A, B], "y": [0.5, 1.5]})
COLUMNS = ("--column", "chain", "--id-column", "name")


@pytest.fixture
def run(tmp_path, monkeypatch, tiny_checkpoint):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESM2_FEATURES_CACHE", str(tmp_path / "cache"))
    (tmp_path / "p.fasta").write_text(f">p\n{A}\n")
    (tmp_path / "x.csv").write_text(f"name;chain;y\na;{A};0,5\nb;{B};1,5\n")
    (tmp_path / "x.tsv").write_text(f"name\tchain\ty\na\t{A}\t0.5\nb\t{B}\t1.5\n", "utf-16")
    FRAME.to_parquet(tmp_path / "x.parquet")
    FRAME.to_excel(tmp_path / "x.xlsx")

    def run(command, *words, code=0, model=tiny_checkpoint):
        words = [command, *words, *(() if model is None else ("--model", model))]
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result.output

    return run


TABLES = pytest.mark.parametrize("table", ["x.csv", "x.tsv", "x.parquet", "x.xlsx"])


@TABLES
def test__embed_and_residues__read_tables(run, table):
    run("embed", table, "-o", "out.npz", *COLUMNS)
    with np.load("out.npz") as archive:
        assert archive["id"].tolist() == ["a", "b"]
    run("residues", table, "-o", "residues.npz", *COLUMNS)
    with np.load("residues.npz") as archive:
        assert sorted(archive) == ["a", "b"]
    assert re.search(r"sequences +2\n", run("estimate", table, *COLUMNS, "--device", "t4"))


@TABLES
def test__shards__read_tables(run, table):
    run("embed", table, "vectors", *COLUMNS)
    assert open_embeddings("vectors").ids.tolist() == ["a", "b"]
    run("embed", table, "numbered", "--column", "chain")
    assert open_embeddings("numbered").ids.tolist() == ["0", "1"]


@TABLES
def test__score__reads_tables(run, table):
    run("score", "p.fasta", table, "-o", "s.csv", "--column", "chain")
    scores = pd.read_csv("s.csv")
    assert scores["score"].iloc[0] == 0
    assert list(scores.columns)[-4:] == ["name", "chain", "y", "score"]


def test__shards__of_every_kind_and_what_a_folder_leaves_out(run, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.fasta").write_text(f">a\n{A}\n")
    (folder / "notes.txt").write_text("notes")
    (folder / "x.csv").write_text(f"id,sequence\nb,{B}\n")
    said = run("embed", "in", "one")
    assert "Left out of the input folder: 2 other files and folders (notes.txt, x.csv)" in said
    assert "Left out of the input folder: 2" in run("estimate", "in", "--device", "t4")
    run("embed", "in", "in/x.csv", "two")
    assert open_embeddings("two").ids.tolist() == ["a", "b"]


@pytest.mark.parametrize("column", [[["M", "K"]], [0.5], [{"a": 1}]])
@pytest.mark.parametrize("words", [("-o", "out.npz"), ("vectors",)])
def test__parquet__of_no_text_is_an_error_before_anything_starts(run, tmp_path, column, words):
    pd.DataFrame({"id": ["a"], "sequence": column}).to_parquet("y.parquet")
    said = run("embed", "y.parquet", *words, code=2)
    assert "the column 'sequence' holds " in said
    assert not (tmp_path / "vectors").exists()


def test__records__that_are_wrong_are_all_counted(run, tmp_path):
    rows = "".join(f">r{i}\n{A if i % 2 else 'MK1'}\n" for i in range(30))
    (tmp_path / "bad.fasta").write_text(rows)
    for command in ("embed", "residues"):
        said = run(command, "bad.fasta", "-o", "out.npz", code=2)
        assert "Error: 15 of 30 records cannot be used:\n  bad.fasta: Record 1, r0: '1' at" in said
        assert said.count("\n  bad.fasta: Record ") == 10
        assert "... and 5 more" in said
    (tmp_path / "v.csv").write_text("mutant\nK2R\nA2R\nK20R\nQ9E\n")
    said = run("score", "p.fasta", "v.csv", "-o", "s.csv", code=2)
    assert "2 of 4 records cannot be used:\n  v.csv, line 3: " in said
    assert "The variant 'K20R' in row 2 mutates position 20" in said
    said = run("embed", "bad.fasta", "vectors", code=1)
    assert said.count("Set aside: ") == 10
    assert "Error: 15 were set aside" in said
    assert len(open_embeddings("vectors")) == 15


def test__paths__are_expanded(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", str(tmp_path))
    run("embed", "~/p.fasta", "-o", "~/out.npz", "--cache=~/other")
    assert (tmp_path / "out.npz").exists()
    assert (tmp_path / "other").exists()
    run("embed", "$DATA/p.fasta", "--output=${DATA}/out2.npz")
    assert (tmp_path / "out2.npz").exists()
    (tmp_path / "$DATA.fasta").write_text(f">p\n{A}\n")  # a file of this name comes first
    run("embed", "$DATA.fasta", "-o", "out3.npz")


def test__model__is_a_path_that_is_expanded(run, tmp_path, monkeypatch, tiny_checkpoint):
    monkeypatch.setenv("WEIGHTS", str(tiny_checkpoint.parent))
    run("embed", "p.fasta", "-o", "out.npz", f"--model=$WEIGHTS/{tiny_checkpoint.name}", model=None)


def test__h5__goes_out_and_comes_in(run):
    run("embed", "x.csv", "-o", "out.h5", *COLUMNS, model="mini")
    run("embed", "x.csv", "-o", "hash.h5", *COLUMNS, "--h5-keys", "hash", model="mini")
    said = run("cache", "import", "out.h5", "--layer", 6, "--pooling", "mean", code=2, model=None)
    assert "Give the file that they are in: --sequences" in said


def test__columns__are_of_tables(run):
    assert "is not a table" in run("embed", "p.fasta", "-o", "o.npz", "--column", "x", code=2)


def test__a_word_for_missing_that_could_be_a_peptide__is_decided_by_its_column(run, tmp_path):
    (tmp_path / "proteins.csv").write_text("id,sequence\na,MKTAYIAKQR\nb,NA\n")
    (tmp_path / "peptides.csv").write_text("id,sequence\na,GA\nb,NA\nc,KR\nd,WY\n")
    said = run("embed", "proteins.csv", "-o", "out.npz", code=2)
    assert "Line 3, b" in said
    assert "'NA' in row 1 means a missing value" in said
    assert "on_missing" not in said
    said = run("embed", "proteins.csv", "shards", code=1)
    assert "(id b): The text 'NA'" in said
    assert "on_missing" not in said
    run("embed", "peptides.csv", "-o", "out.npz")
