"""`cluster_sequences`: the definition of relatives, both engines, and what users pass."""

from __future__ import annotations

import csv
import gzip
import logging
import random
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
from conftest import SHARED_DATA
from families import (
    GLUCAGON,
    MAGAININ,
    RESIDUES,
    families_of,
    mutated,
    random_sequence,
    with_mmseqs,
)
from sklearn.metrics import adjusted_rand_score

from esm2_features.exceptions import (
    Esm2FeaturesError,
    InputError,
    InvalidSequenceError,
    MissingDependencyError,
    MissingSequenceError,
)
from esm2_features.model_selection import cluster_sequences, mmseqs, pairs


def are_together(a: str, b: str, **options) -> bool:
    first, second = cluster_sequences([a, b], **options)
    return bool(first == second)


# ------------------------------------------------------------------ what a family is


def test__families__are_numbered_by_first_appearance():
    sequences = [GLUCAGON, MAGAININ, "CYIQNCPLG", MAGAININ, GLUCAGON[:-1] + "K"]
    families = cluster_sequences(sequences)
    np.testing.assert_array_equal(families, [0, 1, 2, 1, 0])
    assert families.dtype == np.intp


@pytest.mark.parametrize(
    ("sequences", "families"),
    [([], []), (["MKT"], [0]), (["MKT", "MKT"], [0, 0]), (["MKT", "WWC"], [0, 1])],
)
def test__families__of_few_sequences(sequences, families):
    np.testing.assert_array_equal(cluster_sequences(sequences), families)


def test__families__do_not_depend_on_the_order():
    sequences = families_of(0, 30, (10, 80))
    order = np.random.default_rng(0).permutation(len(sequences))
    families = cluster_sequences(sequences)
    permuted = cluster_sequences([sequences[i] for i in order])
    together = families[order][:, None] == families[order]
    np.testing.assert_array_equal(together, permuted[:, None] == permuted)
    np.testing.assert_array_equal(families, cluster_sequences(sequences, n_jobs=1))


def test__families__are_chains_of_relatives():
    rng = random.Random(1)
    a = random_sequence(rng, 100)
    b = "".join(rng.choice(RESIDUES.replace(x, "")) for x in a[:40]) + a[40:]
    c = b[:60] + "".join(rng.choice(RESIDUES.replace(x, "")) for x in b[60:])
    assert not are_together(a, c, min_identity=0.5)
    np.testing.assert_array_equal(cluster_sequences([a, c, b], min_identity=0.5), [0, 0, 0])


# ------------------------------------------------------------------ what identity is


@pytest.mark.parametrize("identity", [0.5, 0.8])
def test__identity__is_of_the_shorter_sequence(identity):
    rng = random.Random(2)
    parent = random_sequence(rng, 100)
    child = random_sequence(rng, 150) + mutated(rng, parent, identity) + random_sequence(rng, 150)
    assert are_together(parent, child, min_identity=identity - 0.03)
    assert not are_together(parent, child, min_identity=identity + 0.05)


def test__identity__is_one_with_a_fragment():
    assert are_together(GLUCAGON, GLUCAGON[8:24], min_identity=1)


def test__identity__counts_gaps_as_no_match():
    with_gap = GLUCAGON[:14] + "GG" + GLUCAGON[14:]
    assert are_together(GLUCAGON, with_gap, min_identity=1)  # all of the shorter one is matched
    assert not are_together(with_gap, with_gap[:20] + with_gap[22:] + "WW", min_identity=0.97)


def test__coverage__is_of_the_shorter_sequence():
    rng = random.Random(3)
    domain = random_sequence(rng, 60)
    a, b = domain + random_sequence(rng, 40), random_sequence(rng, 60) + domain
    assert are_together(a, b)
    assert not are_together(a, b, coverage=0.8)


def test__identity__is_of_the_longer_sequence_below_8_residues():
    assert are_together("ACDEFGH", "ACDEFGY", min_identity=0.8)  # 6 of 7
    assert not are_together("ACDEFGH", "ACDEFGY", min_identity=0.9)
    assert are_together("CDEFG", "ACDEFGH", min_identity=0.7)  # 5 of 7
    assert not are_together("CDEFG", f"WWWW{'CDEFG'}WWWW", min_identity=0.7)
    assert are_together("ACDEFGHI", "WWWWACDEFGHIWWWW")


def test__short_peptides__do_not_connect_proteins():
    rng = random.Random(4)
    proteins = [random_sequence(rng, 300) for _ in range(20)]
    peptides = [protein[:3] for protein in proteins]
    families = cluster_sequences(proteins + peptides)
    assert len(set(families)) == len({*proteins, *peptides})


def test__agreement_by_chance__makes_no_families():
    rng = random.Random(5)
    sequences = [random_sequence(rng, rng.randint(9, 60)) for _ in range(300)]
    assert np.bincount(cluster_sequences(sequences, min_identity=0.3)).max() <= 3


def test__unknown_residues__are_identical_to_nothing():
    assert not are_together("X" * 20 + "ACDEFG", "X" * 20 + "WYWMKL")
    assert not are_together("ACDEFGHXXXX", "ACDEFGHXXXXX", min_identity=0.7)  # 7 of 11
    assert are_together("ACDEFGHXXX", "ACDEFGHXXXX", min_identity=0.7)
    assert are_together("ACDEFGHU", "ACDEFGHC", min_identity=1)  # selenocysteine is a cysteine
    np.testing.assert_array_equal(cluster_sequences(["XXXXXXXX", "XXXXXXXX"]), [0, 0])


# ------------------------------------------------------------------ what users pass


@pytest.mark.parametrize(
    "container",
    [
        np.array,
        pd.Series,
        pl.Series,
        lambda cells: pd.DataFrame({"sequence": cells}),
        lambda cells: [cell.lower() for cell in cells],
        lambda cells: [cell + "*" for cell in cells],
    ],
)
def test__input__is_what_embed_takes(container):
    sequences = [GLUCAGON, MAGAININ, GLUCAGON, "MKTAYIAKQRQISFVKSHFSRQ" * 60]
    np.testing.assert_array_equal(cluster_sequences(container(sequences)), [0, 1, 0, 2])


def test__errors__name_the_row():
    with pytest.raises(InvalidSequenceError, match=r"'1' at position 3 .* row 1") as caught:
        cluster_sequences([MAGAININ, "MK1AYIAKQR"])
    assert (caught.value.index, caught.value.position) == (1, 3)
    frame = pd.Series([MAGAININ, None], index=["p1", "p2"])
    with pytest.raises(MissingSequenceError, match=r"row 1 \(index 'p2'\)"):
        cluster_sequences(frame)
    with pytest.raises(TypeError, match="cluster_sequences needs protein sequences"):
        cluster_sequences(MAGAININ)


def test__unknown_letters__are_taken_as_in_the_transformer():
    with pytest.raises(InvalidSequenceError, match='unknown="X"'):
        cluster_sequences([MAGAININ, MAGAININ + "J"])
    for unknown in ("X", "mask"):
        families = cluster_sequences([MAGAININ, MAGAININ + "J"], unknown=unknown)
        np.testing.assert_array_equal(families, [0, 0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"min_identity": 40}, InputError, r"min_identity=40; .* Did you mean 0.4\?"),
        ({"min_identity": 0}, InputError, "greater than 0"),
        ({"min_identity": float("nan")}, InputError, "min_identity=nan"),
        ({"min_identity": "40%"}, TypeError, "min_identity='40%'"),
        ({"coverage": -0.1}, InputError, "coverage=-0.1"),
        ({"engine": "blast"}, InputError, "engine='blast'"),
        ({"unknown": "drop"}, InputError, "unknown='drop'"),
    ],
)
def test__options__are_checked(options, error, message):
    with pytest.raises(error, match=message):
        cluster_sequences([MAGAININ], **options)


# ------------------------------------------------------------------ engines


@pytest.mark.parametrize("package", ["parasail", "pyopal", "scoring_matrices"])
def test__missing_aligner__is_named_with_its_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r'pip install "esm2-features\[families\]"'):
        cluster_sequences([MAGAININ, GLUCAGON])


def test__missing_mmseqs__is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependencyError, match="apt-get install mmseqs2"):
        cluster_sequences([MAGAININ], engine="mmseqs")
    monkeypatch.setattr(pairs, "_TOO_MANY_SECONDS", 0.0)
    monkeypatch.setattr(pairs, "_MANY_SECONDS", 0.0)
    with pytest.raises(MissingDependencyError, match='engine="alignment" does it all the same'):
        cluster_sequences([MAGAININ, GLUCAGON])
    assert len(cluster_sequences([MAGAININ, GLUCAGON], engine="alignment")) == 2


def test__engine__is_told_to_the_logger(caplog):
    with caplog.at_level(logging.INFO, logger="esm2_features"):
        cluster_sequences([MAGAININ, GLUCAGON])
    assert 'Comparing 2 sequences with engine="alignment".' in caplog.text


@pytest.mark.parametrize("in_small_set", [True, False])
def test__proposed_pairs__give_the_families_of_all_pairs(monkeypatch, in_small_set):
    """What happens to proposals, also where MMseqs2 is not installed."""
    sequences = families_of(10, 40, (8, 200))
    given = []

    def propose_all(queries, targets, *, sensitivity, threads):
        given.append((sensitivity, min(map(len, queries))))
        rows = [(i, j) for i in range(len(queries)) for j in range(len(queries))]
        agreeing = [
            sum(a == b for a, b in zip(queries[i], queries[j], strict=False)) for i, j in rows
        ]
        return np.column_stack([rows, agreeing])

    monkeypatch.setattr(mmseqs, "is_installed", lambda: True)
    monkeypatch.setattr(mmseqs, "propose_pairs", propose_all)
    if not in_small_set:
        monkeypatch.setattr(pairs, "_SMALL_SET", 0)
    proposed = cluster_sequences(sequences, engine="mmseqs")
    np.testing.assert_array_equal(proposed, cluster_sequences(sequences, engine="alignment"))
    [(sensitivity, shortest)] = given
    assert sensitivity == (5.7 if in_small_set else 4.0)
    assert shortest >= (50 if in_small_set else 25)


@with_mmseqs
@pytest.mark.parametrize("min_identity", [0.4, 0.7])
def test__engines__agree(min_identity):
    sequences = families_of(6, 40, (8, 200))
    aligned = cluster_sequences(sequences, min_identity=min_identity, engine="alignment")
    proposed = cluster_sequences(sequences, min_identity=min_identity, engine="mmseqs")
    assert len(set(aligned)) < len(sequences)
    np.testing.assert_array_equal(aligned, proposed)


@with_mmseqs
def test__mmseqs__is_chosen_for_large_sets(monkeypatch, caplog):
    monkeypatch.setattr(pairs, "_MANY_SECONDS", 0.0)
    sequences = families_of(7, 5, (60, 90))
    with caplog.at_level(logging.INFO, logger="esm2_features"):
        families = cluster_sequences(sequences)
    assert 'engine="mmseqs"' in caplog.text
    np.testing.assert_array_equal(families, cluster_sequences(sequences, engine="alignment"))


@with_mmseqs
@pytest.mark.parametrize("sequences", [[], ["MKT"], [MAGAININ * 3], [MAGAININ * 3, GLUCAGON * 3]])
def test__mmseqs__of_few_sequences(sequences):
    families = cluster_sequences(sequences, engine="mmseqs")
    np.testing.assert_array_equal(families, range(len(sequences)))


def test__failure_of_mmseqs__is_an_error_that_tells_its_words(tmp_path, monkeypatch):
    program = tmp_path / "mmseqs"
    program.write_text("#!/bin/sh\necho 'no space left' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Esm2FeaturesError, match=r"createdb with exit code 3: no space left"):
        cluster_sequences([MAGAININ * 3, GLUCAGON * 3], engine="mmseqs")


# ------------------------------------------------------------------ real sequences


def toxicity_peptides() -> list[str]:
    path = SHARED_DATA / "toxicity_peptides.csv.gz"
    if not path.is_file():
        pytest.skip("toxicity peptides not available: no shared/data beside the checkout")
    with gzip.open(path, "rt") as file:
        return [row["sequence"] for row in csv.DictReader(file)]


@pytest.mark.slow
@with_mmseqs
@pytest.mark.parametrize("min_identity", [0.4, 0.7])
def test__real_peptides__are_the_same_families_with_both_engines(min_identity):
    sequences = toxicity_peptides()
    aligned = cluster_sequences(sequences, min_identity=min_identity, engine="alignment")
    proposed = cluster_sequences(sequences, min_identity=min_identity, engine="mmseqs")
    assert adjusted_rand_score(aligned, proposed) > 0.99
    assert np.bincount(aligned).max() < len(sequences) / 4
