"""The vocabulary is the one of the official checkpoints, letter by letter."""

from __future__ import annotations

from esm.data import Alphabet
from hypothesis import given
from hypothesis import strategies as st

from esm2_features._inputs.alphabet import MASK, RESIDUES, TOKENS, encode

OFFICIAL = Alphabet.from_architecture("ESM-1b")


def test__tokens__are_those_of_fair_esm():
    assert list(TOKENS) == OFFICIAL.all_toks


@given(st.text(alphabet=RESIDUES + MASK, min_size=1))
def test__encode__equals_fair_esm(sequence):
    spelled = sequence.replace(MASK, "<mask>")
    theirs = [OFFICIAL.cls_idx, *OFFICIAL.encode(spelled), OFFICIAL.eos_idx]
    assert encode(sequence).tolist() == theirs
