"""Progress of runs: a bar on a terminal, and a function that watches all runs of a thread."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

from esm2_features._inputs.views import distinct_sequences

Watch = Callable[[int, int], object]
"""Is told of residues that are done, and of residues of a run that begins; may raise."""

WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)
"""What watches the runs of this thread."""


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Call ``watch`` between the batches of all runs in the block; an error in it ends the run."""
    token = WATCH.set(watch)
    try:
        yield
    finally:
        WATCH.reset(token)


@contextmanager
def progress_of(
    title: str, views: Sequence[str], watch: Watch | None
) -> Iterator[Callable[[int], object]]:
    """Tell the watch of a run, or draw a bar; yield a function that takes finished residues."""
    residues = int(distinct_sequences(views).lengths.sum())
    if watch is not None:
        watch(0, residues)
        yield lambda done: watch(done, 0)
        return
    from tqdm.auto import tqdm  # it warns in notebooks that have no widgets, so not before this

    # disable=None draws on a terminal only, so log files stay clean.
    with tqdm(
        total=residues, desc=title, unit=" residues", unit_scale=True, disable=None
    ) as progress:
        yield progress.update


@lru_cache
def advise(text: str) -> None:
    """Say something once, to people only."""
    if sys.stderr.isatty():
        sys.stderr.write(f"{text}\n")
