"""`BatchLoop`: the forward passes of one run on one device, and what happens out of memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from esm2_features._inference.batching import batches
from esm2_features._inputs.views import SequenceView, distinct_sequences, parse
from esm2_features.exceptions import OutOfMemoryError

if TYPE_CHECKING:
    import torch

_BATCH_BYTES = 1 << 28
"""Bytes of results that come from one forward pass."""


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
        on_smaller_budget: Callable[[int], object],  # told of the budget after one was too large
        progress: Callable[[int], object],  # told of residues that are done
    ) -> None:
        self.budget = budget
        self._views = views
        self._forward = forward
        self._bytes_of = bytes_of
        self._claim = claim
        self._device = device
        self._on_smaller_budget = on_smaller_budget
        self._progress = progress
        self._parsed: dict[int, SequenceView] = {}
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
        self._parsed, plan = plan_batches(self._views, which, self.budget, self._bytes_of)
        return plan

    def _begin(self, batch: list[int]) -> bool:
        """Begin to compute a batch; return whether it fits into memory."""
        from esm2_features._model.devices import is_out_of_memory

        try:
            results = self._forward([self._views[i] for i in batch], self.budget)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if not _can_split([self._parsed[i] for i in batch], self.budget):
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
        distinct = distinct_sequences([self._parsed[i] for i in batch])
        if len(distinct) == 1 and len(batch) > 1:  # parts of one sequence
            half = len(batch) // 2
            return deque([batch[:half], batch[half:], *pending])
        tokens = sum(SequenceView(*one).tokens for one in distinct)
        self.budget = min(self.budget, tokens) // 2
        self._on_smaller_budget(self.budget)
        return deque(self.plan([*batch, *(i for later in pending for i in later)]))

    def _residues(self, some: Sequence[int]) -> int:
        distinct = distinct_sequences([self._parsed[i] for i in some])
        return sum(len(sequence) for sequence, _ in distinct)


def plan_batches(
    views: Sequence[str], which: Sequence[int], budget: int, bytes_of: Callable[[int], int]
) -> tuple[dict[int, SequenceView], list[list[int]]]:
    """Read some views, and divide them into batches, the longest first, a sequence in one batch."""
    parsed = [parse(views[i]) for i in which]
    members = list(distinct_sequences(parsed).values())
    firsts = [parsed[numbers[0]] for numbers in members]
    plan = batches(
        [view.tokens for view in firsts],
        budget,
        sizes=[
            len(numbers) * bytes_of(len(view.sequence))
            for view, numbers in zip(firsts, members, strict=True)
        ],
        most=_BATCH_BYTES,
    )
    numbered = dict(zip(which, parsed, strict=True))
    return numbered, [[which[k] for sequence in batch for k in members[sequence]] for batch in plan]


def _can_split(views: Sequence[SequenceView], budget: int) -> bool:
    """Whether a batch can be divided: into sequences, parts of one, or its windows."""
    window = views[0].window
    return len(views) > 1 or (window > 0 and window + 2 < min(budget, views[0].tokens))


def _out_of_memory(length: int, device: str) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"One sequence of {length} residues does not fit into the memory of {device}, alone in "
        "its batch. What was put into the cache before it is kept. Use a device with more memory, "
        'a smaller model, or a lower max_residues with too_long="window" or too_long="truncate".',
        length=length,
        device=device,
    )
