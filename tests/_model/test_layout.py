"""Where views lie in a pass: parts are found again, and windows become one sequence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esm2_features._inputs.alphabet import encode
from esm2_features._inputs.views import SequenceView, window_weights, windows
from esm2_features._model.layout import Layout
from esm2_features._model.packing import MOST_SEQUENCES

SEQUENCES = ["MKTAYIAKQRQI", "ACDEFGHIKLMN", "GGGG", "W"]


def numbered(layout, dim=3):
    rows = torch.arange(len(layout.batches[0].tokens) * dim, dtype=torch.float32)
    return rows.view(-1, dim)


@st.composite
def mixed(draw):
    """Subjects of some sequences: whole and in part, each sequence together, longest first."""
    found = []
    for sequence in SEQUENCES:
        spans = [(a, b) for b in range(1, len(sequence) + 1) for a in range(b)]
        parts = draw(st.lists(st.sampled_from([(), *((span,) for span in spans)]), unique=True))
        found += [SequenceView(sequence, 0, part) for part in parts]
    return found or [SequenceView("W")]


@given(mixed())
def test__segments__hold_every_view_once_with_its_own_residues(views):
    layout = Layout([str(view) for view in views])
    tokens = torch.from_numpy(layout.batches[0].tokens).unsqueeze(1)
    seen = []
    for segment in layout.segments:
        for member, found in zip(segment.members, segment.residues(tokens), strict=True):
            sequence, _, spans = views[member]
            start, stop = spans[0] if spans else (0, len(sequence))
            assert found.ravel().tolist() == encode(sequence)[1:-1][start:stop].tolist()
            seen.append(member)
    assert sorted(seen) == list(range(len(views)))


@given(mixed())
def test__sequences__are_cut_out_for_each_view(views):
    layout = Layout([str(view) for view in views])
    parts = layout.sequences(layout.batches[0].tokens[:, None])
    for (sequence, _, spans), part in zip(views, parts, strict=True):
        start, stop = spans[0] if spans else (0, len(sequence))
        assert part.ravel().tolist() == encode(sequence)[1:-1][start:stop].tolist()


def test__sequences__share_no_memory():
    layout = Layout(["MKTA", "ACDE"])
    one, other = layout.sequences(numbered(layout).numpy())
    assert not np.shares_memory(one, other)


def test__merge_windows__leaves_what_is_in_one_piece_as_it_is():
    layout = Layout(SEQUENCES)
    x_TD = numbered(layout)
    assert layout.merge_windows([x_TD]) is x_TD
    with_windows = Layout([str(SequenceView("MKTAYIAKQR", 4)), *SEQUENCES])
    x_TD = torch.randn(len(with_windows.batches[0].tokens), 3)
    pieces = 6 * len(windows(10, 4))
    assert torch.equal(with_windows.merge_windows([x_TD])[12:], x_TD[pieces:])


def test__merge_windows__of_windows_is_their_weighted_mean():
    sequence, size = "ACDEFGHIKLMNPQRSTVWY", 8
    layout = Layout([str(SequenceView(sequence, size))])
    pieces = windows(len(sequence), size)
    assert [g.tokens for g in layout.batches[0].groups] == [size + 2]
    x_TD = torch.randn(len(layout.batches[0].tokens), 5, generator=torch.Generator().manual_seed(0))
    by_window = x_TD.view(len(pieces), size + 2, 5).double().numpy()
    expected = np.zeros((len(sequence), 5))
    total = np.zeros((len(sequence), 1))
    for window, rows in zip(pieces, by_window, strict=True):
        weights = window_weights(size)[:, None]
        expected[window.start : window.stop] += weights * rows[1:-1]
        total[window.start : window.stop] += weights
    merged = layout.merge_windows([x_TD]).numpy()
    np.testing.assert_allclose(merged[1:-1], expected / total, atol=1e-6)
    np.testing.assert_allclose(merged[0], by_window[:, 0].mean(0), atol=1e-6)
    np.testing.assert_allclose(merged[-1], by_window[:, -1].mean(0), atol=1e-6)
    assert [(g.count, g.tokens) for g in layout.groups] == [(1, len(sequence) + 2)]


@pytest.mark.parametrize("budget", [None, 12, 40, 400])
def test__merge_windows__adds_them_in_order_whatever_batches_they_are_in(budget):
    views = [
        SequenceView("ACDEFGHIKLMNPQRSTVWY" * 3, 8),
        SequenceView("MKTA"),
        SequenceView("W" * 9, 8),
    ]
    layout, whole = (Layout([str(view) for view in views], some) for some in (budget, None))
    x_TD = torch.randn(
        len(whole.batches[0].positions), 5, generator=torch.Generator().manual_seed(0)
    )
    merged = layout.merge_windows(x_TD.split([len(one.positions) for one in layout.batches]))
    in_order = torch.zeros_like(merged)
    for target, share, row in zip(whole._targets, whole._shares, x_TD, strict=True):
        in_order[target] += share * row
    assert torch.equal(merged, in_order)


def test__layout__has_no_more_windows_in_a_batch_than_a_card_can_start():
    layout = Layout([str(SequenceView("M" * (MOST_SEQUENCES + 5), 1))], 10 * MOST_SEQUENCES)
    counts = [sum(group.count for group in batch.groups) for batch in layout.batches]
    assert max(counts) == MOST_SEQUENCES
    assert len(counts) == 2
