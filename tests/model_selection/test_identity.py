"""`Aligner`: the numbers of the alignments, against a textbook aligner."""

from __future__ import annotations

import random

import numpy as np
import pytest
from Bio.Align import PairwiseAligner, substitution_matrices
from families import RESIDUES

from esm2_features.model_selection import identity
from esm2_features.model_selection.identity import Aligner
from esm2_features.model_selection.pairs import sorted_distinct


@pytest.fixture(scope="module")
def sequences() -> list[str]:
    """Pairs of relatives with substitutions, insertions and other ends."""
    rng = random.Random(0)
    found = []
    for _ in range(20):
        parent = rng.choices(RESIDUES, k=rng.randint(30, 120))
        child = [rng.choice(RESIDUES) if rng.random() < 0.25 else letter for letter in parent]
        at = rng.randrange(len(child))
        child[at:at] = rng.choices(RESIDUES, k=rng.randint(0, 4))
        found += ["".join(parent), "".join(child[rng.randint(0, 5) :])]
    return sorted_distinct(found)


def test__identities__are_those_of_an_optimal_alignment(sequences):
    blosum = substitution_matrices.load("BLOSUM62")
    biopython = PairwiseAligner(
        mode="local", substitution_matrix=blosum, open_gap_score=-11, extend_gap_score=-1
    )
    aligner = Aligner(sequences, 0.3, 0.3)
    compared = 0
    for query in range(len(sequences) - 1):
        targets = np.arange(query + 1, len(sequences))
        for target, value in zip(targets, aligner.identities(query, targets), strict=True):
            if value:
                # Several alignments can have the best score.
                best = biopython.align(sequences[query], sequences[target])
                counts = {
                    alignment.counts().identities / len(sequences[query])
                    for alignment, _ in zip(best, range(200), strict=False)
                }
                assert any(value == pytest.approx(count) for count in counts)
                compared += 1
    assert compared >= 20


def test__identities__are_the_same_with_either_aligner(sequences, monkeypatch):
    # pyopal scores many targets, parasail few.
    targets = np.arange(1, len(sequences))
    values = []
    for many in (1, 1000):
        monkeypatch.setattr(identity, "_MANY_TARGETS", many)
        values.append(Aligner(sequences, 0.2, 0.2).identities(0, targets))
    np.testing.assert_array_equal(*values)


def test__very_similar_long_proteins__do_not_overflow():
    rng = random.Random(1)
    parent = "".join(rng.choices(RESIDUES, k=9000))
    child = parent + "W"
    np.testing.assert_array_equal(
        Aligner([parent, child], 0.4, 0.5).identities(0, np.array([1])), 1
    )
