"""Packing loses nothing."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm2_features._inputs.alphabet import MASK, RESIDUES, encode
from esm2_features._model.packing import pack

sequences = st.lists(st.text(alphabet=RESIDUES + MASK, min_size=1, max_size=40), min_size=1)


@given(sequences)
def test__pack__lays_sequences_one_behind_the_other(sequences):
    batch = pack(sequences)
    assert batch.tokens.tolist() == [t for s in sequences for t in encode(s).tolist()]
    assert batch.positions.tolist() == [p for s in sequences for p in range(len(s) + 2)]


@given(sequences)
def test__pack__groups_cover_all_tokens_and_hold_equal_lengths(sequences):
    batch = pack(sequences)
    sizes = [group.tokens for group in batch.groups for _ in range(group.count)]
    assert sizes == [len(s) + 2 for s in sequences]
    stop = 0
    for group in batch.groups:
        assert group.start == stop
        stop = group.stop
    assert stop == len(batch.tokens)
    assert all(a.tokens != b.tokens for a, b in pairwise(batch.groups))


@pytest.mark.parametrize(
    ("sequence", "scale"),
    [
        ("MKTA", 0.88),
        (MASK + "KTA", 0.88 / (1 - 1 / 6)),
        (MASK * 4, 0.88 / (1 - 4 / 6)),
    ],
)
def test__pack__scales_by_the_share_of_masks_in_each_sequence_alone(sequence, scale):
    for mates in ([], ["GG"], [MASK * 9]):
        batch = pack([*mates, sequence])
        own = batch.unique_tokens.scale[batch.unique_tokens.of_rows][-len(sequence) - 2 :]
        masked = np.array([False, *(c == MASK for c in sequence), False])
        np.testing.assert_allclose(own[~masked], scale, rtol=1e-6)
        assert (own[masked] == 0).all()
