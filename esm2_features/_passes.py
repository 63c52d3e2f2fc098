"""The loop over batches: what is computed together, out of memory, how far it has come.

Never here: what a forward pass computes, caches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from esm2_features._plan import batches
from esm2_features._subjects import Subject, distinct_sequences, parse, windows
from esm2_features.exceptions import OutOfMemoryError

if TYPE_CHECKING:
    import torch

_BATCH_BYTES = 1 << 28
"""Bytes of results that come from one forward pass."""


def passes(
    subjects: Sequence[str],
    which: Sequence[int],
    *,
    forward: Callable[[list[str], int], Sequence[Any]],
    bytes_of: Callable[[int], int],
    take: Callable[[list[int]], list[int]],
    device: torch.device,
    budget: int,
    progress: Callable[[int], object],
) -> Iterator[tuple[list[int], Sequence[Any]]]:
    """Compute results of subjects, batch by batch, the longest first.

    A batch that does not fit into memory is halved, and so are those that follow.

    Parameters
    ----------
    subjects : sequence of str
    which : sequence of int
        Numbers of those that are to be computed, all different.
    forward : callable
        Takes the subjects of a batch and the budget, and gives a result for each.
    bytes_of : callable
        Size of the result for a sequence of so many residues.
    take : callable
        Takes the numbers of a batch, and gives those of them that are ours to compute.
    device : torch.device
        Whose memory may end.
    budget : int
        Tokens per batch.
    progress : callable
        Told of residues that are done.

    Yields
    ------
    batch : list of int
        Numbers of subjects. Those of one sequence are in one batch.
    results : sequence
        In the same order.

    Raises
    ------
    OutOfMemoryError
        If one sequence alone does not fit into memory.
    """
    from esm2_features._devices import is_out_of_memory, release_memory

    parsed = {i: parse(subjects[i]) for i in which}

    def planned(some: Sequence[int]) -> deque[list[int]]:
        members = list(distinct_sequences([parsed[i] for i in some]).values())
        firsts = [parsed[some[subjects[0]]] for subjects in members]
        plan = batches(
            [_tokens(subject) for subject in firsts],
            budget,
            sizes=[
                len(numbers) * bytes_of(len(subject.sequence))
                for subject, numbers in zip(firsts, members, strict=True)
            ],
            most=_BATCH_BYTES,
        )
        return deque([some[k] for sequence in batch for k in members[sequence]] for batch in plan)

    def residues(some: Sequence[int]) -> int:
        distinct = distinct_sequences([parsed[i] for i in some])
        return sum(len(sequence) for sequence, _ in distinct)

    pending = planned(which)
    while pending:
        offered = pending.popleft()
        batch = take(offered)
        progress(residues(offered) - residues(batch))
        if not batch:
            continue
        try:
            results = forward([subjects[i] for i in batch], budget)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if not _can_be_less([parsed[i] for i in batch], budget):
                raise _out_of_memory(residues(batch), str(device)) from error
            results = None
        if results is None:
            # Only here, after the error and its frames are gone, can memory be freed.
            release_memory(device)
            distinct = distinct_sequences([parsed[i] for i in batch])
            if len(distinct) == 1 and len(batch) > 1:  # parts of one sequence
                half = len(batch) // 2
                pending.extendleft([batch[half:], batch[:half]])
            else:
                budget = min(budget, sum(_tokens(Subject(*one)) for one in distinct)) // 2
                pending = planned([*batch, *(i for later in pending for i in later)])
            continue
        yield batch, results
        progress(residues(batch))


def _can_be_less(subjects: Sequence[Subject], budget: int) -> bool:
    """Tell whether a batch can be divided: into sequences, parts of one, or its windows."""
    window = subjects[0].window
    return len(subjects) > 1 or (window > 0 and window + 2 < min(budget, _tokens(subjects[0])))


def _tokens(subject: Subject) -> int:
    """Tokens that a sequence has in all of its windows."""
    if not subject.window:
        return len(subject.sequence) + 2
    return len(windows(len(subject.sequence), subject.window)) * (subject.window + 2)


def _out_of_memory(length: int, device: str) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"One sequence of {length} residues does not fit into the memory of {device}, alone in "
        "its batch. What was put into the cache before it is kept. Use a device with more memory, "
        'a smaller model, or a lower max_residues with too_long="window" or too_long="truncate".',
        length=length,
        device=device,
    )
