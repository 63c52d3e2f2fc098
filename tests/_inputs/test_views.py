"""Subjects say the same after they are written and read; windows cover everything and overlap."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm2_features._inputs.alphabet import MASK, RESIDUES
from esm2_features._inputs.views import (
    SequenceView,
    around,
    distinct_sequences,
    parse,
    positions_of,
    spans_of,
    window_weights,
    windows,
)

positions = st.sets(st.integers(0, 60), min_size=1)
views = st.builds(
    SequenceView,
    st.text(alphabet=RESIDUES + MASK, min_size=1, max_size=30),
    st.integers(0, 2000),
    st.just(()) | positions.map(spans_of),
)


@given(views)
def test__view__is_what_it_was_after_writing_and_reading(view):
    assert parse(str(view)) == view


@given(views, views)
def test__views__that_differ_are_written_differently(one, other):
    assert (one == other) == (str(one) == str(other))


@given(positions)
def test__spans__are_in_order_apart_and_hold_the_positions(some):
    spans = spans_of([*some, *some])
    assert positions_of(spans).tolist() == sorted(some)
    assert all(a[1] < b[0] for a, b in pairwise(spans))


@given(st.integers(1, 300), st.integers(1, 2000))
def test__windows__cover_all_residues_and_overlap_by_a_quarter(size, more):
    residues = size + more
    found = windows(residues, size)
    assert found[0].start == 0
    assert found[-1].stop == residues
    assert all(window.stop - window.start == size for window in found)
    for a, b in pairwise(found):
        assert a.start < b.start
        assert 4 * (a.stop - b.start) >= size or size == 1


@given(st.integers(1, 300), st.integers(1, 2000))
def test__windows__are_no_more_than_are_needed(size, more):
    step = max(1, size - -(-size // 4))
    assert len(windows(size + more, size)) == 1 + -(-more // step)


def test__window_weights__are_positive_and_fall_off_towards_both_edges():
    weights = window_weights(10)
    assert weights.tolist() == weights[::-1].tolist()
    assert (weights > 0).all()
    assert (np.diff(weights[:5]) > 0).all()


@given(st.integers(1, 50), st.integers(1, 50), st.data())
def test__around__holds_the_position_with_its_context(residues, size, data):
    position = data.draw(st.integers(0, residues - 1))
    window = around(position, residues, size)
    assert window.start <= position < window.stop
    assert window.stop - window.start == min(size, residues)
    assert window.start >= 0
    assert window.stop <= residues


@pytest.mark.parametrize(("position", "start"), [(0, 0), (10, 5), (19, 10)])
def test__around__puts_the_position_in_the_middle_where_it_can(position, start):
    assert around(position, 20, 10).start == start


def test__distinct_sequences__are_told_apart_by_their_windows():
    some = [
        SequenceView("MK"),
        SequenceView("GG", 0, ((0, 1),)),
        SequenceView("MK", 0, ((1, 2),)),
        SequenceView("MK", 1),
    ]
    distinct = distinct_sequences(list(map(str, some)))
    assert distinct.sequences == ["MK", "GG", "MK"]
    assert distinct.windows == [0, 0, 1]
    assert distinct.owners.tolist() == [0, 1, 0, 2]
    assert distinct.tokens.tolist() == [4, 4, 6]


def test__distinct_sequences__whole_ones_are_found_without_reading_each():
    distinct = distinct_sequences(["MKT", "GG", "MKT"])
    assert (distinct.sequences, distinct.spans) == (["MKT", "GG"], [])
    assert distinct.owners.tolist() == [0, 1, 0]
    assert distinct.lengths.tolist() == [3, 2]
    assert distinct_sequences([]).tokens.tolist() == []
