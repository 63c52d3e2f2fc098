"""`BatchLoop`: the forward passes of one run on one device, and what happens out of memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from esm2_features._inference.batching import batches
from esm2_features._inputs.views import DistinctSequences, distinct_sequences
from esm2_features.exceptions import OutOfMemoryError

if TYPE_CHECKING:
    import torch

_BATCH_BYTES = 1 << 28
"""Bytes of results that come from one forward pass."""

_FEWEST_BATCHES_OF_WORKER = 4
"""Batches of each worker on some of the cores: with fewer, some would wait long for the last."""


class BatchLoop:
    """Runs the forward passes over some views, the longest first.

    A batch that does not fit into memory is halved, and unless it held parts of one sequence only,
    the token budget shrinks for all later batches. Where a device computes by itself, the next
    batches are begun before the loop waits for the results of one.
    """

    def __init__(
        self,
        views: Sequence[str],
        *,
        # begins to compute views, within so many tokens; the returned function waits for results
        forward: Callable[[list[str], int], Callable[[], Sequence[Any]]],
        bytes_of: Callable[[int], int],  # size of the result for a sequence of so many residues
        claim: Callable[[list[int]], list[int]],  # returns the views of a batch that are ours
        device: torch.device,
        budget: int,  # tokens per batch
        sharing: int = 1,  # loops that share the run, and the memory of its results
        on_smaller_budget: Callable[[int], object],  # told of the budget after one was too large
        progress: Callable[[int], object],  # told of residues that are done
    ) -> None:
        self.budget = budget
        self._sharing = sharing
        self._views = views
        self._forward = forward
        self._bytes_of = bytes_of
        self._claim = claim
        self._device = device
        self._on_smaller_budget = on_smaller_budget
        self._progress = progress
        self._owners = np.zeros(len(views), np.intp)  # the sequence of each planned view
        self._begun: deque[tuple[list[int], Callable[[], Sequence[Any]]]] = deque()

    def run(self, which: Sequence[int]) -> Generator[tuple[list[int], Sequence[Any]], None, None]:
        """Yield the numbers of the views of each batch, and a result for each of them.

        All views of a sequence are in one batch. Raise OutOfMemoryError if one sequence alone does
        not fit into memory.
        """
        from esm2_features._model.devices import batches_ahead, release_memory

        self._begun.clear()
        pending = deque(self.plan(which))
        while pending:
            offered = pending.popleft()
            try:
                batch = self._claim(offered)
                if len(batch) < len(offered):
                    self._progress(self._residues(offered) - self._residues(batch))
                if not batch:
                    continue
                fits = self._begin(batch)
            except (Exception, KeyboardInterrupt):
                yield from self._finished()  # what was computed before is not lost
                raise
            if fits:
                yield from self._finished(batches_ahead(self._device))
                continue
            yield from self._finished()
            # Only here, after the error and its frames are gone, can memory be freed.
            release_memory(self._device)
            pending = self._halved(batch, pending)
        yield from self._finished()

    def plan(self, which: Sequence[int]) -> list[list[int]]:
        """Divide views into the batches that `run` computes if they fit into memory."""
        some = [self._views[i] for i in which]
        self._distinct, plan = plan_batches(some, self.budget, self._bytes_of, self._sharing)
        self._owners[which] = self._distinct.owners
        return [[which[i] for i in batch] for batch in plan]

    def divide(self, which: Sequence[int], workers: int) -> tuple[list[int], list[int]]:
        """Choose views for this loop, and for a pool of workers that divide its budget."""
        some = [self._views[i] for i in which]
        parts = divide(some, self.budget, self._bytes_of, workers)
        alone, divided = ([which[i] for i in part] for part in parts)
        return alone, divided

    def _begin(self, batch: list[int]) -> bool:
        """Begin to compute a batch; return whether it fits into memory."""
        from esm2_features._model.devices import is_out_of_memory

        try:
            results = self._forward([self._views[i] for i in batch], self.budget)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if not self._can_split(batch):
                raise _out_of_memory(self._residues(batch), str(self._device)) from error
            return False
        self._begun.append((batch, results))
        return True

    def _finished(self, leave: int = 0) -> Iterator[tuple[list[int], Sequence[Any]]]:
        """Yield finished batches; keep at most `leave` of them under way."""
        while len(self._begun) > leave:
            batch, results = self._begun.popleft()
            yield batch, results()
            self._progress(self._residues(batch))

    def _halved(self, batch: list[int], pending: deque[list[int]]) -> deque[list[int]]:
        """Split parts of one sequence in two; otherwise, plan all views for a lower budget."""
        sequences = np.unique(self._owners[batch])
        if len(sequences) == 1 and len(batch) > 1:  # parts of one sequence
            half = len(batch) // 2
            return deque([batch[:half], batch[half:], *pending])
        self.budget = min(self.budget, int(self._distinct.tokens[sequences].sum())) // 2
        self._on_smaller_budget(self.budget)
        return deque(self.plan([*batch, *(i for later in pending for i in later)]))

    def _can_split(self, batch: Sequence[int]) -> bool:
        """Whether a batch can be divided: into sequences, parts of one, or its windows."""
        one = self._owners[batch[0]]
        window = self._distinct.windows[one]
        fewest = min(self.budget, self._distinct.tokens[one])
        return len(batch) > 1 or (window > 0 and window + 2 < fewest)

    def _residues(self, some: Sequence[int]) -> int:
        return int(self._distinct.lengths[np.unique(self._owners[some])].sum())


def plan_batches(
    views: Sequence[str], budget: int, bytes_of: Callable[[int], int], sharing: int = 1
) -> tuple[DistinctSequences, list[list[int]]]:
    """Read views, and divide them into batches, the longest first, a sequence in one batch.

    With several workers, each gets as many.
    """
    distinct, count, sizes = _read(views, bytes_of)
    total = int(distinct.tokens.sum())
    if sharing > 1 and total > sharing * budget:
        of_each = -(-total // (sharing * budget))
        # Batches end where a sequence does, half of the longest too early on average.
        budget = min(budget, total // (sharing * of_each) + int(distinct.tokens.max()) // 2)
    plan = batches(distinct.tokens, budget, sizes=sizes, most=_BATCH_BYTES // sharing)
    if len(distinct.sequences) < len(views):
        ordered = np.argsort(distinct.owners, kind="stable")
        members = np.split(ordered, np.cumsum(count)[:-1])
        plan = [np.concatenate([members[i] for i in batch]).tolist() for batch in plan]
    return distinct, plan


def divide(
    views: Sequence[str], budget: int, bytes_of: Callable[[int], int], workers: int
) -> tuple[list[int], list[int]]:
    """Choose views for passes by all cores, and for passes by a worker with some of the cores.

    A worker's passes have its share of the budget. Sequences that are longer come first, one pass
    at a time, and so does everything if it would not keep the workers busy.
    """
    fewest = _FEWEST_BATCHES_OF_WORKER * budget
    if workers > 1 and sum(len(view) + 2 for view in views) >= fewest:
        distinct, _, sizes = _read(views, bytes_of)
        is_long = (distinct.tokens > budget // workers) | (sizes > _BATCH_BYTES // workers)
        if distinct.tokens[~is_long].sum() >= fewest:
            of_views = is_long[distinct.owners]
            return np.flatnonzero(of_views).tolist(), np.flatnonzero(~of_views).tolist()
    return list(range(len(views))), []


def _read(
    views: Sequence[str], bytes_of: Callable[[int], int]
) -> tuple[DistinctSequences, NDArray[np.intp], NDArray[np.int64]]:
    """Find the sequences of views, the number of views of each, and the bytes of their results."""
    distinct = distinct_sequences(views)
    lengths, number = np.unique(distinct.lengths, return_inverse=True)
    of_length = np.array([bytes_of(length) for length in lengths.tolist()], np.int64)
    count = np.bincount(distinct.owners, minlength=len(distinct.sequences))
    return distinct, count, count * of_length[number]


def _out_of_memory(length: int, device: str) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"One sequence of {length} residues does not fit into the memory of {device}, alone in "
        "its batch. What was put into the cache before it is kept. Use a device with more memory, "
        'a smaller model, or a lower max_residues with too_long="window" or too_long="truncate".',
        length=length,
        device=device,
    )
