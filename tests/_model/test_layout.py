"""Where views lie in a pass: parts are found again, and windows become one sequence."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from esm2_features._inputs.alphabet import encode
from esm2_features._inputs.views import SequenceView, window_weights, windows
from esm2_features._model.layout import Layout

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
    parts = layout.sequences(torch.from_numpy(layout.batches[0].tokens).unsqueeze(1))
    for (sequence, _, spans), part in zip(views, parts, strict=True):
        start, stop = spans[0] if spans else (0, len(sequence))
        assert part.ravel().tolist() == encode(sequence)[1:-1][start:stop].tolist()


def test__sequences__share_no_memory():
    layout = Layout(["MKTA", "ACDE"])
    one, other = layout.sequences(numbered(layout))
    assert not np.shares_memory(one, other)


def test__merge_windows__leaves_what_is_in_one_piece_as_it_is():
    layout = Layout(SEQUENCES)
    x_TD = numbered(layout)
    assert layout.merge_windows(x_TD) is x_TD
    with_windows = Layout([str(SequenceView("MKTAYIAKQR", 4)), *SEQUENCES])
    x_TD = torch.randn(len(with_windows.batches[0].tokens), 3)
    pieces = 6 * len(windows(10, 4))
    assert torch.equal(with_windows.merge_windows(x_TD)[12:], x_TD[pieces:])


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
    merged = layout.merge_windows(x_TD).numpy()
    np.testing.assert_allclose(merged[1:-1], expected / total, atol=1e-6)
    np.testing.assert_allclose(merged[0], by_window[:, 0].mean(0), atol=1e-6)
    np.testing.assert_allclose(merged[-1], by_window[:, -1].mean(0), atol=1e-6)
    assert [(g.count, g.tokens) for g in layout.groups] == [(1, len(sequence) + 2)]
