"""Notebooks: in step with their scripts, executed, fit to be shown, and fit for other tables.

That they run on their own tables is for ``make notebooks``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from esm2_features.datasets import load_demo_peptides

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))
MOST_BYTES = 1_500_000

of_each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    notebook = json.loads(path.read_text("utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def outputs(path: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(cell, output) for cell in cells(path, "code") for output in cell["outputs"]]


def joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def shown_text(output: dict[str, Any]) -> str:
    """Everything of an output that is text, also within pictures that are text (SVG)."""
    parts = [output.get("text", "")]
    for kind, value in output.get("data", {}).items():
        if kind.startswith(("text/", "image/svg")):
            parts.append(value)
    return "\n".join(joined(part) for part in parts)


def test__notebooks__are_there_each_with_its_script():
    assert NOTEBOOKS
    assert [path.stem for path in NOTEBOOKS] == [path.stem for path in SCRIPTS]


@of_each
def test__notebook__has_the_cells_of_its_script(path):
    jupytext = pytest.importorskip("jupytext")
    of_script = jupytext.read(path.with_suffix(".py"))
    found = json.loads(path.read_text("utf-8"))["cells"]
    assert [(cell["cell_type"], joined(cell["source"])) for cell in found] == [
        (cell["cell_type"], cell["source"]) for cell in of_script["cells"]
    ]


@of_each
def test__notebook__was_executed_from_top_to_bottom(path):
    counts = [cell["execution_count"] for cell in cells(path, "code") if joined(cell["source"])]
    assert counts == list(range(1, len(counts) + 1))
    assert any(cell["outputs"] for cell in cells(path, "code"))


@of_each
def test__notebook__has_the_outputs_of_cells_that_show_something(path):
    for cell in cells(path, "code"):
        source = joined(cell["source"])
        if re.search(r"^(print|display|plt\.show)\(", source, flags=re.M):
            assert cell["outputs"], source


@of_each
def test__notebook__shows_no_error_and_no_warning(path):
    for cell, output in outputs(path):
        source = joined(cell["source"])
        assert output["output_type"] != "error", source
        assert output.get("name") != "stderr", source
        assert not re.search(r"\w+Warning\b", shown_text(output)), source


@of_each
def test__notebook__shows_no_path_of_the_machine_that_it_was_run_on(path):
    for cell, output in outputs(path):
        found = re.search(r"(?<![\w.])/(work|home|tmp|root|Users|var)/\S*", shown_text(output))
        assert found is None, f"{found and found[0]} in the output of: {joined(cell['source'])}"


@of_each
def test__notebook__says_in_words_what_pictures_show(path):
    for cell, output in outputs(path):
        if any(kind.startswith("image/") for kind in output.get("data", {})):
            alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt.split()) >= 4, joined(cell["source"])


@of_each
def test__notebook__is_small_enough_to_keep(path):
    assert path.stat().st_size < MOST_BYTES


@of_each
def test__notebook__begins_with_its_title(path):
    first = json.loads(path.read_text("utf-8"))["cells"][0]
    assert first["cell_type"] == "markdown"
    assert joined(first["source"]).startswith("# ")


# ------------------------------------------------------------------ your own table


def run_with(folder: Path, stem: str, **tables: pd.DataFrame) -> subprocess.CompletedProcess[str]:
    """Run a script as plain Python with other tables, without pictures and local data."""
    jupytext = pytest.importorskip("jupytext")
    pytest.importorskip("IPython")
    found = jupytext.read(FOLDER / f"{stem}.py")["cells"]
    [own] = [cell for cell in found if "your-data" in cell["metadata"].get("tags", [])]
    lines = []
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
        lines.append(f"{name} = pd.read_csv({str(folder / f'{name}.csv')!r})")
    own["source"] = "\n".join(lines)
    code = [cell["source"] for cell in found if cell["cell_type"] == "code"]
    script = folder / "script.py"
    script.write_text("\n\n".join(["import style\nstyle.say = print", *code]), "utf-8")
    home = {"ESM2_FEATURES_DATA": str(folder), "ESM2_FEATURES_CACHE": str(folder / "cache")}
    path = os.pathsep.join([str(FOLDER), str(FOLDER.parent)])
    strict = [f"-Werror::{name}" for name in ("UserWarning", "RuntimeWarning", "FutureWarning")]
    return subprocess.run(
        [sys.executable, *strict, "-Wignore:FigureCanvasAgg is non", script],
        env=os.environ | home | {"PYTHONPATH": path, "MPLBACKEND": "Agg"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def peptides(n_of_each: int = 15, **labels: str) -> pd.DataFrame:
    """Rows of the peptides that ship with the library, under other labels."""
    table = load_demo_peptides(as_frame=True).frame.sample(frac=1, random_state=0)
    table = table.groupby("kind").head(n_of_each)[["sequence", "kind"]]
    table["label"] = table["kind"].map(lambda kind: labels.get(kind, kind))
    return table.drop(columns="kind")


@pytest.mark.slow
def test__toxicity__speaks_of_the_labels_of_another_table(tmp_path):
    done = run_with(tmp_path, "02_toxicity", peptides=peptides(toxin="venom", hormone="not venom"))
    assert done.returncode == 0, done.stderr
    assert "15 are *venom*" in done.stdout
    assert "toxi" not in done.stdout


@pytest.mark.slow
def test__toxicity__takes_three_classes(tmp_path):
    table = peptides(25)
    is_long = (table["sequence"].str.len() > 35) & (table["label"] == "toxin")
    table.loc[is_long, "label"] = "long toxin"
    done = run_with(tmp_path, "02_toxicity", peptides=table)
    assert done.returncode == 0, done.stderr
    assert "a mean AUC" in done.stdout


@pytest.mark.slow
def test__toxicity__refuses_measured_numbers(tmp_path):
    table = peptides()
    table["label"] = table["sequence"].str.len() / 7
    done = run_with(tmp_path, "02_toxicity", peptides=table)
    assert done.returncode == 1
    assert "ValueError: The column label has" in done.stderr


AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


def substituted(rng: np.random.Generator, protein: str) -> tuple[str, str]:
    """A mutant, and how it is written."""
    at = int(rng.integers(len(protein)))
    residue = str(rng.choice([aa for aa in AMINO_ACIDS if aa != protein[at]]))
    return protein[:at] + residue + protein[at + 1 :], f"{protein[at]}{at + 1}{residue}"


def mutants(n_proteins: int, n_rows: int = 30) -> pd.DataFrame:
    """Mutants with changes of stability by chance, of some peptides."""
    rng, rows = np.random.default_rng(0), {}
    proteins = load_demo_peptides(as_frame=True).frame.sample(n_proteins, random_state=1)
    while len(rows) < n_rows:
        name, wildtype = proteins.iloc[len(rows) % n_proteins][["name", "sequence"]]
        mutation = substituted(rng, wildtype)[1]
        rows[name, mutation] = (name, wildtype, mutation, float(rng.normal(1)))
    return pd.DataFrame(rows.values(), columns=["protein", "wildtype", "mutation", "ddG"])


@pytest.mark.slow
@pytest.mark.parametrize(("n_proteins", "kept"), [(8, "families"), (1, "positions")])
def test__stability__takes_thirty_mutants(tmp_path, n_proteins, kept):
    table = mutants(n_proteins)
    done = run_with(tmp_path, "03_stability", table=table)
    assert done.returncode == 0, done.stderr
    assert f"Kept together: {kept}" in done.stdout
    assert "**positive should mean destabilising**" in done.stdout


@pytest.mark.slow
def test__stability__refuses_text(tmp_path):
    table = mutants(8).assign(ddG="destabilising")
    done = run_with(tmp_path, "03_stability", table=table)
    assert done.returncode == 1
    assert "ValueError: The column ddG holds text, such as 'destabilising'" in done.stderr


def antibodies(n_rows: int = 30) -> pd.DataFrame:
    """Antibodies that differ in a loop of six residues, with the same light chain."""
    rng = np.random.default_rng(0)
    loops = ["".join(rng.choice(list(AMINO_ACIDS), 6)) for _ in range(n_rows)]
    heavy = [f"EVQLVESGGGLVQPGGSLRLSCAASWGQGTLVT{loop}VSSASTKGP" for loop in loops]
    return pd.DataFrame({"heavy": heavy, "light": "DIQMTQSPSSLSASVGDRVTITC", "loop": loops})


def complexes(n_rows: int = 30) -> pd.DataFrame:
    """Complexes of some peptides with one target, which is the same in all rows."""
    rng, rows = np.random.default_rng(0), []
    ligands = load_demo_peptides(as_frame=True).frame.sample(6, random_state=1)
    target = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEG"
    for row in range(n_rows):
        name, ligand = ligands.iloc[row % 6][["name", "sequence"]]
        rows.append((name, ligand, target, substituted(rng, ligand)[0], target, rng.normal()))
    columns = ["complex", "wildtype_a", "wildtype_b", "sequence_a", "sequence_b", "ddg"]
    return pd.DataFrame(rows, columns=columns)


@pytest.mark.slow
def test__affinity__takes_text_labels_short_loops_and_constant_chains(tmp_path):
    table = antibodies()
    table["binds"] = np.where(np.arange(len(table)) % 3, "weak", "strong")
    done = run_with(tmp_path, "04_affinity", antibodies=table, pairs=complexes())
    assert done.returncode == 0, done.stderr
    assert "binds = weak" in done.stdout
    assert "kcal/mol" in done.stdout


@pytest.mark.slow
def test__affinity__takes_measured_numbers(tmp_path):
    table = antibodies()
    table["binds"] = table["loop"].str.count("[KR]") + np.linspace(0, 0.5, len(table))
    done = run_with(tmp_path, "04_affinity", antibodies=table, pairs=complexes())
    assert done.returncode == 0, done.stderr
    assert "binds in the top fifth" in done.stdout
