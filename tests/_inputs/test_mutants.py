"""Mutations as tables have them become sequences, or rows that say what is wrong with them."""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from esm2_features import build_mutants
from esm2_features._inputs.fasta import FastaRecord
from esm2_features._inputs.notation import read_substitutions
from esm2_features.exceptions import InputError

WILDTYPE = "MKTAYIAKQR"
DATA = Path(__file__).parents[2].parent / "shared" / "data"
LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def random_protein(n, seed=0):
    return "".join(np.random.default_rng(seed).choice(list(LETTERS), n))


def numbered(protein, numbers, at):
    """Write a mutation to W, or A, at some positions, by their numbers."""
    return [f"{protein[i]}{numbers[i]}{'A' if protein[i] == 'W' else 'W'}" for i in at]


def mutant_of(protein, i):
    return protein[:i] + ("A" if protein[i] == "W" else "W") + protein[i + 1 :]


# ------------------------------------------------------------------ notation


@pytest.mark.parametrize(
    ("text", "sequence", "positions"),
    [
        ("K2R", "MRTAYIAKQR", (1,)),
        ("k2r", "MRTAYIAKQR", (1,)),
        (" K2R ", "MRTAYIAKQR", (1,)),
        ("K2R:Q9E", "MRTAYIAKER", (1, 8)),  # ProteinGym
        ("K2R,Q9E", "MRTAYIAKER", (1, 8)),  # SKEMPI, GB1
        ("K2R, Q9E", "MRTAYIAKER", (1, 8)),
        ("K2R;Q9E", "MRTAYIAKER", (1, 8)),
        ("K2R/Q9E", "MRTAYIAKER", (1, 8)),
        ("K2R+Q9E", "MRTAYIAKER", (1, 8)),
        ("K2R Q9E", "MRTAYIAKER", (1, 8)),
        ("K2R_Q9E", "MRTAYIAKER", (1, 8)),
        ("K2R|Q9E", "MRTAYIAKER", (1, 8)),
        ("Q9E:K2R", "MRTAYIAKER", (1, 8)),
        ("K2R:Q9E:", "MRTAYIAKER", (1, 8)),
        ("p.Lys2Arg", "MRTAYIAKQR", (1,)),  # MaveDB
        ("p.(Lys2Arg)", "MRTAYIAKQR", (1,)),
        ("p.[Lys2Arg;Gln9Glu]", "MRTAYIAKER", (1, 8)),
        ("p.[(Lys2Arg;Gln9Glu)]", "MRTAYIAKER", (1, 8)),
        ("p.K2R", "MRTAYIAKQR", (1,)),
        ("NP_000537.3:p.Lys2Arg", "MRTAYIAKQR", (1,)),  # ClinVar
        ("NM_000546.6(TP53):p.Lys2Arg", "MRTAYIAKQR", (1,)),
        ("Lys2Arg", "MRTAYIAKQR", (1,)),
        ("LYS2ARG", "MRTAYIAKQR", (1,)),
        ("K2R:p.Gln9Glu", "MRTAYIAKER", (1, 8)),  # K2R is no name of a reference
        ("p.Lys2Arg, p.Gln9Glu", "MRTAYIAKER", (1, 8)),
        ("p.Lys2=", WILDTYPE, ()),
        ("p.[Lys2Arg;Gln9=]", "MRTAYIAKQR", (1,)),
        ("K2=", WILDTYPE, ()),
        ("K2K", WILDTYPE, ()),
        ("p.Lys2Sec", "MUTAYIAKQR", (1,)),
        ("K2X", "MXTAYIAKQR", (1,)),
        *((word, WILDTYPE, ()) for word in ("WT", "wt", "_wt", "p.=", "p.(=)", "wildtype")),
        *((word, WILDTYPE, ()) for word in ("wild-type", "native", "Reference", "parent", "_sy")),
        ("synonymous", WILDTYPE, ()),
        ("KTAYIAKQR" * 2, "KTAYIAKQR" * 2, ()),
        ("mktgyiakqr", "MKTGYIAKQR", (3,)),
        ("MRTAYIAKER", "MRTAYIAKER", (1, 8)),
        ("MKTAYIAKQRGG", "MKTAYIAKQRGG", ()),  # an insertion, as ProteinGym's indels are
    ],
)
def test__notation__of_every_convention(text, sequence, positions):
    mutants = build_mutants([text], WILDTYPE)
    assert mutants.problems == [""]
    assert (mutants.sequences, mutants.positions) == ([sequence], [positions])
    assert mutants.status == ["ok"]


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("p.Lys2Ter", "unreadable", "is no substitution: write the sequence of the mutant"),
        ("p.Lys2*", "unreadable", "is no substitution"),
        ("K2*", "unreadable", "is no substitution"),
        ("K2-", "unreadable", "is no substitution"),
        ("K2del", "unreadable", "is no substitution"),
        ("p.Lys2_Thr3del", "unreadable", "'Lys2_Thr3del', which is no substitution"),
        ("p.Lys2_Thr3insGly", "unreadable", "is no substitution"),
        ("p.Lys2fs", "unreadable", "is no substitution"),
        ("p.Lys2ArgfsTer5", "unreadable", "is no substitution"),
        ("p.Lys2del:p.Gln9Glu", "unreadable", "is no substitution"),
        ("K2del:p.Gln9Glu", "unreadable", "is no substitution"),
        ("p.?", "unreadable", "is no substitution"),
        ("p.[Lys2Arg];[Gln9Glu]", "unreadable", "of two alleles"),
        ("K2J", "unreadable", "'J', which is no residue"),
        ("Xyz2Arg", "unreadable", "'XYZ', which is no residue"),
        ("K2R:K2E", "unreadable", "mutates position 2 twice"),
        ("2", "unreadable", "cannot be read: '2' is no mutation"),
        ("K2", "unreadable", "cannot be read: 'K2'"),
        ("K2R9", "unreadable", "cannot be read"),
        ("c.4A>G", "unreadable", "cannot be read"),
        ("mutant", "unreadable", "cannot be read"),
        ("frameshift", "unreadable", "is no mutation, and as a sequence unlike its wild type"),
        ("FRAMESHIFT", "unreadable", "unlike its wild type"),
        ("truncated!", "unreadable", "cannot be read"),
        ("missense variant", "unreadable", "cannot be read"),
        ("A4GK8R", "unreadable", "cannot be read"),
        ("", "unreadable", "missing value"),
        ("NA", "unreadable", "missing value"),
        (None, "unreadable", "missing value"),
        (np.nan, "unreadable", "missing value"),
        (":", "unreadable", "holds no mutation"),
        ("A2R", "unfit", "it replaces A at 2, where the wild type has K (offset 0)"),
        ("K20R", "unfit", "there is no position 20 in its wild type of 10 residues"),
        ("K2aR", "unfit", "there is no position 2A"),
        ("K0R", "unfit", "no position 0"),
        ("K-2R", "unfit", "no position -2"),
    ],
)
def test__notation__what_is_none_is_named(text, status, said):
    mutants = build_mutants(["K2R", text, "Q9E", "R10K", "Y5F", "T3S"], WILDTYPE, offset=0)
    assert (mutants.status[1], mutants.sequences[1], mutants.positions[1]) == (status, None, None)
    assert said in mutants.problems[1]
    assert mutants.ok.tolist() == [True, False, True, True, True, True]
    assert f"Row 1: {mutants.problems[1]}" in str(mutants)


def test__substitution__with_an_insertion_code():
    [found] = read_substitutions("A52aG")
    assert (found.before, found.site, found.after) == ("A", (52, "A"), "G")
    [found] = read_substitutions("S-3T")
    assert found.site == (-3, "")


# ------------------------------------------------------------------ wild types


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Series, pl.Series, pa.array])
def test__columns__of_every_kind(kind):
    mutants = build_mutants(kind(["K2R", "S2A"]), kind([WILDTYPE, "GSHMVLSEGE"]))
    assert mutants.sequences == ["MRTAYIAKQR", "GAHMVLSEGE"]


@pytest.mark.parametrize(
    "wildtypes",
    [
        {"a": WILDTYPE, "b": "GSHMVLSEGE"},
        [FastaRecord("a", "a", WILDTYPE), FastaRecord("b", "b", "GSHMVLSEGE")],
        [FastaRecord("sp|a|A_HUMAN", "", WILDTYPE), FastaRecord("sp|b|B_HUMAN", "", "GSHMVLSEGE")],
    ],
)
def test__wildtypes__by_protein(wildtypes):
    mutants = build_mutants(["K2R", "S2A", "K2R"], wildtypes, ["a", "b", "c"])
    assert mutants.sequences == ["MRTAYIAKQR", "GAHMVLSEGE", None]
    assert mutants.status[2] == "no wild type"
    assert mutants.problems[2] == "there is no wild type for the protein 'c'"


@pytest.mark.parametrize(
    ("wildtype", "said"),
    [
        (None, "the wild type is missing"),
        ("", "the wild type is missing"),
        ("MK1", "is no sequence of residues: '1' at position 3"),
    ],
)
def test__wildtypes__that_are_none(wildtype, said):
    mutants = build_mutants(["K2R", "K2R"], [WILDTYPE, wildtype])
    assert mutants.ok.tolist() == [True, False]
    assert said in mutants.problems[1]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ((["K2R"], [WILDTYPE] * 2), InputError, "1 mutations and 2 wildtypes"),
        ((["K2R"], WILDTYPE, ["a", "b"]), InputError, "1 mutations and 2 proteins"),
        ((["K2R"], {"a": WILDTYPE}), InputError, "no proteins. Pass proteins="),
        (("K2R", WILDTYPE), TypeError, "Got str as mutations. Pass a list"),
        ((pd.DataFrame({"m": ["K2R"]}), WILDTYPE), TypeError, "Got DataFrame as mutations"),
    ],
)
def test__arguments__that_do_not_fit(arguments, error, said):
    with pytest.raises(error, match=said):
        build_mutants(*arguments)
    with pytest.raises(TypeError, match=r"offset=1\.5; expected a whole number"):
        build_mutants(["K2R"], WILDTYPE, offset=1.5)


def test__report__names_rows_as_pandas_does():
    mutants = build_mutants(pd.Series(["K2R", "A2R"], index=["p", "q"]), WILDTYPE, offset=0)
    assert str(mutants).startswith("2 rows: 1 ok, 1 unfit\n")
    assert "Row 1 (index 'q'): 'A2R'" in str(mutants)
    assert mutants.regions == ["1", None]


# ------------------------------------------------------------------ numbering


@pytest.mark.parametrize("offset", [-40, -1, 1, 23, 900])
def test__offset__is_found_from_the_rows_of_a_protein(offset):
    protein = random_protein(120)
    at = [3, 17, 40, 58, 77, 90, 111]
    numbers = [i + 1 + offset for i in range(120)]
    mutants = build_mutants(numbered(protein, numbers, at), protein)
    assert mutants.sequences == [mutant_of(protein, i) for i in at]
    assert mutants.positions == [(i,) for i in at]
    assert mutants.offsets == [offset] * 7
    assert mutants.status == ["offset"] * 7


def test__offset__of_a_large_protein_with_many_rows():
    protein = random_protein(2000)
    at = list(range(0, 2000, 5))
    mutants = build_mutants(numbered(protein, [i + 101 for i in range(2000)], at), protein)
    assert mutants.offsets == [100] * 400
    assert mutants.sequences == [mutant_of(protein, i) for i in at]


def test__offset__of_each_protein_is_its_own():
    one, other = random_protein(90, 1), random_protein(90, 2)
    at = [5, 20, 33, 47, 61, 80]
    rows = numbered(one, [i + 1 for i in range(90)], at)
    rows += numbered(other, [i + 101 for i in range(90)], at)
    mutants = build_mutants(rows, {"x": one, "y": other}, ["x"] * 6 + ["y"] * 6)
    assert mutants.offsets == [0] * 6 + [100] * 6
    assert mutants.status == ["ok"] * 6 + ["offset"] * 6


def test__offset__given_is_taken():
    for offset in (23, {"a": 23}):
        mutants = build_mutants(["K25R", "M24V"], {"a": WILDTYPE}, ["a", "a"], offset=offset)
        assert mutants.sequences == ["MRTAYIAKQR", "VKTAYIAKQR"]
    assert build_mutants(["K25R"], {"a": WILDTYPE}, ["a"], offset={"b": 1}).status != ["ok"]


def test__numbering__with_insertion_codes():
    """An antibody's: 52, 52A, 52B, 53, ..., 82, 82A, 82B, 82C, 83."""
    protein = random_protein(120, 3)
    numbers = [str(n) for n in range(1, 53)] + ["52A", "52B"] + [str(n) for n in range(53, 83)]
    numbers += ["82A", "82B", "82C"] + [str(n) for n in range(83, 116)]
    assert len(numbers) == 120
    at = [4, 12, 25, 33, 40, 51, 52, 53, 54, 60, 66, 75, 83, 84, 85, 86, 87, 95, 104, 112, 118]
    mutants = build_mutants(numbered(protein, numbers, at), protein)
    for i, sequence in zip(at, mutants.sequences, strict=True):
        assert sequence in (None, mutant_of(protein, i))
    assert mutants.ok.sum() >= 18, str(mutants)


def test__numbering__with_gaps():
    """Residues 40 to 54 are missing in the sequence, as in that of a structure."""
    protein = random_protein(100, 4)
    numbers = [n if n < 40 else n + 15 for n in range(1, 101)]
    at = list(range(2, 100, 4))
    mutants = build_mutants(numbered(protein, numbers, at), protein)
    for i, sequence in zip(at, mutants.sequences, strict=True):
        assert sequence in (None, mutant_of(protein, i))
    assert mutants.ok.sum() >= len(at) - 2


def test__numbering__that_few_rows_leave_open_is_ambiguous():
    protein = random_protein(120, 5)
    numbers = [i + 1 + 37 for i in range(120)]
    mutants = build_mutants(numbered(protein, numbers, [50, 60]), protein)
    assert mutants.status == ["ambiguous"] * 2
    assert mutants.sequences == [None] * 2
    assert "if it is right, pass it for this protein" in mutants.problems[0]


def test__numbering__a_wrong_row_is_unfit_and_spoils_no_other():
    protein = random_protein(120, 6)
    numbers = [i + 1 + 37 for i in range(120)]
    at = list(range(5, 115, 6))
    rows = numbered(protein, numbers, at)
    wrong = next(letter for letter in LETTERS if letter not in protein[at[7] - 2 : at[7] + 3])
    rows[7] = wrong + rows[7][1:]
    mutants = build_mutants(rows, protein)
    assert mutants.status[7] in ("unfit", "ambiguous")
    assert mutants.ok.sum() == len(at) - 1


@pytest.mark.parametrize("seed", range(8))
def test__numbering__is_never_guessed(seed):
    """Random proteins, offsets, gaps and choices of rows: what is built is right."""
    rng = np.random.default_rng(seed)
    protein = random_protein(int(rng.integers(60, 300)), seed + 50)
    n = len(protein)
    steps = np.where(rng.random(n) < 0.003, rng.integers(2, 20, n), 1)
    numbers = int(rng.integers(-20, 400)) + np.cumsum(steps)
    at = sorted(rng.choice(n, size=int(rng.integers(2, 25)), replace=False).tolist())
    mutants = build_mutants(numbered(protein, numbers.tolist(), at), protein)
    for i, sequence in zip(at, mutants.sequences, strict=True):
        assert sequence in (None, mutant_of(protein, i))


# ------------------------------------------------------------------ real tables


def table_of(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs {path}, which is not part of the repository")
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def test__s2648__no_row_is_wrong_in_silence():
    rows = table_of("stability_s2648.csv.gz")
    mutants = build_mutants(
        [row["mutation"] for row in rows],
        [row["wildtype_sequence"] for row in rows],
        [row["pdb_id"] for row in rows],
    )
    wrong = 0
    for row, sequence, positions in zip(rows, mutants.sequences, mutants.positions, strict=True):
        wrong += sequence is not None and sequence != row["sequence"]
        wrong += positions is not None and positions != (int(row["pos"]),)
    counts = Counter(mutants.status)
    assert wrong == 0
    assert counts["ok"] + counts["offset"] >= 2530
    assert set(counts) == {"ok", "offset", "ambiguous"}


def test__megascale__with_numbers_as_they_are_and_shifted():
    rows = table_of("stability_megascale.csv.gz")[::7]
    wildtypes = {}
    for row in rows:
        mutation, sequence = row["mutation"], row["sequence"]
        if mutation != "WT":
            i = int(mutation[1:-1]) - 1
            wildtypes[row["protein_id"]] = sequence[:i] + mutation[0] + sequence[i + 1 :]
    rng = np.random.default_rng(0)
    offsets = {name: int(rng.integers(-30, 300)) for name in wildtypes}
    proteins = [row["protein_id"] for row in rows]
    mutants = build_mutants([row["mutation"] for row in rows], wildtypes, proteins)
    assert mutants.sequences == [row["sequence"] for row in rows]
    shifted = [
        row["mutation"]
        if row["mutation"] == "WT"
        else f"{row['mutation'][0]}{int(row['mutation'][1:-1]) + offsets[row['protein_id']]}"
        + row["mutation"][-1]
        for row in rows
    ]
    mutants = build_mutants(shifted, wildtypes, proteins)
    assert mutants.sequences == [row["sequence"] for row in rows]
