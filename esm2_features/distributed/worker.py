"""`ShardWorker`: computes a shard and writes its file, or returns why it could not.

Each worker has an engine of its own, made in the process that computes. A shard that is finished is
left as it is, so that a task may be given twice.
"""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esm2_features._inputs.alphabet import MASK
from esm2_features._inputs.messages import in_shell
from esm2_features._inputs.policy import TruncationCounter
from esm2_features.distributed.files import ShardTable, writing
from esm2_features.distributed.manifest import Manifest, failure
from esm2_features.distributed.records import DoneShard, FailedShard, InvalidRecord
from esm2_features.exceptions import CheckpointError, InputError, NumericalError, OutOfMemoryError

if TYPE_CHECKING:
    from esm2_features._engine import Engine
    from esm2_features.distributed.sources import InputRange

_LIBRARIES = ("esm2-features", "numpy", "pyarrow", "torch")
_PORTION = 4096
_PORTION_BYTES = 1 << 27
"""Sequences that are computed and written at a time, and bytes of their vectors."""


@dataclass(frozen=True)
class WorkerOptions:
    """What a process needs to make a worker."""

    engine: dict[str, Any]  # parameters of `Engine`
    identity: str  # digest that the weights must have
    output: Path
    table: ShardTable
    set_aside: str = "record"  # or "shard": what is left out if a record is invalid


@dataclass(frozen=True)
class Task:
    """A shard to compute."""

    name: str
    source: Path
    records: InputRange


Compute = Callable[[Iterator[Task]], Iterator[DoneShard | FailedShard]]
"""Computes shards, and yields the result of each, in any order."""


class ShardWorker:
    """Computes shards with one engine."""

    def __init__(self, settings: WorkerOptions, engine: Engine | None = None) -> None:
        if engine is None:
            from esm2_features._engine import Engine

            engine = Engine(**settings.engine)
        if engine.checkpoint.identity != settings.identity:
            raise CheckpointError(
                f"{engine.checkpoint.source} holds other weights on {platform.node()} than where "
                "the job was begun. Copy the same file to all machines.",
                path=str(engine.checkpoint.source),
            )
        self._engine = engine
        self._manifest = Manifest(settings.output)
        self._table = settings.table
        self._set_aside = settings.set_aside
        self._versions = versions()

    def run(self, task: Task) -> DoneShard | FailedShard:
        records = task.records
        done = self._manifest.done(task.name, by_digest=True)
        if done is not None and done.input == records.digest():
            return done
        try:
            if records.error is not None:
                raise records.error
            try:
                return self._computed(task)
            except FileNotFoundError:
                # Where locks do not reach other machines, their jobs may remove what is written.
                return self._computed(task)
        except (InputError, NumericalError, OutOfMemoryError) as error:
            if isinstance(error, OutOfMemoryError) and not error.length:
                raise  # the weights do not fit: no shard can be computed
            ids, first = records.ids, records.first
            failed = failure(task.name, task.source, error, ids=ids, first=first)
        self._manifest.set_aside(failed)
        return failed

    def _computed(self, task: Task) -> DoneShard:
        start = time.perf_counter()
        records, truncations = task.records, TruncationCounter()
        errors = dict(records.errors)
        # All sequences are checked before the first is computed.
        checked = self.checked(records, errors, truncations)
        if errors and (self._set_aside == "shard" or not checked):
            raise errors[min(errors)]
        rows, kept_rows = list(checked), list[int]()
        width = len(self._table.vectors) * self._table.dim
        portion = max(1, min(_PORTION, _PORTION_BYTES // (4 * width)))
        with writing(self._manifest.path_of(task.name), self._table) as writer:
            for at in range(0, len(rows), portion):
                for some, values in self._embedded(rows[at : at + portion], checked, errors):
                    ids = [records.ids[row - records.first] for row in some]
                    texts = [checked[row][0].replace(MASK, "<mask>") for row in some]
                    lengths = [len(checked[row][0]) for row in some]
                    writer.add(ids, texts, lengths, values, first=some[0])
                    kept_rows += some
            if not kept_rows and errors:
                raise errors[min(errors)]
        seconds, cut = round(time.perf_counter() - start, 3), truncations.truncated
        residues, digest = sum(len(checked[row][0]) for row in kept_rows), records.digest()
        kept = records.digest(without=errors) if errors else ""
        invalid = tuple(invalid_record(task, row, errors[row]) for row in sorted(errors))
        about = (self._versions, kept, invalid, self._table.about["digest"])
        shard = DoneShard(task.name, len(kept_rows), residues, digest, 0, "", seconds, cut, *about)
        return self._manifest.add(shard)

    def _embedded(
        self, rows: list[int], checked: dict[int, tuple[str, str]], errors: dict[int, InputError]
    ) -> Iterator[tuple[list[int], Any]]:
        """Yield rows and their vectors; add the errors of rows that a server refuses."""
        views = [checked[row][1] for row in rows]
        try:
            values = self._engine.runner.embed(views, self._engine.columns, row_numbers=rows)
        except InputError as error:
            row = getattr(error, "index", None)
            if self._set_aside == "shard" or row not in rows:
                raise
            errors[row] = error
        else:
            yield rows, values
            return
        # In halves, so that several refusals do not repeat all of the work.
        others = [other for other in rows if other != row]
        middle = (len(others) + 1) // 2
        for some in filter(None, (others[:middle], others[middle:])):
            yield from self._embedded(some, checked, errors)

    def checked(
        self, records: InputRange, errors: dict[int, InputError], truncations: TruncationCounter
    ) -> dict[int, tuple[str, str]]:
        """Normalise sequences and write views, by row; add errors, after which no others follow."""
        policy = self._engine.policy
        cells = dict(enumerate(records.sequences, records.first))
        rows = [row for row in cells if row not in errors]

        def check(some: list[int]) -> dict[int, tuple[str, str]]:
            counter = TruncationCounter()
            texts = [cells[row] for row in some]
            sequences = policy.normalise(texts, rows=some, truncations=counter)
            views = map(str, policy.views(sequences, rows=some))
            truncations.truncated += counter.truncated
            return dict(zip(some, zip(sequences, views, strict=True), strict=True))

        try:
            return check(rows)
        except InputError:
            pass  # some row is wrong: which ones are, each says by itself
        found: dict[int, tuple[str, str]] = {}
        for row in rows:
            try:
                with warnings.catch_warnings(action="ignore"):
                    found |= check([row])
            except InputError as error:
                errors[row] = error
        return found


def invalid_record(task: Task, row: int, error: InputError) -> InvalidRecord:
    """Describe a record that is set aside."""
    identifier = task.records.ids[row - task.records.first]
    position, name = getattr(error, "position", None), type(error).__name__
    return InvalidRecord(str(task.source), row, identifier, position, name, in_shell(error))


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that compute the numbers."""
    numbers = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:  # such as in a folder of sources that is not installed
            numbers[name] = "unknown"
    return numbers
