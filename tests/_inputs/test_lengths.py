"""What is too long is refused with its row, or cut and counted; windows leave it as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm2_features._inputs.alphabet import RESIDUES
from esm2_features._inputs.lengths import TruncationCounter, fit_length
from esm2_features.exceptions import SequenceTooLongError, TruncationWarning


@pytest.mark.parametrize("limit", [3, None])
@pytest.mark.parametrize("too_long", ["raise", "truncate"])
def test__fit_length__leaves_what_fits(limit, too_long):
    assert fit_length(
        ["MKT", "M#", ""], max_residues=limit, too_long=too_long, cuts=TruncationCounter()
    ) == [
        "MKT",
        "M#",
        "",
    ]


def test__fit_length__whole_message():
    with pytest.raises(SequenceTooLongError) as caught:
        fit_length(
            ["MKT", "MKTAY", "MKTA"], max_residues=3, too_long="raise", cuts=TruncationCounter()
        )
    error = caught.value
    assert (error.index, error.length, error.limit) == (1, 5, 3)
    assert str(error) == (
        "The sequence in row 1 has 5 residues, more than max_residues=3. Pass "
        'too_long="window" to run it in overlapping windows, too_long="truncate" to keep the '
        "first 3, max_residues=None to run it whole (memory grows with the square of the length), "
        "or split the protein into its domains."
    )


def test__fit_length__names_the_row_that_the_sequence_came_from():
    with pytest.raises(SequenceTooLongError, match="in row 9 of column 'heavy' has") as caught:
        fit_length(
            ["M", "MKTA"],
            max_residues=3,
            too_long="raise",
            cuts=TruncationCounter(),
            rows=[4, 9],
            column="heavy",
        )
    assert caught.value.index == 9


def test__fit_length__truncates_and_counts_over_all_parts_for_one_warning():
    cuts = TruncationCounter()
    options = {"max_residues": 3, "too_long": "truncate", "cuts": cuts}
    assert fit_length(["MKT", "MKTAY", "##TA"], **options) == ["MKT", "MKT", "##T"]
    assert fit_length(["MKTA", "M"], **options) == ["MKT", "M"]
    with pytest.warns(TruncationWarning) as caught:
        cuts.say(3)
    assert [str(warning.message) for warning in caught] == [
        "3 of 5 sequences were cut to their first 3 residues (max_residues); the longest had 5."
    ]


def test__cuts__say_nothing_of_nothing():
    cuts = TruncationCounter()
    fit_length(["MKT"], max_residues=3, too_long="truncate", cuts=cuts)
    cuts.say(3)  # a warning would be an error


@given(st.lists(st.text(RESIDUES, max_size=12)), st.integers(1, 12))
def test__fit_length__keeps_the_first_residues(sequences, limit):
    cut = fit_length(sequences, max_residues=limit, too_long="truncate", cuts=TruncationCounter())
    assert cut == [sequence[:limit] for sequence in sequences]


def test__fit_length__leaves_all_residues_to_windows():
    cuts = TruncationCounter()
    options = {"max_residues": 3, "too_long": "window", "cuts": cuts}
    assert fit_length(["MKTAY", "M"], **options) == ["MKTAY", "M"]
    cuts.say(3)  # a warning would be an error
