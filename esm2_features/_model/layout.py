"""How the views of one forward pass lie in its tokens: sequences, windows, and parts of them.

A sequence that goes through the network in one piece lies in the packed batch as it is. One that
goes in windows is a piece for each window, and `Layout.merge_windows` makes one sequence of them:

    pieces    c A B C D e  c C D E F e       windows of 4 that overlap by 2
    merged    c A B C D E F e                C and D are weighted means of both

Source of the weights: none; that a residue near the edge of a window lacks context on one side
is plain, and a weight that grows with the distance from the edge is the simplest answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from esm2_features._inputs.alphabet import encode_all
from esm2_features._inputs.views import (
    DistinctSequences,
    distinct_sequences,
    positions_of,
    window_weights,
    windows,
)
from esm2_features._model.devices import send
from esm2_features._model.packing import MOST_SEQUENCES, Batch, Group, pack, pack_tokens

_COPIED_BYTES = 1 << 25
"""Bytes of residues that are copied at a time."""


class Segment(NamedTuple):
    """Views with the same number of residues, and where these lie."""

    members: list[int]  # numbers of the views
    group: Group | None  # where whole sequences lie, one behind the other
    rows: NDArray[np.int64]  # rows of the residues; empty where there is a group
    owners: NDArray[np.int64]  # which of the distinct sequences each view is of

    def parts(self, dim: int) -> Iterator[Segment]:
        """Cut it where picking residues would copy too much; whole sequences are not copied."""
        at_a_time = max(1, _COPIED_BYTES // max(1, 4 * dim * self.rows.shape[1]))
        if self.group is not None or len(self.members) <= at_a_time:
            yield self
            return
        for start in range(0, len(self.members), at_a_time):
            some = slice(start, start + at_a_time)
            yield Segment(self.members[some], None, self.rows[some], self.owners[some])

    def residues(self, x_TD: Tensor) -> Tensor:
        """Pick the residues, without special tokens: (views, residues, dim)."""
        if self.group is not None:
            return self.tokens(x_TD)[:, 1:-1]
        return x_TD[send(self.rows, x_TD.device)]

    def tokens(self, x_TD: Tensor) -> Tensor:
        """Pick whole sequences with their special tokens: (views, residues + 2, dim)."""
        assert self.group is not None, "a part of a sequence has no special tokens"
        group = self.group
        return x_TD[group.start : group.stop].view(group.count, group.tokens, -1)


class Layout:
    """One forward pass over some views."""

    def __init__(self, views: Sequence[str], budget: int | None = None) -> None:
        distinct = distinct_sequences(views)
        self.count = len(views)
        self._spans, self._owners = distinct.spans, distinct.owners
        self._sizes = distinct.lengths + 2
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)])
        self.is_windowed = any(distinct.windows)
        pieces = self._cut(distinct) if self.is_windowed else distinct.sequences
        self.batches = (
            _packed(pieces, budget)
            if self.is_windowed
            else [pack_tokens(encode_all(pieces), self._sizes)]
        )
        self._sent: tuple[Tensor, ...] = ()  # what `merge_windows` needs, on the device
        self.groups = self._merged_groups() if self.is_windowed else self.batches[0].groups

    def merge_windows(self, parts: Iterable[Tensor]) -> Tensor:
        """Make one sequence of the windows of each that has some; ``parts`` are of the batches.

        Every row is added up in the order of its windows, so that it has the same bits each time.
        """
        if not self.is_windowed:
            [x_TD] = parts
            return x_TD
        x_TD = torch.cat(list(parts))
        device = x_TD.device
        if device.type == "mps":
            x_TD = x_TD.cpu()  # PyTorch before 2.10 has no bags there
        if not self._sent:
            counts = np.bincount(self._targets)
            in_order = np.argsort(self._targets, kind="stable")
            self._sent = tuple(
                send(x, x_TD.device)
                for x in (in_order, np.cumsum(counts) - counts, self._shares[:, None])
            )
        order, starts, shares = self._sent
        return embedding_bag(order, x_TD.mul_(shares), starts, mode="sum").to(device)

    def sequences(self, rows: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Copy the residues of each view out of merged rows."""
        found: list[NDArray[np.float32]] = [rows] * self.count
        for segment in self.segments:
            for k, member in enumerate(segment.members):
                start = int(self._starts[segment.owners[k]]) + 1
                whole = slice(start, start + int(self._sizes[segment.owners[k]]) - 2)
                found[member] = rows[whole if segment.group else segment.rows[k]].copy()
        return found

    def _cut(self, distinct: DistinctSequences) -> list[str]:
        """Cut sequences into their windows, and note which row each of these belongs to."""
        pieces: list[str] = []
        targets: list[NDArray[np.int64]] = []
        weights: list[NDArray[np.float32]] = []
        for sequence, window, start in zip(
            distinct.sequences, distinct.windows, self._starts, strict=False
        ):
            if not window:
                pieces.append(sequence)
                targets.append(start + np.arange(len(sequence) + 2))
                weights.append(np.ones(len(sequence) + 2, np.float32))
                continue
            for part in windows(len(sequence), window):
                pieces.append(sequence[part.start : part.stop])
                residues = start + 1 + np.arange(part.start, part.stop)
                ends = (start, start + len(sequence) + 1)  # <cls> and <eos>, of all windows alike
                targets.append(np.concatenate([[ends[0]], residues, [ends[1]]]))
                weights.append(np.pad(window_weights(window), 1, constant_values=1.0))
        target, weight = np.concatenate(targets), np.concatenate(weights)
        self._targets = target
        self._shares = (weight / np.bincount(target, weight)[target]).astype(np.float32)
        return pieces

    def _merged_groups(self) -> tuple[Group, ...]:
        edges = [0, *(np.flatnonzero(np.diff(self._sizes)) + 1).tolist(), len(self._sizes)]
        return tuple(
            Group(start=int(self._starts[a]), count=b - a, tokens=int(self._sizes[a]))
            for a, b in pairwise(edges)
        )

    @cached_property
    def segments(self) -> list[Segment]:
        """Views by their number of residues; whole sequences are segments where they lie."""
        spans, owners = self._spans, self._owners
        if self.count == len(self._sizes) and not any(spans):
            edges = np.cumsum([0, *(group.count for group in self.groups)]).tolist()
            none = np.empty((0, 0), np.int64)
            return [
                Segment(list(range(a, b)), group, none, owners[a:b])
                for group, (a, b) in zip(self.groups, pairwise(edges), strict=True)
            ]
        rows_of: dict[int, list[tuple[int, NDArray[np.int64]]]] = {}
        for i in range(self.count):
            first = self._starts[owners[i]] + 1
            whole = ((0, int(self._sizes[owners[i]]) - 2),)
            parts = (spans[i] or whole) if spans else whole
            rows = first + positions_of(parts)
            rows_of.setdefault(len(rows), []).append((i, rows))
        return [
            Segment(
                [i for i, _ in some],
                None,
                np.stack([rows for _, rows in some]),
                owners[[i for i, _ in some]],
            )
            for some in rows_of.values()
        ]


def _packed(pieces: Sequence[str], budget: int | None) -> list[Batch]:
    """Pack pieces in their order, as many at a time as the budget holds."""
    portions: list[list[str]] = []
    room = 0
    for piece in pieces:
        tokens = len(piece) + 2
        is_full = bool(portions) and len(portions[-1]) == MOST_SEQUENCES
        if not portions or is_full or (budget is not None and tokens > room):
            portions.append([])
            room = budget or 0
        portions[-1].append(piece)
        room -= tokens
    return [pack(portion) for portion in portions]
