"""`evaluate` makes a report and a model of a table, and says what is wrong with a table."""

from __future__ import annotations

import csv
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner

from esm2_features._inputs.labelled import read_labelled_table
from esm2_features.cli import main
from esm2_features.datasets import load_demo_peptides
from esm2_features.model_selection import load_model

FRAME = load_demo_peptides(as_frame=True).frame
FRAME = FRAME[FRAME["sequence"].str.len() < 24].reset_index(drop=True)
CHARGE = [(s.count("K") + s.count("R") - s.count("D")) / len(s) for s in FRAME["sequence"]]
QUICK = ("--model", "mini", "--layers", "6", "--pooling", "mean", "--cv", "3")
pytestmark = pytest.mark.xdist_group("evaluate")  # the reports are made once
FILES = ["comparison.csv", "model.skops", "predictions.csv", "report.html"]
EVIL = '<script>alert("x")</script>'


def invoke(folder, table, *words, code=0):
    words = ["evaluate", str(table), "-o", str(folder), *QUICK, *map(str, words)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Page(HTMLParser):
    """What a page has: its elements, and its text."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Report on classes, of a table with odd ids, names, and rows without a target."""
    folder = tmp_path_factory.mktemp("classes")
    frame = FRAME.rename(columns={"sequence": "pep", "kind": "what <b>is</b> it", "name": "id"})
    frame["id"] = [f"{EVIL}{i}" for i in range(len(frame))]
    frame.loc[[1, 2, 3], "what <b>is</b> it"] = ["", "NA", "n/a"]
    frame["what <b>is</b> it"] = frame["what <b>is</b> it"].replace("toxin", "toxin & <i>co</i>")
    frame.to_csv(folder / "x.csv", index=False)
    words = ("--sequence", "pep", "--target", "what <b>is</b> it")
    return folder / "report", invoke(folder / "report", folder / "x.csv", *words)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """Report on numbers, of an Excel table with a column of groups."""
    folder = tmp_path_factory.mktemp("numbers")
    groups = [f"g{i % 12}" for i in range(len(FRAME))]
    FRAME.assign(charge=CHARGE, group=groups).to_excel(folder / "x.xlsx", index=False)
    words = ("--target", "charge", "--group", "group", "--id-column", "name")
    return folder / "report", invoke(folder / "report", folder / "x.xlsx", *words)


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(frame, name="x.csv"):
        frame.to_csv(name, index=False)
        return name

    return write


# ------------------------------------------------------------------ what is written


def test__classes__are_reported(classes):
    folder, result = classes
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert result.stdout.startswith("On families that it has not seen, a classifier on embeddings")
    assert "Rows without a target, which are dropped: 3\n" in result.stderr
    page = Page(folder / "report.html")
    for said in (
        *(result.stdout.strip(), f"{len(FRAME) - 3} with a target", "rows without a target: 3"),
        *("toxin & <i>co</i>: ", "hormone: ", "predicted hormone", "model.skops new.fasta"),
        *("scikit-learn", "mini is a demonstration model", "an identity of at least 40%"),
    ):
        assert said in page.text


def test__page__is_one_file_of_semantic_elements_without_scripts(classes):
    page = Page(classes[0] / "report.html")
    tags = [tag for tag, _ in page.elements]
    assert not {"script", "link", "iframe", "object", "i", "b"} & set(tags)
    assert tags.count("h1") == tags.count("main") == 1
    assert tags.count("h2") == 7
    assert len(page.of("img")) == 3
    for image in page.of("img"):
        assert image["src"].startswith("data:image/png;base64,")
        assert len(image["alt"]) > 30
    assert page.of("html") == [{"lang": "en"}]
    assert any(meta.get("name") == "viewport" for meta in page.of("meta"))
    addresses = [v for _, a in page.elements for k, v in a.items() if k in ("src", "href")]
    assert all(address.startswith("data:") for address in addresses)
    assert "<script>alert" in page.text  # as text


def test__predictions__are_of_models_that_did_not_see_the_family(classes):
    rows = rows_of(classes[0] / "predictions.csv")
    assert list(rows[0])[:4] == ["id", "row", "target", "prediction"]
    assert len(rows) == len(FRAME) - 3
    assert (rows[0]["id"], rows[0]["row"], rows[1]["row"]) == (f"{EVIL}0", "line 2", "line 6")
    folds = {}
    for row in rows:
        assert folds.setdefault(row["family"], row["fold"]) == row["fold"]
        shares = {name: float(row[f"probability_{name}"]) for name in ("hormone", row["target"])}
        assert (row["prediction"] == "hormone") == (shares["hormone"] > 0.5)
    assert set(folds.values()) == {"0", "1", "2"}


def test__scores__are_those_of_the_page(classes):
    rows = rows_of(classes[0] / "comparison.csv")
    assert {row["kind"] for row in rows} == {"procedure", "embedding", "baseline"}
    text = Page(classes[0] / "report.html").text
    for row in rows:
        assert row["features"] in text
        assert f"{float(row['score']):.3f}" in text


def test__model__predicts_and_has_ids(classes):
    model = load_model(classes[0] / "model.skops")
    found = model.predict(FRAME["sequence"][:1])
    assert found["nearest"].tolist() == [f"{EVIL}0"]
    assert (model.target, model.columns) == ("what <b>is</b> it", ["pep"])


def test__numbers__are_reported_with_groups_and_intervals(numbers):
    folder, result = numbers
    assert "a regressor on embeddings of mini reaches a rank correlation" in result.stdout
    page = Page(folder / "report.html")
    assert "12, the largest of 5 rows; from the column 'group'" in page.text
    assert re.search(r"correlation [01]\.\d+, mean absolute error", page.of("img")[-1]["alt"])
    rows = rows_of(folder / "predictions.csv")
    assert {row["fold"] for row in rows} == {"0", "1", "2"}
    errors = [abs(float(row["target"]) - float(row["prediction"])) for row in rows]
    found = load_model(folder / "model.skops").predict(FRAME["sequence"][:3])
    width = (found["high"] - found["low"])[0] / 2
    # The groups are of nearly one size, so that the quantile is nearly that of the rows.
    assert np.quantile(errors, 0.9) <= width <= max(errors) + 1e-6
    assert found["nearest"].tolist() == FRAME["name"][:3].tolist()


def test__report__is_replaced_only_if_asked_and_if_it_is_one(classes, write, tmp_path):
    table = write(FRAME)
    words = (table, "--target", "kind")
    assert "exists already" in invoke(classes[0], *words, code=2).stderr
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    assert "such as notes.txt" in invoke("other", *words, "--force", code=2).stderr
    (tmp_path / "file").touch()
    assert "is a file" in invoke("file", *words, "--force", code=2).stderr
    assert "There is no folder" in invoke("a/b", *words, code=2).stderr
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"


# ------------------------------------------------------------------ wrong input

SMALL = FRAME.iloc[10:40].reset_index(drop=True)


def changed(**columns):
    return SMALL.assign(**columns)


@pytest.mark.parametrize(
    ("frame", "words", "said"),
    [
        (SMALL, ("--target", "knd"), r'the column \'knd\' once.* Did you mean "kind"\?'),
        (SMALL, ("--target", "kind", "--sequence", "seq"), r'Did you mean "sequence"\?'),
        (SMALL, ("--target", "kind", "--group", "famly"), r"Name the column of groups: --group"),
        (
            SMALL,
            ("--target", "sequence"),
            r"holds the sequences, and cannot be that of the targets",
        ),
        (SMALL, (), r"Missing option '--target'"),
        (changed(kind="toxin"), ("--target", "kind"), r"All targets are 'toxin'"),
        (changed(kind=1.5), ("--target", "kind"), r"All targets are 1\.5"),
        (changed(kind=""), ("--target", "kind"), r"no row with a target in the column 'kind'"),
        (
            changed(kind=[">100", *np.arange(29) / 7]),
            ("--target", "kind"),
            r"line 2: the target '>100' is no finite number\.\nWrite a number.*--task classificat",
        ),
        (
            changed(kind=[f"0,{i}" for i in range(30)]),
            ("--target", "kind", "--task", "regression"),
            r"30 of 30 targets cannot be used:(.|\n)*Write decimal points in the place of commas",
        ),
        (
            changed(kind=["rare", "rare", *["often"] * 13, *["usual"] * 15]),
            ("--target", "kind"),
            r"The class 'rare' is in \d famil.*--groups none",
        ),
        (changed(id="same"), ("--target", "kind"), r"line 3 has the id 'same' of line 2.*none"),
        (SMALL.iloc[:0], ("--target", "kind"), r"holds no rows"),
        (
            changed(sequence=["MK1", *SMALL["sequence"][1:-1], "M!"]),
            ("--target", "kind"),
            r"2 of 30 records cannot be used:\n  x.csv: line 2: '1' at position 3 .* row 0",
        ),
        (
            changed(group=["", *["a"] * 29]),
            ("--target", "kind", "--group", "group"),
            r"line 2: the column 'group' is empty, in 1 of 30 rows",
        ),
        (
            SMALL,
            ("--target", "kind", "--group", "kind", "--min-identity", "0.3"),
            r"--group and --min-identity both",
        ),
        (changed(group=["a", "b"] * 15), ("--target", "kind", "--group", "group"), r"--cv|famil"),
    ],
)
def test__wrong_input__is_an_error(write, tmp_path, frame, words, said):
    result = invoke("report", write(frame), *words, code=2)
    assert re.search(said, result.stderr), result.stderr
    assert not (tmp_path / "report").exists()


def test__column__that_is_there_twice_is_not_suggested(write, tmp_path):
    table = write(SMALL)
    text = (tmp_path / table).read_text().replace("name,", "kind,", 1)
    (tmp_path / table).write_text(text)
    said = invoke("report", table, "--target", "kind", code=2).stderr
    assert "should have the column 'kind' once" in said
    assert "Did you mean" not in said


def test__missing_package__is_named_before_anything_is_computed(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "skops.io", None)
    said = invoke("report", write(SMALL), "--target", "kind", code=2).stderr
    assert 'pip install "esm2-features[evaluate]"' in said


def test__independent_rows__that_are_relatives_are_warned_of_on_the_page(write, tmp_path):
    said = invoke("report", write(SMALL), "--target", "kind", "--group", "none").stderr
    text = Page(tmp_path / "report" / "report.html").text
    assert "none: rows were taken as independent" in text
    assert ("have relatives in the training set" in said) == ("have relatives in the" in text)
    assert "have relatives in the" in text


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["0", "1", "1.0", "NA"], [0, 1, 1]),
        (["1e-3", " 2 ", "nan", ""], [0.001, 2.0]),
        (["+", "-", "+"], ["+", "-", "+"]),
        (["True", "False", "None"], ["True", "False"]),
        (["weak", "strong", "-"], ["weak", "strong"]),
        (["1", "2b", "3c"], ["1", "2b", "3c"]),
    ],
)
def test__targets__are_read_as_numbers_or_text(tmp_path, cells, values):
    lines = [f"MKTAYIAK;{cell}" for cell in cells]
    (tmp_path / "x.csv").write_text("\n".join(["sequence;y", *lines]))
    table = read_labelled_table(str(tmp_path / "x.csv"), target="y")
    assert table.targets == values
    assert [type(value) for value in table.targets] == [type(value) for value in values]
    assert table.n_dropped == len(cells) - len(values)
    assert table.ids == [str(i) for i in range(len(values))]


def test__fasta__is_no_table(tmp_path):
    (tmp_path / "x.fasta").write_text(">a\nMKTAYIAK\n")
    said = invoke(tmp_path / "report", tmp_path / "x.fasta", "--target", "y", code=2).stderr
    assert "is no table. Give a table" in said
