"""README: its code runs, and its table matches the catalogue.

Blocks marked ``python`` and ``bash`` are run; ``console`` shows commands that make the
environment in which this test runs, or that need the network.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from esm2_features import available_models

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [code for tag, code in BLOCKS if tag == language]


def test__readme__marks_every_block_with_a_language_that_is_known():
    assert {tag for tag, _ in BLOCKS} == {"python", "bash", "console"}


@pytest.mark.parametrize("code", blocks("python"))
def test__readme__python_runs(code, tmp_path, monkeypatch):
    # In this process, where warnings are errors, too: a new one would import torch for each block.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESM2_FEATURES_CACHE", str(tmp_path / "cache"))
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("code", blocks("bash"))
def test__readme__commands_run(code, tmp_path):
    folder = str(Path(sys.executable).parent)
    path = os.pathsep.join([folder, os.environ["PATH"]])
    environment = {**os.environ, "PATH": path}
    command = ["bash", "-euo", "pipefail", "-c", code]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=300)


@pytest.mark.parametrize("card", available_models(), ids=lambda card: card.name)
def test__readme__table_of_models_is_that_of_the_catalogue(card):
    [row] = re.findall(rf"^\| `{card.name}`.*$", README, flags=re.MULTILINE)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    shape = card.architecture
    assert cells[1:4] == [card.parameters, str(shape.layers), str(shape.dim)]
    if card.weights is not None and card.weights.bytes is not None:
        size = card.weights.bytes
        assert cells[4] == (f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB")


def test__readme__is_short():
    assert len(README.encode()) < 8000
    assert len((ROOT / "CONTRIBUTING.md").read_bytes()) < 6000


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test__links__lead_somewhere(name):
    for target in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / name).read_text("utf-8")):
        assert (ROOT / target).exists(), target


def test__changelog__has_an_entry_for_every_public_name():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    import esm2_features

    assert [n for n in esm2_features.__all__ if n not in text and n != "exceptions"] == []
