"""One shard: from a piece of an input to a file, or to the reason why there is none.

A worker has an engine of its own. It is made in the process that computes, from settings that
travel. A shard that is there already is left as it is, so a task may be given twice.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esm2_features._inputs.alphabet import MASK
from esm2_features._inputs.policy import TruncationCounter
from esm2_features.distributed.files import ShardTable, writing
from esm2_features.distributed.manifest import DoneShard, FailedShard, Manifest, failure
from esm2_features.exceptions import (
    CheckpointError,
    InputError,
    NumericalError,
    OutOfMemoryError,
)

if TYPE_CHECKING:
    from esm2_features._engine import Engine
    from esm2_features.distributed.sources import InputRange

_LIBRARIES = ("esm2-features", "numpy", "pyarrow", "torch")
_PORTION = 4096
_PORTION_BYTES = 1 << 27
"""Sequences that are computed and written at a time, and bytes of their vectors."""


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker has to know."""

    engine: dict[str, Any]  # parameters of `Engine`
    identity: str  # of the weights that they should lead to
    output: Path
    table: ShardTable


@dataclass(frozen=True)
class Task:
    """A piece of an input that is to become a shard."""

    name: str
    source: Path
    piece: InputRange


Compute = Callable[[Iterator[Task]], Iterator[DoneShard | FailedShard]]
"""Makes shards, and gives what became of each, in any order."""


class ShardWorker:
    """Make shards."""

    def __init__(self, settings: WorkerOptions, engine: Engine | None = None) -> None:
        if engine is None:
            from esm2_features._engine import Engine

            engine = Engine(**settings.engine)
        if engine.checkpoint.identity != settings.identity:
            raise CheckpointError(
                f"{engine.checkpoint.source} holds other weights on {platform.node()} than where "
                "the job was begun. Give all machines the same file.",
                path=str(engine.checkpoint.source),
            )
        self._engine = engine
        self._manifest = Manifest(settings.output)
        self._table = settings.table
        self._versions = versions()

    def run(self, task: Task) -> DoneShard | FailedShard:
        """Make one shard."""
        piece = task.piece
        there = self._manifest.done(task.name)
        if there is not None and there.input == piece.digest():
            return there
        try:
            if piece.error is not None:
                raise piece.error
            return self._made(task)
        except (InputError, NumericalError) as error:
            failed = self._failed(task, error)
        except OutOfMemoryError as error:
            if not error.length:  # the weights do not fit
                raise
            failed = self._failed(task, error)
        self._manifest.set_aside(failed)
        return failed

    def _failed(self, task: Task, error: Exception) -> FailedShard:
        piece = task.piece
        return failure(task.name, task.source, error, ids=piece.ids, first=piece.first)

    def _made(self, task: Task) -> DoneShard:
        start = time.perf_counter()
        engine, piece, cuts, residues = self._engine, task.piece, TruncationCounter(), 0
        n = len(piece.ids)
        path = self._manifest.path_of(task.name)
        rows = range(piece.first, piece.first + n)
        # All of them first: what is wrong with the last is known before the first is computed.
        sequences = engine.policy.normalise(piece.sequences, rows=rows, truncations=cuts)
        views = engine.policy.views(sequences, rows=rows)
        width = len(self._table.vectors) * self._table.dim
        portion = max(1, min(_PORTION, _PORTION_BYTES // (4 * width)))
        with writing(path, self._table) as writer:
            for at in range(0, n, portion):
                some = slice(at, at + portion)
                texts = [sequence.replace(MASK, "<mask>") for sequence in sequences[some]]
                lengths = [len(sequence) for sequence in sequences[some]]
                values = engine.runner.embed(views[some], engine.columns)
                writer.add(piece.ids[some], texts, lengths, values, first=rows.start + at)
                residues += sum(lengths)
        seconds = round(time.perf_counter() - start, 3)
        shard = DoneShard(
            task.name, n, residues, piece.digest(), 0, "", seconds, cuts.truncated, self._versions
        )
        return self._manifest.add(shard)


def versions() -> dict[str, str]:
    """Versions of what the numbers come from."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a folder of sources, say
            found[name] = "unknown"
    return found
