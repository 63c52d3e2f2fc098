"""`Runner`: from views to numbers, read from the cache or computed by a backend.

`Runner.rows` is the data flow of the library on one page. `_inputs.views` finds distinct views,
`cache_session` reads and stores, `local` (or `remote.backend`) connects and computes, in batches of
`batch_loop`, with an extractor of `extractors` that runs the network of `_model`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from esm2_features._cache import Cache
from esm2_features._checkpoints import Checkpoint
from esm2_features._inference.batching import BatchPlan, scatter
from esm2_features._inference.cache_session import Columns, open_session
from esm2_features._inference.progress import WATCH, advise, progress_of
from esm2_features._inputs.alphabet import TOKENS
from esm2_features._inputs.options import SPECIAL_TOKENS, check_special_tokens
from esm2_features._inputs.views import (
    UniqueViews,
    count_sequences,
    distinct_sequences,
    shown,
    unique_views,
)
from esm2_features.exceptions import CheckpointError, InputError

if TYPE_CHECKING:
    from esm2_features._inference.extractors import Extractor


_FILL_VIEWS, _FILL_BYTES = 4096, 1 << 28
"""Views that `Runner.fill_cache` computes at a time, and bytes of their features."""


class Connection(Protocol):
    """A backend that is ready: `LocalConnection` has weights, `RemoteRows` an answer."""

    @property
    def advice(self) -> str | None:
        """What a user who watches the progress should know, if there is anything."""

    @property
    def identity(self) -> str | None:
        """Identity of weights other than the checkpoint's, which keys of the cache then name."""

    def compute(
        self,
        unique: UniqueViews,
        which: Sequence[int],
        columns: Columns,
        *,
        claim: Callable[[list[int]], list[int]],
        progress: Callable[[int], object],
    ) -> Generator[tuple[list[int], NDArray[np.float32]], None, None]:
        """Yield the numbers of some views, and their vectors, (views, computed, width).

        ``claim`` gets the numbers of a batch before it is computed, and returns those that no
        other process computes; ``progress`` is told of residues that are done.
        """

    def extract(
        self, views: Sequence[str], extractor: Extractor, progress: Callable[[int], object]
    ) -> Generator[tuple[list[int], Any], None, None]:
        """Yield the numbers of some views, and what an extractor reads off their forward pass."""


class Backend(Protocol):
    """What computes: networks in this process (`LocalBackend`), or a server (`RemoteBackend`)."""

    def connect(self) -> AbstractContextManager[Connection]:
        """Load the weights, or ask the server what it serves."""

    def plan(self, views: Sequence[str], columns: Columns) -> BatchPlan:
        """Divide views into batches, without computing them."""

    def check_product(self, product: str) -> None:
        """Raise InputError for a product that this backend cannot compute."""


class Plan(NamedTuple):
    """What `Runner.rows` would compute."""

    unique: list[str]  # the distinct views
    missing: list[str]  # those without vectors in the cache
    batches: BatchPlan | None  # how they would be computed; None if nothing is missing


@dataclass(eq=False)
class Runner:
    """Computes features of views with one checkpoint, and keeps them in a cache."""

    checkpoint: Checkpoint
    backend: Backend
    precision: str
    cache: Cache | None
    verbose: bool  # show progress on a terminal
    n_computed: int = 0  # sequences that went through the network

    def rows(
        self,
        views: Sequence[str | None],
        columns: Columns,
        *,
        row_numbers: Sequence[int] | None = None,
        fill: float = np.nan,
    ) -> NDArray[np.float32]:
        """Give the row of each view, (views, wanted columns, width), in their order.

        ``row_numbers`` name the views in messages, if they are not 0, 1, 2, ...; the row of a view
        that is None is filled with ``fill``.
        """
        if (watch := WATCH.get()) is not None:
            watch(0, 0)  # may end a run that has nothing to compute, too
        unique = unique_views(views, row_numbers)
        table = np.empty((len(views), len(columns.wanted), columns.width), np.float32)
        vectors = table[: len(unique.views)]  # of the distinct views, until they are scattered
        about = self.cache, self.checkpoint, self.precision, unique.views, columns, vectors
        session = open_session(*about)  # what it reads is written into `vectors`
        missing = session.read(range(len(unique.views)))
        if missing:
            with (
                self._progress(unique, missing) as progress,
                self._connect(unique, missing, columns) as connection,
            ):
                if self.verbose and connection.advice:
                    advise(connection.advice)
                if connection.identity is not None:
                    session = open_session(*about, connection.identity)
                    missing = session.read(missing)
                # Without a cache, there is nobody to share the work with.
                claim = list if self.cache is None else session.claim
                with closing(session):
                    while missing:
                        batches = connection.compute(
                            unique, missing, columns, claim=claim, progress=progress
                        )
                        with closing(batches):
                            for batch, computed in batches:
                                vectors[batch] = computed[:, columns.picked]
                                session.add(batch, computed)
                                self.n_computed += count_sequences(unique.views[i] for i in batch)
                        missing = session.wait_for_others()
        if len(unique.views) < len(views):
            scatter(table, unique.source, fill=fill)
        return table

    def embed(
        self,
        views: Sequence[str | None],
        columns: Columns,
        *,
        row_numbers: Sequence[int] | None = None,
        fill: float = np.nan,
    ) -> NDArray[np.float32]:
        """Give the features of each view, (views, wanted columns x width), as `rows` does.

        Parts of sequences have no special tokens, so these are computed of whole sequences only.
        """
        is_part = np.array(["@" in view for view in views if view is not None], bool)
        if is_part.any():
            check_special_tokens([pooling for _, pooling in columns.wanted])
            of_parts = [column for column in columns.computed if column[1] not in SPECIAL_TOKENS]
            if not is_part.all() and len(of_parts) < len(columns.computed):
                # More is kept of whole sequences than of parts: whole ones first, and then all.
                whole = [None if view and "@" in view else view for view in views]
                self.rows(whole, columns, row_numbers=row_numbers)
            columns = columns._replace(computed=of_parts)
        found = self.rows(views, columns, row_numbers=row_numbers, fill=fill)
        return found.reshape(len(views), len(columns.wanted) * columns.width)

    def fill_cache(
        self, views: Sequence[str], columns: Columns, *, row_numbers: Sequence[int]
    ) -> None:
        """Compute what the cache lacks, for few enough views at a time."""
        if self.cache is None:
            raise InputError("Got cache=None, so there is nothing to be filled. Choose a cache.")
        at_a_time = columns.rows_within(_FILL_BYTES, most=_FILL_VIEWS)
        for start in range(0, len(views), at_a_time):
            some = slice(start, start + at_a_time)
            self.embed(views[some], columns, row_numbers=row_numbers[some])

    def log_probs(self, sites: Sequence[str]) -> NDArray[np.float32]:
        """Give natural-log probabilities of the 33 tokens at each site, (sites, 33).

        Sites are views of one residue; those of one sequence share a forward pass.
        """
        self.backend.check_product("A likelihood")
        column = [(self.checkpoint.architecture.layers, "log_probs")]
        return self.rows(sites, Columns(column, column, len(TOKENS)))[:, 0]

    def results(self, views: Sequence[str], extractor: Extractor) -> list[Any]:
        """Give results of any size in the order of the views; they are not cached."""
        unique = unique_views(views)
        results: list[Any] = [None] * len(unique.views)
        if results:
            everything = range(len(results))
            with (
                self._progress(unique, everything) as progress,
                self.backend.connect() as connection,
            ):
                batches = connection.extract(unique.views, extractor, progress)
                with closing(batches):
                    for batch, extracted in batches:
                        self.n_computed += count_sequences(unique.views[i] for i in batch)
                        for i, result in zip(batch, extracted, strict=True):
                            results[i] = result
        # Rows that are equal must not share memory: who writes into one would change the other.
        given: set[int] = set()
        ordered = []
        for number in unique.source.tolist():
            ordered.append(_copy(results[number]) if number in given else results[number])
            given.add(number)
        return ordered

    def plan(self, views: Sequence[str | None], columns: Columns) -> Plan:
        """Look up which rows are missing; nothing is read, claimed, computed or written."""
        unique = unique_views(views)
        empty = np.empty((0, 0, 0), np.float32)
        session = open_session(
            self.cache, self.checkpoint, self.precision, unique.views, columns, empty
        )
        missing = [unique.views[i] for i in session.missing()]
        return Plan(unique.views, missing, self.backend.plan(missing, columns) if missing else None)

    def _connect(
        self, unique: UniqueViews, missing: Sequence[int], columns: Columns
    ) -> AbstractContextManager[Connection]:
        """Connect to the backend; without weights, the error names what they are needed for."""
        try:
            return self.backend.connect()
        except CheckpointError as error:
            if self.cache is not None:
                names = ", ".join(f"layer {at} {pooling}" for at, pooling in columns.wanted[:3])
                names += ", ..." if len(columns.wanted) > 3 else ""
                sequences = distinct_sequences([unique.views[i] for i in missing]).sequences
                error.args = (
                    f"{len(sequences)} different sequences (such as "
                    f"{shown(sequences[0])!r}) lack vectors in the "
                    f"cache {self.cache.path} ({names}, {self.precision}, kept in "
                    f"{columns.dtype}), and the weights to compute them cannot be had: {error} "
                    "Or compute them on a machine that has them, and take them in with "
                    "`esm2-features cache import`.",
                )
            raise

    def _progress(
        self, unique: UniqueViews, which: Sequence[int]
    ) -> AbstractContextManager[Callable[[int], object]]:
        """Show progress; the context is a function that takes finished residues."""
        watch = WATCH.get()
        if watch is None and not self.verbose:
            return nullcontext(int)
        views = [unique.views[i] for i in which]
        return progress_of(self.checkpoint.name, views, watch)


def _copy(result: Any) -> Any:
    if isinstance(result, dict):
        return {key: array.copy() for key, array in result.items()}
    return result.copy()
