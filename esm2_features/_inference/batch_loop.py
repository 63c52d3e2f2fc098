"""The loop over batches: what is computed together, out of memory, how far it has come."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from esm2_features._inputs.views import SequenceView, distinct_sequences, parse, windows
from esm2_features._model.packing import batches
from esm2_features.exceptions import OutOfMemoryError

if TYPE_CHECKING:
    import torch

_BATCH_BYTES = 1 << 28
"""Bytes of results that come from one forward pass."""


class BatchLoop:
    """The forward passes over some views.

    A batch that does not fit into memory is halved, and so are those that follow. Where a device
    computes by itself, the next batches are begun before the results of one are waited for.
    """

    def __init__(
        self,
        views: Sequence[str],
        *,
        forward: Callable[[list[str], int], Callable[[], Sequence[Any]]],
        bytes_of: Callable[[int], int],  # size of the result for a sequence of so many residues
        claim: Callable[[list[int]], list[int]],
        device: torch.device,  # whose memory may end
        budget: int,  # tokens per batch
        shrunk: Callable[[int], object],
        progress: Callable[[int], object],  # told of residues that are done
    ) -> None:
        self.budget = budget
        self._views = views
        self._forward = forward
        self._bytes_of = bytes_of
        self._claim = claim
        self._device = device
        self._shrunk = shrunk
        self._progress = progress
        self._parsed: dict[int, SequenceView] = {}
        self._begun: deque[tuple[list[int], Callable[[], Sequence[Any]]]] = deque()

    def run(self, which: Sequence[int]) -> Generator[tuple[list[int], Sequence[Any]], None, None]:
        """Compute results batch by batch, the longest first."""
        from esm2_features._model.devices import batches_ahead, release_memory

        self._begun.clear()
        pending = deque(self.plan(which))
        while pending:
            offered = pending.popleft()
            try:
                batch = self._claim(offered)
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
        """Divide views into batches, as `over` does before it meets the end of memory."""
        self._parsed = {i: parse(self._views[i]) for i in which}
        return self._planned(which)

    def _planned(self, some: Sequence[int]) -> list[list[int]]:
        members = list(distinct_sequences([self._parsed[i] for i in some]).values())
        firsts = [self._parsed[some[views[0]]] for views in members]
        plan = batches(
            [_tokens(view) for view in firsts],
            self.budget,
            sizes=[
                len(numbers) * self._bytes_of(len(view.sequence))
                for view, numbers in zip(firsts, members, strict=True)
            ],
            most=_BATCH_BYTES,
        )
        return [[some[k] for sequence in batch for k in members[sequence]] for batch in plan]

    def _begin(self, batch: list[int]) -> bool:
        """Begin to compute a batch; tell whether it fits into memory."""
        from esm2_features._model.devices import is_out_of_memory

        try:
            results = self._forward([self._views[i] for i in batch], self.budget)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if not _can_be_less([self._parsed[i] for i in batch], self.budget):
                raise _out_of_memory(self._residues(batch), str(self._device)) from error
            return False
        self._begun.append((batch, results))
        return True

    def _finished(self, leave: int = 0) -> Iterator[tuple[list[int], Sequence[Any]]]:
        """Wait for what was begun, but for so many."""
        while len(self._begun) > leave:
            batch, results = self._begun.popleft()
            yield batch, results()
            self._progress(self._residues(batch))

    def _halved(self, batch: list[int], pending: deque[list[int]]) -> deque[list[int]]:
        """Divide a batch that did not fit, and if it was too many sequences, all that follow."""
        distinct = distinct_sequences([self._parsed[i] for i in batch])
        if len(distinct) == 1 and len(batch) > 1:  # parts of one sequence
            half = len(batch) // 2
            return deque([batch[:half], batch[half:], *pending])
        tokens = sum(_tokens(SequenceView(*one)) for one in distinct)
        self.budget = min(self.budget, tokens) // 2
        self._shrunk(self.budget)
        return deque(self._planned([*batch, *(i for later in pending for i in later)]))

    def _residues(self, some: Sequence[int]) -> int:
        distinct = distinct_sequences([self._parsed[i] for i in some])
        return sum(len(sequence) for sequence, _ in distinct)


def _can_be_less(views: Sequence[SequenceView], budget: int) -> bool:
    """Tell whether a batch can be divided: into sequences, parts of one, or its windows."""
    window = views[0].window
    return len(views) > 1 or (window > 0 and window + 2 < min(budget, _tokens(views[0])))


def _tokens(view: SequenceView) -> int:
    """Tokens that a sequence has in all of its windows."""
    if not view.window:
        return len(view.sequence) + 2
    return len(windows(len(view.sequence), view.window)) * (view.window + 2)


def _out_of_memory(length: int, device: str) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"One sequence of {length} residues does not fit into the memory of {device}, alone in "
        "its batch. What was put into the cache before it is kept. Use a device with more memory, "
        'a smaller model, or a lower max_residues with too_long="window" or too_long="truncate".',
        length=length,
        device=device,
    )
