"""Division of sequences into batches of a token budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm2_features._model.packing import MOST_SEQUENCES

_SCATTER_BYTES = 1 << 24
"""Bytes that are copied at a time."""


class BatchPlan(NamedTuple):
    """The batches of a run, as planned."""

    batches: list[list[str]]  # views, the longest first
    budget: int  # tokens of a batch at most
    devices: list[str]


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
    tokens: Sequence[int] | NDArray[np.int64],
    budget: int,
    *,
    sizes: Sequence[int] | NDArray[np.int64] | None = None,
    most: int = 0,
) -> list[list[int]]:
    """Divide sequences into batches of at most ``budget`` tokens and 65,535, longest first.

    Longest first, so that a sequence which does not fit into memory is known at once and
    not after hours. A sequence that is longer than the budget is a batch of its own.
    """
    of_each = np.asarray(tokens, np.int64)
    order = np.argsort(-of_each, kind="stable")
    limits = [(np.cumsum(of_each[order]), budget)]
    if sizes is not None:
        limits.append((np.cumsum(np.asarray(sizes, np.int64)[order]), most))
    planned: list[list[int]] = []
    start = 0
    while start < len(order):
        stop = start + MOST_SEQUENCES
        for total, limit in limits:
            before = int(total[start - 1]) if start else 0
            stop = min(stop, int(np.searchsorted(total, before + limit, side="right")))
        planned.append(order[start : max(stop, start + 1)].tolist())
        start += len(planned[-1])
    return planned
