"""The job: which shards are missing, and what becomes of each.

Shard k of input s belongs to task (s + k) % n, whatever else there is, so n processes share the
work without a word between them. An input that is, by size and time, what it was is read from where
something is missing; if it is not, finished shards are compared with it first.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from esm2_features.distributed.manifest import (
    DoneShard,
    FailedShard,
    Manifest,
    ReadSource,
    failure,
    shard_name,
)
from esm2_features.distributed.sources import InputFile, InputRange, Reading
from esm2_features.distributed.worker import Compute, Task
from esm2_features.exceptions import InputError, TruncationWarning


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What became of a job, or of one task's share of it.

    Attributes
    ----------
    computed : int
        Number of shards that were made.
    present : int
        Number of shards of this share that were there before.
    failed : tuple of FailedShard
        What was set aside.
    sequences : int
        Number of sequences in the shards that were made.
    residues : int
        Number of their residues.
    seconds : float
        Time it took.
    complete : bool
        Whether all shards of the job are there, those of other tasks included.
    """

    computed: int
    present: int
    failed: tuple[FailedShard, ...]
    sequences: int
    residues: int
    seconds: float
    complete: bool


class ShardJob:
    """The shards of some inputs in one folder."""

    def __init__(
        self, manifest: Manifest, sources: Sequence[InputFile], *, size: int, share: tuple[int, int]
    ) -> None:
        self._manifest = manifest
        self._sources = sources
        self._size = size
        self._share = share
        self._present = 0
        self._unread: list[FailedShard] = []

    def run(
        self, compute: Compute, *, progress: Callable[[str], None] | None = None
    ) -> ShardReport:
        """Make what is missing."""
        start = time.perf_counter()
        say = progress or _silent
        done: list[DoneShard] = []
        failed: list[FailedShard] = []
        for result in compute(self._tasks(say)):
            if isinstance(result, FailedShard):
                failed.append(result)
                say(set_aside(result))
            else:
                done.append(result)
                rate = result.rows / max(result.seconds, 1e-3)
                say(f"{result.name}: {result.rows} sequences ({rate:.0f}/s)")
        cut = sum(shard.truncated for shard in done)
        if cut:
            warnings.warn(
                f"{cut} of {sum(shard.rows for shard in done)} sequences were cut to their first "
                "residues, as too_long='truncate' asks; the column 'length' tells of what.",
                TruncationWarning,
                stacklevel=3,
            )
        _, missing = self._manifest.shards()
        return ShardReport(
            computed=len(done),
            present=self._present,
            failed=(*self._unread, *failed),
            sequences=sum(shard.rows for shard in done),
            residues=sum(shard.residues for shard in done),
            seconds=time.perf_counter() - start,
            complete=not missing,
        )

    def _tasks(self, say: Callable[[str], None]) -> Iterator[Task]:
        """Give what is to be computed, reading as it is needed."""
        for index, source in enumerate(self._sources):
            try:
                yield from self._of_source(index, source)
            except _Unreadable as caught:
                path, number = source.path, caught.number
                cause = caught.error
                unread = InputError(f"{cause} Nothing was read from shard {number} on.")
                failed = failure(source.stem, path, unread)
                self._manifest.set_aside(failed)
                self._unread.append(failed)
                say(set_aside(failed))

    def _of_source(self, index: int, source: InputFile) -> Iterator[Task]:
        manifest = self._manifest
        try:
            is_same, seen = manifest.is_as_it_was(source), source.seen()
        except InputError as error:
            raise _Unreadable(error, 0) from error
        known = manifest.source(source.stem)
        share = _Share(manifest, source, index, self._share, is_same=is_same)
        total = known.shards if known is not None and is_same else None
        reading = Reading(source, self._size, share.wants, total)
        try:
            for piece in _readable(reading):
                shard = share.there[piece.number]
                if shard is None:
                    yield Task(shard_name(source.stem, piece.number), source.path, piece)
                elif piece.error is not None or shard.input != piece.digest():
                    raise self._changed(source, shard.name)
        finally:
            self._present += share.present
        if reading.records is None or reading.pieces is None:
            return  # nothing was missing behind some shard, so the end was not looked for
        if known is not None and reading.pieces < known.shards:
            raise self._changed(source, shard_name(source.stem, reading.pieces))
        if reading.records == 0:
            warnings.warn(f"{source.path} holds no sequences.", stacklevel=2)
        manifest.add_source(ReadSource(source.stem, reading.records, reading.pieces, *seen))

    def _changed(self, source: InputFile, name: str) -> InputError:
        return InputError(
            f"{source.path} has changed: the shard {name} in {self._manifest.output} was made of "
            "other sequences. Bring the file back as it was (records may be mended in place, where "
            "no shard is done), or give another folder."
        )


class _Share:
    """Which shards of a source a task has to look at, and which of them are there."""

    def __init__(
        self,
        manifest: Manifest,
        source: InputFile,
        index: int,
        share: tuple[int, int],
        *,
        is_same: bool,
    ) -> None:
        self.there: dict[int, DoneShard | None] = {}
        self.present = 0
        self._manifest, self._stem, self._is_same = manifest, source.stem, is_same
        self._index, (self._part, self._parts) = index, share

    def wants(self, number: int) -> bool:
        """Whether a piece is to be read: to be computed, or to be compared with what is there."""
        is_mine = (self._index + number) % self._parts == self._part
        if not is_mine and self._is_same:
            return False
        if number not in self.there:
            self.there[number] = self._manifest.done(shard_name(self._stem, number))
            self.present += is_mine and self.there[number] is not None
        is_missing = self.there[number] is None
        return is_missing if self._is_same else is_mine or not is_missing


class _Unreadable(Exception):  # noqa: N818 - it carries one
    """A source cannot be read from one of its pieces on."""

    def __init__(self, error: InputError, number: int) -> None:
        super().__init__(str(error))
        self.error, self.number = error, number


def _readable(reading: Reading) -> Iterator[InputRange]:
    """Read, and tell what goes wrong in reading from what goes wrong elsewhere."""
    try:
        yield from reading
    except InputError as error:
        raise _Unreadable(error, reading.reached) from error


def _silent(_: str) -> None:
    pass


def set_aside(failed: FailedShard) -> str:
    """Say that a shard was set aside, and why."""
    named = f" (id {failed.id})" if failed.id is not None else ""
    place = "" if failed.path in failed.message else f"{Path(failed.path).name}{named}: "
    return f"Set aside: {failed.name}: {place}{failed.message}"
