"""Views: a sequence, or a part of one in the context of all of it.

A view is written as one string, because that is what is de-duplicated, keyed and claimed:

    MKTAYIAKQR            the sequence, pooled as a whole
    MKTAYIAKQR@2:5,8:9    its residues 2, 3, 4 and 8, counted from 0
    MKTA...QR~1022        a long one, in overlapping windows of 1022 residues
    MKTA...QR~1022@2:5
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm2_features._inputs.alphabet import MASK
from esm2_features.exceptions import shorten

Spans = tuple[tuple[int, int], ...]
"""Parts of a sequence: starts and stops, counted from 0, in order and apart; () is all of it."""


class SequenceView(NamedTuple):
    """A view, read from its string."""

    sequence: str  # normalised
    # residues of each window; 0 if the sequence goes through the network in one piece
    window: int = 0
    spans: Spans = ()  # the residues that the row is about; () for all

    @property
    def tokens(self) -> int:
        """Tokens of the sequence in all of its windows."""
        return sum(piece_tokens(len(self.sequence), self.window))

    def __str__(self) -> str:
        text = self.sequence
        if self.window:
            text += f"~{self.window}"
        if self.spans:
            text += "@" + ",".join(f"{start}:{stop}" for start, stop in self.spans)
        return text


def parse(text: str) -> SequenceView:
    """Read what `SequenceView` writes."""
    sequence, at, spans = text.partition("@")
    sequence, tilde, window = sequence.partition("~")
    return SequenceView(sequence, int(window) if tilde else 0, _spans(spans) if at else ())


@lru_cache(maxsize=4096)
def _spans(text: str) -> Spans:
    pairs = (span.split(":") for span in text.split(","))
    return tuple((int(start), int(stop)) for start, stop in pairs)


def spans_of(positions: Iterable[int]) -> Spans:
    """Write positions as the fewest spans."""
    spans: list[tuple[int, int]] = []
    for position in sorted(set(positions)):
        if spans and spans[-1][1] == position:
            spans[-1] = (spans[-1][0], position + 1)
        else:
            spans.append((position, position + 1))
    return tuple(spans)


def positions_of(spans: Spans) -> NDArray[np.intp]:
    return np.concatenate([np.arange(start, stop) for start, stop in spans])


def windows(residues: int, size: int) -> list[range]:
    """Cover a long sequence with windows of one size that overlap by a quarter of it or more."""
    step = max(1, size - -(-size // 4))
    count = 1 + -(-(residues - size) // step)
    starts = [round(i * (residues - size) / (count - 1)) for i in range(count)]
    return [range(start, start + size) for start in starts]


def piece_tokens(residues: int, window: int) -> list[int]:
    """List the tokens of what goes through the network of one sequence."""
    return [window + 2] * len(windows(residues, window)) if window else [residues + 2]


def window_weights(size: int) -> NDArray[np.float32]:
    """Weight of each residue of a window, where it overlaps with others."""
    from_left = np.arange(1, size + 1, dtype=np.float32)
    return np.minimum(from_left, from_left[::-1])


def around(position: int, residues: int, size: int) -> range:
    """Choose the window of a long sequence in which a position has the most even context."""
    start = min(max(0, position - size // 2), max(0, residues - size))
    return range(start, min(residues, start + size))


def count_sequences(views: Iterable[str]) -> int:
    """Count the sequences that views are of: those of one sequence share a forward pass."""
    return len({view.partition("@")[0] for view in views})


def shown(sequence: str) -> str:
    """Shorten a sequence for a message, and write masks as people do."""
    return shorten(sequence).replace(MASK, "<mask>")


class UniqueViews(NamedTuple):
    """The distinct views of an input, in the order of their first rows."""

    views: list[str]
    rows: list[int]  # row of the input in which each view stands first, for messages
    source: NDArray[np.intp]  # for each row of the input, its number among `views`; -1 for None


def unique_views(views: Sequence[str | None], rows: Sequence[int] | None = None) -> UniqueViews:
    """Find the distinct views; ``rows`` are their numbers in the input, if not 0, 1, 2, ..."""
    where = [i for i, view in enumerate(views) if view is not None]
    present = [view for view in views if view is not None]
    first, back = dedupe(present)
    source = np.full(len(views), -1, np.intp)
    source[where] = back
    at = [where[i] for i in first]
    return UniqueViews(
        [present[i] for i in first], at if rows is None else [rows[i] for i in at], source
    )


class DistinctSequences(NamedTuple):
    """What goes through the network for some views: a sequence and window once for all of them."""

    sequences: list[str]  # in the order of their first views
    windows: list[int]
    lengths: NDArray[np.int64]  # residues of each
    tokens: NDArray[np.int64]  # of each, in all of its windows
    owners: NDArray[np.intp]  # for each view, the number of its sequence
    spans: list[Spans]  # of each view; an empty list if all are whole sequences


def distinct_sequences(views: Sequence[str]) -> DistinctSequences:
    """Read views, and find the sequences that they are of."""
    text = "".join(views)
    keys: Sequence[Hashable] = views  # whole sequences, which are not read one by one
    parsed: list[SequenceView] = []
    if "@" in text or "~" in text:
        parsed = [parse(view) for view in views]
        keys = [(view.sequence, view.window) for view in parsed]
    first, owners = dedupe(keys)
    sequences = [parsed[i].sequence if parsed else views[i] for i in first]
    windows = [parsed[i].window if parsed else 0 for i in first]
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    tokens = lengths + 2
    for i in np.flatnonzero(windows).tolist():
        tokens[i] = SequenceView(sequences[i], windows[i]).tokens
    return DistinctSequences(
        sequences, windows, lengths, tokens, owners, [view.spans for view in parsed]
    )


def dedupe(items: Sequence[Hashable]) -> tuple[list[int], NDArray[np.intp]]:
    """Find the distinct items, and the way back to all of them."""
    rank: dict[Hashable, int] = {}
    back = np.array([rank.setdefault(item, len(rank)) for item in items], dtype=np.intp)
    _, first = np.unique(back, return_index=True)
    return first.tolist(), back
