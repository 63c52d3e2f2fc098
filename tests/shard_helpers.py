"""Inputs for shards, and a check of the result."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from esm2_features import Engine, open_embeddings

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def peptides(n: int, seed: int = 0) -> dict[str, str]:
    """Random peptides by id."""
    draw = random.Random(seed)
    return {f"p{i}": "".join(draw.choices(LETTERS, k=draw.randint(5, 25))) for i in range(n)}


def fasta(path: Path, sequences: dict[str, str]) -> Path:
    """Write a FASTA file, half of its records over two lines."""
    records = [f">{name} text\n{text[:9]}\n{text[9:]}\n" for name, text in sequences.items()]
    path.write_text("".join(records))
    return path


def check(
    folder: Path, sequences: dict[str, str], model: Path | str, *, is_alone: bool = True
) -> None:
    """Check that a folder has every sequence once, in order, with the vector of `Engine`.

    Unless it ``is_alone``, a worker of a job that has failed may still have been writing.
    """
    x = open_embeddings(folder)
    assert x.ids.tolist() == list(sequences)
    expected = Engine(model, cache=None).embed(list(sequences.values()))
    np.testing.assert_allclose(x[:], expected, atol=1e-6, rtol=0)
    assert x.verify() == []
    assert x.dataset().to_table(columns=["length"])["length"].to_pylist() == [
        len(text) for text in sequences.values()
    ]
    assert not is_alone or not list(folder.glob(".*")), "nothing half written is left"
