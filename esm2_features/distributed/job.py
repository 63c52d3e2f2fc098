"""`ShardJob`: which shards are missing, who makes them, and what became of each.

Shard k of input s belongs to task (s + k) % n, so that n processes share the work without talking
to each other. When a job is resumed, an unchanged input (by size and time) is read from its first
missing shard on; a changed one is read again, and its finished shards are compared with it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from esm2_features.distributed.left_over import move_left_over
from esm2_features.distributed.manifest import FOLDER, Manifest, failure, shard_name
from esm2_features.distributed.records import (
    DoneShard,
    FailedShard,
    FolderError,
    InvalidRecord,
    ReadSource,
)
from esm2_features.distributed.sources import InputFile, InputRange, Reading
from esm2_features.distributed.worker import Compute, Task
from esm2_features.exceptions import InputError, TruncationWarning


@dataclass(frozen=True, slots=True)
class ShardReport:
    """The result of a job, or of one task's share of it.

    Attributes
    ----------
    computed, present : int
        Number of shards that were computed, and of those that were finished before.
    failed : tuple of FailedShard
        Shards that could not be computed.
    sequences, residues : int
        Number of sequences in the computed shards, and of their residues.
    seconds : float
        Duration of the job.
    complete : bool
        Whether all shards of the job are finished, those of other tasks included.
    invalid : tuple of InvalidRecord
        Records of the computed and present shards that were set aside.
    left_over : tuple of str
        Names of shards that belong to no part of the inputs, and were moved to
        ``_manifest/left_over``: an input has become shorter since they were made.
    """

    computed: int
    present: int
    failed: tuple[FailedShard, ...]
    sequences: int
    residues: int
    seconds: float
    complete: bool
    invalid: tuple[InvalidRecord, ...] = ()
    left_over: tuple[str, ...] = ()


@dataclass
class ShardJob:
    """The shards of some inputs in one folder."""

    manifest: Manifest
    sources: Sequence[InputFile]
    size: int  # sequences of a shard
    share: tuple[int, int]  # number of this task, and number of tasks
    by_digest: bool = False  # whether finished shards are compared with their SHA-256
    n_present: int = 0  # shards that were finished before
    unread: list[FailedShard] = field(default_factory=list)
    invalid: list[InvalidRecord] = field(default_factory=list)  # of the shards that are finished

    def run(
        self, compute: Compute, *, progress: Callable[[str], None] | None = None
    ) -> ShardReport:
        start = time.perf_counter()
        print_line = progress or (lambda _: None)
        done: list[DoneShard] = []
        failed: list[FailedShard] = []
        self.manifest.remove_parts()  # before the disk is full of them, and again at the end
        for result in compute(self.tasks(print_line)):
            if isinstance(result, FailedShard):
                failed.append(result)
                print_line(describe_failure(result))
            else:
                done.append(result)
                rate = result.rows / max(result.seconds, 1e-3)
                aside = f", {len(result.invalid)} set aside" if result.invalid else ""
                print_line(f"{result.name}: {result.rows} sequences ({rate:.0f}/s){aside}")
                self.invalid += result.invalid
        n_rows, cut = sum(shard.rows for shard in done), sum(shard.truncated for shard in done)
        if cut:
            warnings.warn(
                f"{cut} of {n_rows} sequences were cut to their first residues "
                "(too_long='truncate'); the column 'length' has the residues that are left.",
                TruncationWarning,
                stacklevel=3,
            )
        self.manifest.remove_parts()
        _, missing = self.manifest.shards()
        left_over, foreign = move_left_over(self.manifest)
        if left_over:
            some = ", ".join(left_over[:3]) + (", ..." if len(left_over) > 3 else "")
            print_line(
                f"{len(left_over)} shards belong to no part of the inputs ({some}): moved to "
                f"{self.manifest.output / FOLDER / 'left_over'}."
            )
        for name in foreign[:3]:
            print_line(
                f"{self.manifest.output / name} is no shard of this job. Programs that read the "
                "folder as Parquet read it, too: move it to another place."
            )
        return ShardReport(
            computed=len(done),
            present=self.n_present,
            failed=(*self.unread, *failed),
            sequences=n_rows,
            residues=sum(shard.residues for shard in done),
            seconds=time.perf_counter() - start,
            complete=not missing,
            invalid=tuple(self.invalid),
            left_over=tuple(left_over),
        )

    def tasks(self, print_line: Callable[[str], None]) -> Iterator[Task]:
        """Yield what has to be computed; inputs are read as it is consumed."""
        for index, source in enumerate(self.sources):
            try:
                yield from self._of_source(index, source, print_line)
            except _Unreadable as error:
                cause = InputError(f"{error} Nothing was read from shard {error.number} on.")
                failed = failure(source.stem, source.path, cause)
                self.manifest.set_aside(failed)
                self.unread.append(failed)
                print_line(describe_failure(failed))

    def _of_source(
        self, index: int, source: InputFile, print_line: Callable[[str], None]
    ) -> Iterator[Task]:
        manifest = self.manifest
        try:
            is_same, stamp = manifest.is_unchanged(source), source.stamp()
        except InputError as error:
            raise _Unreadable(error, 0) from error
        known = manifest.source(source.stem)
        share = _Share(manifest, source.stem, index, self.share, is_same, self.by_digest)
        total = known.shards if known is not None and is_same else None
        reading = Reading(source, self.size, share.wants, total)
        try:
            for records in _readable(reading):
                shard = share.done[records.number]
                if shard is not None and (records.error is not None or not shard.is_of(records)):
                    raise self._changed(source, shard.name)
                if shard is None or shard.input != records.digest():
                    name = shard_name(source.stem, records.number)
                    if name in manifest.reasons:
                        print_line(f"{manifest.reasons.pop(name)} It is computed again.")
                    yield Task(name, source.path, records)
        finally:
            self.n_present += share.n_present
            self.invalid += share.invalid
        if reading.n_records is None or reading.n_ranges is None:
            return  # no shard was missing behind some point, so the end was not reached
        if known is not None and reading.n_ranges < known.shards:
            raise self._changed(source, shard_name(source.stem, reading.n_ranges))
        if reading.n_records == 0:
            warnings.warn(f"{source.path} holds no sequences.", stacklevel=2)
        manifest.add_source(ReadSource(source.stem, reading.n_records, reading.n_ranges, *stamp))

    def _changed(self, source: InputFile, name: str) -> InputError:
        return InputError(
            f"{source.path} has changed: the shard {name} in {self.manifest.output} was made of "
            "other sequences. Restore the file (only records that were set aside, or of shards "
            "that are not finished, may be corrected, in their places), or choose another folder."
        )


@dataclass
class _Share:
    """The shards of an input that a task has to read, and which of them are finished."""

    manifest: Manifest
    stem: str  # of the input
    index: int  # of the input
    share: tuple[int, int]  # number of this task, and number of tasks
    is_same: bool  # whether the input is unchanged
    by_digest: bool  # whether finished shards are compared with their SHA-256
    done: dict[int, DoneShard | None] = field(default_factory=dict)
    n_present: int = 0
    invalid: list[InvalidRecord] = field(default_factory=list)  # of shards that stay as they are

    def wants(self, number: int) -> bool:
        """Whether to read a range: to compute its shard, or to compare a finished shard with it."""
        task, n_tasks = self.share
        is_mine = (self.index + number) % n_tasks == task
        if not is_mine and self.is_same:
            return False
        if number not in self.done:
            name, by_digest = shard_name(self.stem, number), self.by_digest and is_mine
            done = self.done[number] = self.manifest.done(name, by_digest=by_digest)
            self.n_present += is_mine and done is not None
            if is_mine and done is not None and self.is_same:
                self.invalid += done.invalid
        is_missing = self.done[number] is None
        # Of a changed input, mine is computed, and a finished one compared.
        return is_missing if self.is_same else is_mine or not is_missing


class _Unreadable(Exception):  # noqa: N818 - wraps one
    """An input cannot be read from one of its ranges on."""

    def __init__(self, error: InputError, number: int) -> None:
        super().__init__(str(error))
        self.number = number


def _readable(reading: Reading) -> Iterator[InputRange]:
    """Wrap the errors of reading, to distinguish them from those of computing."""
    try:
        yield from reading
    except FolderError:
        raise
    except InputError as error:
        raise _Unreadable(error, reading.reached) from error


def describe_failure(failed: FailedShard) -> str:
    """Return a line about a shard that could not be computed."""
    record = f" (id {failed.id})" if failed.id is not None else ""
    place = "" if failed.path in failed.message else f"{Path(failed.path).name}{record}: "
    return f"Set aside: {failed.name}: {place}{failed.message}"


def describe_record(record: InvalidRecord) -> str:
    """Return a line about a record that was set aside."""
    place = "" if record.path in record.message else f"{record.path}, row {record.row}"
    named = f"{place} (id {record.id}): " if place and record.id else f"{place}: " if place else ""
    return f"Set aside: {named}{record.message}"
