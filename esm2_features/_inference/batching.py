"""Distinct views, and their division into batches of a token budget."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm2_features._model.packing import MOST_SEQUENCES

_SCATTER_BYTES = 1 << 24
"""Bytes that are copied at a time."""


class UniqueViews(NamedTuple):
    """The distinct views of an input, in the order of their first rows."""

    views: list[str]
    rows: list[int]  # row of the input in which each view stands first, for messages
    source: NDArray[np.intp]  # for each row of the input, its number among `views`; -1 for None


class BatchPlan(NamedTuple):
    """The batches of a run, as planned."""

    batches: list[list[str]]  # views, the longest first
    budget: int  # tokens of a batch at most
    devices: list[str]


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


def dedupe(items: Sequence[Hashable]) -> tuple[list[int], NDArray[np.intp]]:
    """Find the distinct items, and the way back to all of them."""
    rank: dict[Hashable, int] = {}
    back = np.array([rank.setdefault(item, len(rank)) for item in items], dtype=np.intp)
    _, first = np.unique(back, return_index=True)
    return first.tolist(), back


def scatter(rows: NDArray[np.float32], source: NDArray[np.intp], *, fill: float) -> None:
    """Turn the rows of distinct items, which stand in front, into those of all items, in place."""
    at_a_time = max(1, _SCATTER_BYTES // max(1, rows[:1].nbytes))
    # From the end, where nothing stands that is still needed.
    for stop in range(len(source), 0, -at_a_time):
        start = max(0, stop - at_a_time)
        some = source[start:stop]
        rows[start:stop] = rows[some]
        rows[start:stop][some < 0] = fill


def batches(
    tokens: Sequence[int], budget: int, *, sizes: Sequence[int] | None = None, most: int = 0
) -> list[list[int]]:
    """Divide sequences into batches of at most ``budget`` tokens and 65,535, longest first.

    Longest first, so that a sequence which does not fit into memory is known at once and
    not after hours. A sequence that is longer than the budget is a batch of its own.
    """
    order = np.argsort(-np.asarray(tokens, dtype=np.int64), kind="stable")
    planned: list[list[int]] = []
    room = room_in_bytes = 0
    for i in order.tolist():
        size = 0 if sizes is None else sizes[i]
        is_full = bool(planned) and len(planned[-1]) == MOST_SEQUENCES
        if is_full or tokens[i] > room or size > room_in_bytes:
            planned.append([])
            room, room_in_bytes = budget, most
        planned[-1].append(i)
        room -= tokens[i]
        room_in_bytes -= size
    return planned
