"""`predict` writes what a saved model predicts, and keeps ids."""

from __future__ import annotations

import csv
import io
import sys

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline

from esm2_features import DescriptorTransformer, ESM2Transformer
from esm2_features.cli import main
from esm2_features.datasets import load_demo_peptides
from esm2_features.model_selection import load_model, save_model

FRAME = load_demo_peptides(as_frame=True).frame.iloc[::10].rename(columns={"name": "id"})
LENGTHS = FRAME["sequence"].str.len().astype(float)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    X = FRAME["sequence"]
    esm = make_pipeline(ESM2Transformer("mini", cache=None), LogisticRegression(max_iter=1000))
    save_model(
        folder / "kind.skops",
        esm.fit(X, FRAME["kind"]),
        target="kind",
        sequences=X,
        ids=FRAME["id"],
    )
    lengths = make_pipeline(DescriptorTransformer(), Ridge()).fit(X, LENGTHS)
    save_model(folder / "length.skops", lengths, residuals=np.arange(len(X)))
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch, models):
    monkeypatch.chdir(tmp_path)
    FRAME.to_csv("x.csv", index=False)

    def run(model, inputs, *words, out="out.csv", code=0, **runner):
        words = ["predict", str(models / f"{model}.skops"), inputs, "-o", out, *words]
        result = CliRunner().invoke(main, list(map(str, words)), **runner)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return run


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test__classes__have_probabilities_and_a_nearest_training_sequence(run, models, tmp_path):
    said = run("kind", "x.csv").stderr
    rows = rows_of((tmp_path / "out.csv").read_text())
    names = ["id", "prediction", "probability_hormone", "probability_toxin", "identity", "nearest"]
    assert list(rows[0]) == names
    assert [row["id"] for row in rows] == [row["nearest"] for row in rows] == list(FRAME["id"])
    expected = load_model(models / "kind.skops").predict(FRAME["sequence"])
    assert [row["prediction"] for row in rows] == expected["prediction"].tolist()
    found = [float(row["probability_toxin"]) for row in rows]
    np.testing.assert_allclose(found, expected["probability_toxin"], atol=1e-6)
    assert said.startswith(f"{len(FRAME)} predictions of kind -> ")


def test__numbers__have_intervals(run, tmp_path):
    said = run("length", "x.csv", "--coverage", "0.5").stderr
    rows = rows_of((tmp_path / "out.csv").read_text())
    assert list(rows[0]) == ["id", "prediction", "low", "high"]
    width = np.ceil(0.5 * (len(FRAME) + 1)) - 1
    assert all(float(r["high"]) - float(r["prediction"]) == pytest.approx(width) for r in rows)
    assert "does not hold its training sequences, so the columns identity and" in said


@pytest.mark.parametrize("out", ["out.csv", "out.tsv", "out.parquet", "-"])
@pytest.mark.parametrize("inputs", ["x.csv", "x.fasta", "x.xlsx", "-"])
def test__files__of_all_kinds_give_the_same(run, tmp_path, models, inputs, out):
    fasta = "".join(f">{i}\n{s}\n" for i, s in zip(FRAME["id"], FRAME["sequence"], strict=True))
    fasta = fasta.replace(" ", "_")
    (tmp_path / "x.fasta").write_text(fasta)
    FRAME.to_excel("x.xlsx", index=False)
    result = run("length", inputs, out=out, input=fasta)
    read = {"out.csv": pd.read_csv, "out.parquet": pd.read_parquet}
    read |= {"out.tsv": lambda path: pd.read_csv(path, sep="\t")}
    found = pd.read_csv(io.StringIO(result.stdout)) if out == "-" else read[out](tmp_path / out)
    assert found["id"].str.replace(" ", "_").tolist() == FRAME["id"].str.replace(" ", "_").tolist()
    expected = load_model(models / "length.skops").predict(FRAME["sequence"])
    np.testing.assert_allclose(found["prediction"], expected["prediction"], rtol=1e-6)


@pytest.mark.parametrize(
    ("renamed", "words"),
    [({}, ()), ({"sequence": "seq"}, ()), ({"sequence": "x"}, ("--sequence", "x"))],
)
def test__column__is_that_of_the_training_or_usual_or_named(run, renamed, words, tmp_path):
    # A second column with a usual name does not matter if the model's is there.
    FRAME.rename(columns=renamed).to_csv("y.csv", index=False)
    run("length", "y.csv", *words)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == len(FRAME) + 1
    FRAME.assign(peptide="MKTAYIAK").to_csv("z.csv", index=False)
    run("length", "z.csv", out="z.tsv")


@pytest.mark.parametrize(
    ("inputs", "words", "said"),
    [
        ("id,peptid,kind\na,MKTAYIAK,x\n", (), "Name the column of sequences: --column."),
        ("id,peptid\na,MKTAYIAK\n", ("--sequence", "peptide"), 'Did you mean "peptid"?'),
        ("id,sequence\na,MKTAYIAK\na,GSHM\n", (), "lines 2 and 3 have the same id, 'a'"),
        ("id,sequence\n", (), "holds no records"),
        ("", (), "holds no records"),
        ("id,sequence\na,MK1\nb,MK\nc,M!\n", (), "2 of 3 records cannot be used:\n  new.csv:"),
        ("id,sequence\na,MKTAYIAK\n", ("--cache", "none"), "the parameter 'cache', which no"),
        ("id,sequence\na,MKTAYIAK\n", ("--coverage", "90"), "90.0 is not in the range"),
    ],
)  # fmt: skip
def test__wrong_input__is_an_error(run, tmp_path, inputs, words, said):
    (tmp_path / "new.csv").write_text(inputs)
    assert said in run("length", "new.csv", *words, code=2).stderr
    assert not (tmp_path / "out.csv").exists()


def test__wrong_rows__have_their_own_numbers(run, tmp_path):
    (tmp_path / "new.csv").write_text("id,sequence\na,MK\nb,MK1\nc,M!\n")
    said = run("kind", "new.csv", code=2).stderr
    assert "Line 3, b: '1' at position 3 of the sequence in row 1 " in said
    assert "Line 4, c: '!' at position 2 of the sequence in row 2 " in said


def test__coverage__without_residuals_is_an_error(run):
    said = run("kind", "x.csv", "--coverage", "0.8", code=2).stderr
    assert "--coverage is of intervals, for which " in said


def test__text_file__is_no_model(run, models, tmp_path):
    (models / "text.skops").write_text("this is text")
    assert "text.skops is no saved model. Give a file that" in run("text", "x.csv", code=2).stderr


def test__missing_model__is_an_error(run):
    assert "none.skops: No such file" in run("none", "x.csv", code=2).stderr


def test__aligner__that_is_missing_leaves_out_columns_and_says_so_once(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "parasail", None)
    result = run("kind", "x.csv", out="-")
    assert "nearest" not in result.stdout
    assert result.stderr.count("esm2-features[families]") == 1


def test__options__change_what_the_model_was_trained_with(run, tmp_path):
    run("kind", "x.csv", "--cache", tmp_path / "cache", "--device", "cpu")
    assert any((tmp_path / "cache").iterdir())


def test__outputs__are_replaced_only_if_asked(run):
    run("length", "x.csv")
    assert "exists already" in run("length", "x.csv", code=2).stderr
    run("length", "x.csv", "--force")
    assert "OUT is IN" in run("length", "x.csv", "--force", out="x.csv", code=2).stderr
    assert "Let it end in .csv, .tsv, .parquet" in run("length", "x.csv", out="x.md", code=2).stderr
