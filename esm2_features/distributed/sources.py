"""Where the sequences of shards come from: files of FASTA or Parquet, cut into pieces.

A FASTA file is cut every so many records, a Parquet file at its row groups, and these again if
they have more rows than that. The pieces of a file have numbers from 0. A piece is read when it is
wanted; what is not wanted costs the reading of a FASTA file, and nothing of a Parquet file. A file
is never held in memory, nor are its ids.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esm2_features._inputs.fasta import checked_record, iter_pairs
from esm2_features._io.paths import file_names
from esm2_features.distributed.files import parquet
from esm2_features.exceptions import InputError

_COMPRESSED = r"(\.(gz|bz2|xz|zst))?"
_FASTA = re.compile(rf"\.(fasta|fas|faa|fa|fsa){_COMPRESSED}$", re.IGNORECASE)
_PARQUET = re.compile(r"\.(parquet|pq)$", re.IGNORECASE)
_ENDINGS = ".fasta, .fas, .faa, .fa, .fsa (or these with .gz, .bz2, .xz, .zst), .parquet and .pq"
_PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of sequences."""

    path: Path
    stem: str  # what its shards are called after: different for each source of a job
    sequence_column: str = "sequence"  # of a Parquet file
    id_column: str = "id"  # of a Parquet file

    @property
    def is_parquet(self) -> bool:
        """Whether it is Parquet, and not FASTA."""
        return _PARQUET.search(self.path.name) is not None

    def seen(self) -> tuple[int, int]:
        """Size in bytes and time of the last change in nanoseconds: what shows a change."""
        try:
            found = self.path.stat()
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class InputRange:
    """Sequences that make a shard, or why they do not."""

    number: int  # of the piece in its source, from 0
    first: int  # row of its first sequence in the source, from 0
    ids: list[str] = field(repr=False)
    sequences: list[Any] = field(repr=False)  # as they stand in the file
    error: InputError | None = None  # what is wrong with the piece as it stands in the file

    def digest(self) -> str:
        """Digest of ids and sequences, in hexadecimal."""
        found = hashlib.blake2b(digest_size=16)
        for column in (self.ids, self.sequences):
            text = "\n".join(map(str, column))
            found.update(text.encode("utf-8", "surrogatepass") + b"\0")
        return found.hexdigest()


class Reading:
    """The wanted pieces of a source, one after the other."""

    def __init__(
        self, source: InputFile, size: int, wanted: Callable[[int], bool], known: int | None = None
    ) -> None:
        self.source = source
        self.reached = 0
        self.records: int | None = None
        self.pieces: int | None = None
        self._size, self._wanted, self._known = size, wanted, known

    def __iter__(self) -> Iterator[InputRange]:
        """Read."""
        return self._parquet() if self.source.is_parquet else self._fasta()

    def _fasta(self) -> Iterator[InputRange]:
        last = None
        if self._known is not None:  # nothing behind the last wanted piece is read
            last = max(filter(self._wanted, range(self._known)), default=-1)
        pairs = iter_pairs(str(self.source.path))
        records = 0
        for number in itertools.count():
            if last is not None and number > last:
                return
            self.reached = number
            if self._wanted(number):
                some = list(itertools.islice(pairs, self._size))
                if some:
                    yield self._checked(number, records, some)
                found = len(some)
            else:
                found = sum(1 for _ in itertools.islice(pairs, self._size))
            records += found
            if found < self._size:
                self.records, self.pieces = records, -(-records // self._size)
                return

    def _checked(self, number: int, first: int, pairs: list[tuple[str, str]]) -> InputRange:
        ids: list[str] = []
        sequences: list[str] = []
        for record, (header, residues) in enumerate(pairs, start=first + 1):
            try:
                ids.append(checked_record(header, residues, record, str(self.source.path)).id)
            except InputError as error:
                return InputRange(number, first, [], [], error)
            sequences.append(residues)
        return InputRange(number, first, ids, sequences)

    def _parquet(self) -> Iterator[InputRange]:
        path = self.source.path
        try:
            file = parquet("Reading Parquet").ParquetFile(path)
        except Exception as error:  # Arrow's errors, and the system's
            if isinstance(error, ImportError):
                raise
            raise _unreadable(path, error) from error
        with file:
            self._check_columns(file.schema_arrow)
            rows = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
            self.records, number, first = sum(rows), 0, 0
            self.pieces = sum(-(-n // self._size) for n in rows)
            for group, n in enumerate(rows):
                numbers = range(number, number + -(-n // self._size))
                if any(map(self._wanted, numbers)):
                    yield from self._of_group(file, group, numbers, first)
                number, first = numbers.stop, first + n

    def _of_group(self, file: Any, group: int, numbers: range, first: int) -> Iterator[InputRange]:
        """Give the wanted pieces of one row group; if it cannot be read, each with the error."""
        source, size = self.source, self._size
        columns = [source.id_column, source.sequence_column]
        batches = file.iter_batches(batch_size=size, row_groups=[group], columns=columns)
        cells = _cells(batches, columns)
        error: InputError | None = None
        for number in numbers:
            self.reached = number
            start = first + (number - numbers.start) * size
            some: list[tuple[Any, Any]] = []
            if error is None:
                try:
                    some = list(itertools.islice(cells, size))
                except Exception as caught:  # of Arrow, of a codec, or of the system
                    error = InputError(
                        f"{source.path}, row group {group}: cannot be read ({caught}). It is "
                        "damaged: copy the file again."
                    )
            if not self._wanted(number):
                continue
            if error is not None:
                yield InputRange(number, start, [], [], error)
                continue
            missing = next(
                (i for i, (identifier, _) in enumerate(some) if identifier is None), None
            )
            if missing is not None:
                without = InputError(
                    f"{source.path}: row {start + missing} has no value in the column "
                    f"{source.id_column!r}. Give it an id."
                )
                yield InputRange(number, start, [], [], without)
                continue
            ids = [str(identifier) for identifier, _ in some]
            yield InputRange(number, start, ids, [sequence for _, sequence in some])

    def _check_columns(self, schema: Any) -> None:
        for name, option in (
            (self.source.sequence_column, "--sequence-column"),
            (self.source.id_column, "--id-column"),
        ):
            if schema.names.count(name) != 1:
                raise InputError(
                    f"{self.source.path} has no column {name!r}, or several; its columns are "
                    f"{', '.join(schema.names)}. Say which one it is: {option}."
                )


def check_columns(source: InputFile) -> None:
    """Refuse a Parquet file without the columns that are asked for; a damaged one is no matter."""
    module = parquet("Reading Parquet")
    try:
        schema = module.read_schema(source.path)
    except Exception:  # told when its turn comes, as that of any other file
        return
    Reading(source, 1, bool)._check_columns(schema)


def find_sources(
    inputs: Iterable[str | os.PathLike[str]],
    *,
    sequence_column: str = "sequence",
    id_column: str = "id",
) -> list[InputFile]:
    """Find the files that inputs stand for."""
    paths: dict[Path, None] = {}
    for given in inputs:
        for path in _files_of(os.fspath(given)):
            paths.setdefault(path)
    stems = [_FASTA.sub("", _PARQUET.sub("", path.name)) for path in paths]
    # Names that begin with these are passed over by readers of folders.
    stems = [stem.lstrip("._") or "input" for stem in stems]
    return [
        InputFile(path, stem, sequence_column, id_column)
        for path, stem in zip(paths, file_names(stems), strict=True)
    ]


def _files_of(given: str) -> Sequence[Path]:
    if given == "-":
        raise InputError(
            "Standard input cannot be cut into shards, because it cannot be read again when a "
            "part of it is missing. Save it in a file first, or write one file: -o OUT.parquet."
        )
    path = Path(given)
    if path.is_dir():
        found = sorted(item for item in path.iterdir() if _is_source(item))
        if not found:
            raise InputError(f"The folder {given} holds no file that ends in {_ENDINGS}.")
        return found
    if path.exists():
        return [path]
    if _PATTERN.search(given):
        found = sorted(Path(name) for name in glob.glob(given, recursive=True))  # noqa: PTH207 - also absolute ones
        found = [item for item in found if item.is_file()]
        if not found:
            raise InputError(
                f"No file is called like {given} (relative names start at {Path.cwd()})."
            )
        return found
    raise InputError(f"{given}: there is no such file (relative names start at {Path.cwd()}).")


def _is_source(path: Path) -> bool:
    is_named = _FASTA.search(path.name) or _PARQUET.search(path.name)
    return bool(is_named) and not path.name.startswith(".") and path.is_file()


def _cells(batches: Iterator[Any], columns: list[str]) -> Iterator[tuple[Any, Any]]:
    """Give id and sequence of each row, a batch at a time."""
    for batch in batches:
        yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: cannot be read ({error}). Copy it again, or take it away.")
