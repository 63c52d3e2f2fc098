"""An input is counted in one reading, with 16 bytes for each sequence."""

from __future__ import annotations

import io

import pytest
from esm2_features._inputs.lengths import fit_length

from esm2_features._costs import census as _census
from esm2_features._costs.census import Digests, count
from esm2_features._inputs.policy import SequencePolicy
from esm2_features._inputs.views import windows
from esm2_features.exceptions import FastaError


def fasta_of(*sequences: str) -> io.BytesIO:
    return io.BytesIO("".join(f">s{i}\n{s}\n" for i, s in enumerate(sequences)).encode())


def policy_of(**changes) -> SequencePolicy:
    options = {"max_residues": 1022, "too_long": "raise", "unknown": "raise", "region": None}
    return SequencePolicy(**{**options, **changes})


def test__count__sequences_and_different_ones():
    found = count(fasta_of("MKT", "GGGG", "MKT", "mkt*"), policy_of())
    assert (found.sequences, found.unique, found.residues, found.tokens) == (4, 2, 13, 21)
    assert found.pieces.tokens.tolist() == [5, 6]
    assert found.pieces.total == 11
    assert found.longest == 4
    assert found.text_bytes == 14 + 4 * 2 * 2  # the * is a letter of the file; ids are headers


@pytest.mark.parametrize(
    ("policy", "left_out", "total"),
    [("raise", 1, 7), ("truncate", 0, 7 + 14), ("window", 0, 7 + 14 * len(windows(30, 12)))],
)
def test__count__long_ones_as_the_policy_has_it(policy, left_out, total):
    found = count(fasta_of("MKTAA", "M" * 30), policy_of(max_residues=12, too_long=policy))
    assert (found.too_long, found.left_out, found.longest) == (1, left_out, 30)
    assert found.pieces.total == total


def test__count__cut_sequences_that_become_equal_are_one():
    found = count(fasta_of("MKTAAG", "MKTAAV"), policy_of(max_residues=5, too_long="truncate"))
    assert found.unique == 1
    assert found.sample == ("MKTAA", "MKTAA")


def test__count__any_length():
    assert count(fasta_of("M" * 3000), policy_of(max_residues=None)).pieces.total == 3002


def test__count__what_is_no_residue_is_left_out_and_the_first_is_named():
    found = count(fasta_of("MKT", "MK1T", "M-"), policy_of())
    assert (found.sequences, found.unique, found.left_out) == (3, 1, 2)
    assert found.first_fault is not None
    assert found.first_fault.startswith("Record 2: '1' at position 3")
    assert count(fasta_of("MK1T"), policy_of(unknown="X")).unique == 1


def test__count__ids_that_occur_twice():
    found = count(io.BytesIO(b">a\nMKT\n>b\nMKT\n>a\nGGG\n"), policy_of())
    assert found.repeated_ids == 1


def test__count__a_file_that_is_none_is_an_error():
    with pytest.raises(FastaError, match="holds no records"):
        count(io.BytesIO(b""), policy_of())


def test__count__a_sample_is_drawn_from_all(monkeypatch):
    monkeypatch.setattr(_census, "SAMPLE", 5)
    monkeypatch.setattr(_census, "_AT_A_TIME", 7)
    found = count(fasta_of(*("MKT" + "A" * i for i in range(200))), policy_of())
    assert len(set(found.sample)) == 5
    assert max(map(len, found.sample)) > 50


def test__digests__drop_what_repeats_on_the_way(monkeypatch):
    monkeypatch.setattr(_census, "_SORTED_FROM", 8)
    digests = Digests()
    for i in range(1000):
        digests.add(f"text {i % 10}", i % 10)
        assert len(digests._held) <= 16 * 20
    assert sorted(digests.numbers().tolist()) == list(range(10))


def test__digests__tell_texts_apart_whose_digests_end_in_zeros():
    digests = Digests()
    for number in (0, 256, 65536, 0):
        digests.add(str(number), number)
    assert sorted(digests.numbers().tolist()) == [0, 256, 65536]


def test__count__cuts_as_the_run_does():
    from esm2_features._inputs.lengths import TruncationCounter

    sequences = ["M" * n for n in (3, 12, 13, 40)]
    options = {"max_residues": 12, "too_long": "truncate"}
    kept = fit_length(sequences, cuts=TruncationCounter(), **options)
    assert count(fasta_of(*sequences), policy_of(**options)).residues == sum(map(len, kept))
