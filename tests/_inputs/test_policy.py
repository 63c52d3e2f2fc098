"""What is too long is refused with its row, or cut and counted; windows leave it as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm2_features._inputs.alphabet import RESIDUES
from esm2_features._inputs.policy import SequencePolicy, TruncationCounter
from esm2_features._inputs.words import is_missing_word
from esm2_features.exceptions import SequenceTooLongError, TruncationWarning


@pytest.mark.parametrize("limit", [3, None])
@pytest.mark.parametrize("too_long", ["raise", "truncate"])
def test__normalise__leaves_what_fits(limit, too_long):
    assert SequencePolicy(limit, too_long).normalise(["MKT", "M<mask>"]) == ["MKT", "M#"]


def test__normalise__too_long_whole_message():
    with pytest.raises(SequenceTooLongError) as caught:
        SequencePolicy(3).normalise(["MKT", "MKTAY", "MKTA"])
    error = caught.value
    assert (error.index, error.length, error.limit) == (1, 5, 3)
    assert str(error) == (
        "The sequence in row 1 has 5 residues, more than max_residues=3. Pass "
        'too_long="window" to run it in overlapping windows, too_long="truncate" to keep the '
        "first 3, max_residues=None to run it whole (memory grows with the square of the length), "
        "or split the protein into its domains."
    )


def test__normalise__too_long_names_the_row_that_the_sequence_came_from():
    with pytest.raises(SequenceTooLongError, match="in row 9 of column 'heavy' has") as caught:
        SequencePolicy(3).normalise(["M", "MKTA"], rows=[4, 9], column="heavy")
    assert caught.value.index == 9


def test__normalise__truncates_and_counts_over_all_parts_for_one_warning():
    counter, policy = TruncationCounter(), SequencePolicy(3, "truncate")
    sequences = ["MKT", "MKTAY", "<mask><mask>TA"]
    assert policy.normalise(sequences, truncations=counter) == ["MKT", "MKT", "##T"]
    assert policy.normalise(["MKTA", "M"], truncations=counter) == ["MKT", "M"]
    with pytest.warns(TruncationWarning) as caught:
        counter.warn(3)
    assert [str(warning.message) for warning in caught] == [
        "3 of 5 sequences were cut to their first 3 residues (max_residues); the longest had 5."
    ]


def test__counter__without_truncations_does_not_warn():
    counter = TruncationCounter()
    SequencePolicy(3, "truncate").normalise(["MKT"], truncations=counter)
    counter.warn(3)  # a warning would be an error


proteins = st.text(RESIDUES, min_size=1, max_size=12).filter(lambda text: not is_missing_word(text))


@given(st.lists(proteins), st.integers(1, 12))
def test__normalise__truncate_keeps_the_first_residues(sequences, limit):
    cut = SequencePolicy(limit, "truncate").normalise(sequences, truncations=TruncationCounter())
    assert cut == [sequence[:limit] for sequence in sequences]


def test__normalise__leaves_all_residues_to_windows():
    counter = TruncationCounter()
    policy = SequencePolicy(3, "window")
    assert policy.normalise(["MKTAY", "M"], truncations=counter) == ["MKTAY", "M"]
    counter.warn(3)  # a warning would be an error
