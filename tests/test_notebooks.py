"""Notebooks as they are committed: in step with their scripts, executed, and fit to be shown.

That they run is for ``make notebooks``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

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
