"""Random families of sequences, and what tests of engines need."""

from __future__ import annotations

import random
import shutil

import pytest

MAGAININ = "GIGKFLHSAKKFGKAFVGEIMNS"
GLUCAGON = "HSQGTFTSDYSKYLDSRRAQDFVQWLMNT"
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"

with_mmseqs = pytest.mark.skipif(
    shutil.which("mmseqs") is None, reason="MMseqs2 is not installed: apt-get install mmseqs2"
)


def random_sequence(rng: random.Random, length: int) -> str:
    return "".join(rng.choices(RESIDUES, k=length))


def mutated(rng: random.Random, sequence: str, identity: float) -> str:
    """Replace residues at random positions, but not at the ends."""
    letters = list(sequence)
    n = round((1 - identity) * len(letters))
    for i in rng.sample(range(1, len(letters) - 1), min(n, len(letters) - 2)):
        letters[i] = rng.choice(RESIDUES.replace(letters[i], ""))
    return "".join(letters)


def families_of(seed: int, n: int, lengths: tuple[int, int]) -> list[str]:
    """Random families of one to four relatives, in random order."""
    rng = random.Random(seed)
    found: list[str] = []
    for _ in range(n):
        parent = random_sequence(rng, rng.randint(*lengths))
        relatives = range(rng.randint(0, 3))
        found += [parent, *(mutated(rng, parent, rng.uniform(0.5, 1)) for _ in relatives)]
    rng.shuffle(found)
    return found
