"""The batching policy: which sequences go through the network together, and how they lie.

A batch is *packed*: its sequences stand one behind the other in a single row of tokens,
without padding. Inside a batch, sequences of equal length lie side by side and form a
*group*, which attention can take as one dense tensor:

    tokens     c A A e  c G G e  c W e          c = <cls>, e = <eos>
    positions  0 1 2 3  0 1 2 3  0 1 2
    groups     └ 2 sequences x 4 ┘ └1 x 3┘

Never here: torch, disk.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from esm2_features._alphabet import MASK_TOKEN, encode

_SPREAD_BYTES = 1 << 24
"""Bytes that are copied at a time."""

EMBEDDING_SCALE = 0.88
"""ESM-2 was trained with 15 % of residues selected, 80 % of those masked: 1 - 0.15 x 0.8."""


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring sequences of one length in a packed batch.

    Attributes
    ----------
    start : int
        First token of the group.
    count : int
        Number of sequences.
    tokens : int
        Tokens of each sequence (residues + 2).
    """

    start: int
    count: int
    tokens: int

    @property
    def stop(self) -> int:
        """One past the last token of the group."""
        return self.start + self.count * self.tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences packed one behind the other.

    Attributes
    ----------
    tokens : ndarray of shape (total_tokens,), int64
    positions : ndarray of shape (total_tokens,), int64
        Position of each token in its own sequence, from 0.
    scale : ndarray of shape (total_tokens,), float32
        Factor of each token's embedding: ESM-2's token dropout at inference. It is 0 for
        ``<mask>``, and 0.88 / (1 - share of ``<mask>`` among the sequence's tokens)
        elsewhere, as in ``esm/model/esm2.py``.
    groups : tuple of Group
        In order; together they cover all tokens.
    """

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    scale: NDArray[np.float32]
    groups: tuple[Group, ...]


def dedupe(items: Sequence[Hashable]) -> tuple[list[int], NDArray[np.intp]]:
    """Find the distinct items, and the way back to all of them.

    Parameters
    ----------
    items : sequence of hashable, length n

    Returns
    -------
    first : list of int, length u
        Index of the first occurrence of each distinct item, in order.
    back : ndarray of shape (n,), intp
        ``items[i] == items[first[back[i]]]`` for every i.

    Examples
    --------
    >>> first, back = dedupe(["MK", "GG", "MK"])
    >>> first, back.tolist()
    ([0, 1], [0, 1, 0])
    """
    rank: dict[Hashable, int] = {}
    back = np.array([rank.setdefault(item, len(rank)) for item in items], dtype=np.intp)
    _, first = np.unique(back, return_index=True)
    return first.tolist(), back


def spread(rows: NDArray[np.float32], source: NDArray[np.intp], *, fill: float) -> None:
    """Turn the rows of distinct items, which stand in front, into those of all items, in place.

    Parameters
    ----------
    rows : ndarray of shape (n, ...), float32
        Overwritten.
    source : ndarray of shape (n,), intp
        Where each item's row stands: never behind the item, as `dedupe` has it; -1 if nowhere.
    fill : float
        All numbers of an item that has no row.

    Examples
    --------
    >>> rows = np.array([[1.0], [2.0], [0.0], [0.0]], np.float32)
    >>> spread(rows, np.array([0, -1, 1, 0]), fill=-1.0)
    >>> rows.ravel().tolist()
    [1.0, -1.0, 2.0, 1.0]
    """
    at_a_time = max(1, _SPREAD_BYTES // max(1, rows[:1].nbytes))
    # From the end, where nothing stands that is still needed.
    for stop in range(len(source), 0, -at_a_time):
        start = max(0, stop - at_a_time)
        some = source[start:stop]
        rows[start:stop] = rows[some]
        rows[start:stop][some < 0] = fill


def batches(
    tokens: Sequence[int],
    budget: int,
    *,
    sizes: Sequence[int] | None = None,
    most: int = 0,
) -> list[list[int]]:
    """Divide sequences into batches of at most ``budget`` tokens, longest first.

    Longest first, so that a sequence which does not fit into memory is known at once and
    not after hours. A sequence that is longer than the budget is a batch of its own.

    Parameters
    ----------
    tokens : sequence of int
        Tokens of each sequence: residues + 2, over all of its windows.
    budget : int
        Tokens per batch, at least 1.
    sizes : sequence of int, optional
        Bytes that come of each sequence.
    most : int
        Bytes per batch, if there are ``sizes``; one sequence may come to more.

    Returns
    -------
    batches : list of list of int
        Indices into ``tokens``. Each index appears exactly once, and equal lengths are
        neighbours.
    """
    order = np.argsort(-np.asarray(tokens, dtype=np.int64), kind="stable")
    planned: list[list[int]] = []
    room = room_in_bytes = 0
    for i in order.tolist():
        size = 0 if sizes is None else sizes[i]
        if tokens[i] > room or size > room_in_bytes:
            planned.append([])
            room, room_in_bytes = budget, most
        planned[-1].append(i)
        room -= tokens[i]
        room_in_bytes -= size
    return planned


def pack(sequences: Sequence[str]) -> Batch:
    """Lay the sequences of one batch one behind the other.

    Parameters
    ----------
    sequences : sequence of str
        Normalised, at least one. Those of equal length should be neighbours: every run of
        equal lengths becomes one group.

    Returns
    -------
    batch : Batch
    """
    return pack_tokens([encode(sequence) for sequence in sequences])


def pack_tokens(encoded: Sequence[NDArray[np.uint8]]) -> Batch:
    """Lay rows of tokens one behind the other, as `pack` does with sequences.

    Parameters
    ----------
    encoded : sequence of ndarray of shape (residues + 2,), uint8
        As `encode` gives them.

    Returns
    -------
    batch : Batch
    """
    sizes = np.array([len(tokens) for tokens in encoded])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    tokens = np.concatenate(encoded).astype(np.int64)
    masked = tokens == MASK_TOKEN
    share = np.add.reduceat(masked, starts[:-1], dtype=np.float32) / sizes.astype(np.float32)
    scale = np.repeat(np.float32(EMBEDDING_SCALE) / (np.float32(1) - share), sizes)
    scale[masked] = 0.0
    edges = [0, *(np.flatnonzero(np.diff(sizes)) + 1).tolist(), len(sizes)]
    return Batch(
        tokens=tokens,
        positions=np.arange(len(tokens)) - np.repeat(starts[:-1], sizes),
        scale=scale.astype(np.float32),
        groups=tuple(
            Group(start=int(starts[a]), count=b - a, tokens=int(sizes[a]))
            for a, b in pairwise(edges)
        ),
    )
