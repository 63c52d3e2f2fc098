"""Views are distinct once, and batches cover every sequence once and keep to the budget."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm2_features._inference import batching
from esm2_features._inference.batching import batches, scatter
from esm2_features._inputs.views import dedupe, unique_views
from esm2_features._model.packing import MOST_SEQUENCES

lengths = st.lists(st.integers(1, 300), max_size=60)


@given(st.lists(st.none() | st.text(alphabet="AC", max_size=2)), st.booleans())
def test__unique_views__know_their_first_rows_and_the_way_back(views, numbered):
    rows = [7 + 2 * i for i in range(len(views))] if numbered else list(range(len(views)))
    unique = unique_views(views, rows if numbered else None)
    back = [None if k < 0 else unique.views[k] for k in unique.source]
    assert back == views
    assert unique.rows == [rows[views.index(view)] for view in unique.views]


@given(st.lists(st.text(alphabet="AC", max_size=3)))
def test__dedupe__gives_each_item_once_and_the_way_back(items):
    first, back = dedupe(items)
    assert [items[first[k]] for k in back] == items
    assert len({items[i] for i in first}) == len(first) == len(set(items))
    assert first == sorted(first)


@given(st.lists(st.none() | st.text(alphabet="AC", max_size=2)), st.integers(1, 40))
def test__scatter__gives_every_item_its_row_and_the_others_the_fill(items, at_a_time):
    present = [item for item in items if item is not None]
    first, back = dedupe(present)
    source = np.full(len(items), -1)
    source[[item is not None for item in items]] = back
    rows = np.full((len(items), 2), 99, np.float32)
    rows[: len(first)] = [[k, -k] for k in range(len(first))] or np.empty((0, 2))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(batching, "_SCATTER_BYTES", at_a_time)  # a row is 8
        scatter(rows, source, fill=-7)
    expected = [[-7, -7] if k < 0 else [k, -k] for k in source]
    np.testing.assert_array_equal(rows, np.reshape(expected, (-1, 2)))


@given(lengths, st.integers(1, 500))
def test__batches__cover_everything_once_within_the_budget(lengths, budget):
    planned = batches(lengths, budget)
    assert sorted(i for batch in planned for i in batch) == list(range(len(lengths)))
    for batch in planned:
        assert batch, "no batch is empty"
        assert sum(lengths[i] for i in batch) <= budget or len(batch) == 1


@given(lengths, st.integers(1, 500))
def test__batches__are_longest_first_with_equal_lengths_together(lengths, budget):
    order = [lengths[i] for batch in batches(lengths, budget) for i in batch]
    assert order == sorted(lengths, reverse=True)


@given(lengths, st.integers(1, 500))
def test__batches__are_full(lengths, budget):
    planned = batches(lengths, budget)
    for batch, following in pairwise(planned):
        tokens = sum(lengths[i] for i in batch) + lengths[following[0]]
        assert tokens > budget, "the first of the next batch would have fitted"


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 50)), max_size=60))
def test__batches__keep_to_the_bytes_that_come_of_them(items):
    tokens, sizes = [list(some) for some in zip(*items, strict=True)] or [[], []]
    planned = batches(tokens, 500, sizes=sizes, most=60)
    assert sorted(i for batch in planned for i in batch) == list(range(len(items)))
    assert all(sum(sizes[i] for i in batch) <= 60 for batch in planned)


@pytest.mark.parametrize("count", [MOST_SEQUENCES, MOST_SEQUENCES + 1, 2 * MOST_SEQUENCES + 7])
def test__batches__start_no_more_sequences_than_a_card_can(count):
    planned = batches(np.full(count, 3), 10 * count)
    assert sorted(i for batch in planned for i in batch) == list(range(count))
    assert max(map(len, planned)) == MOST_SEQUENCES
    assert len(planned) == -(-count // MOST_SEQUENCES)
