"""Inputs of shards: files of sequences, and their ranges of records.

A file is cut every so many records, but a Parquet file at its row groups, and these again if they
have more rows than that. The ranges of a file are numbered from 0, and read when they are wanted:
of a Parquet file, the others are not read at all. No file is held in memory as a whole.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esm2_features._arrow import batches_of, cells_of, import_parquet, open_parquet
from esm2_features._inputs.cells import as_text
from esm2_features._inputs.fasta import FastaRecord
from esm2_features._inputs.records import TABLES, Entry, columns_of, iter_entries, kind_of_name
from esm2_features._inputs.streams import check_size
from esm2_features._inputs.tables import Table, open_table, types_of
from esm2_features._io.paths import file_names
from esm2_features.exceptions import InputError, MissingDependencyError

_SOURCES = re.compile(
    r"\.(fasta|fas|faa|fa|fsa|parquet|pq)(\.(gz|bz2|xz|zst|zip))*$", re.IGNORECASE
)
"""Names of the files that a folder stands for; other kinds of files have to be named."""
_PARQUET = re.compile(r"\.(parquet|pq)$", re.IGNORECASE)
_ENDINGS = ".fasta, .fas, .faa, .fa, .fsa (or these with .gz, .bz2, .xz, .zst), .parquet and .pq"
_PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of sequences."""

    path: Path
    stem: str  # its shards are named after it; unique within a job
    sequence_column: str | None = None  # of a table; None for one with a usual name
    id_column: str | None = None  # of a table

    @property
    def is_parquet(self) -> bool:
        """Whether it is Parquet, which is cut at its row groups."""
        return _PARQUET.search(self.path.name) is not None

    def stamp(self) -> tuple[int, int]:
        """Return size in bytes and time of the last change in nanoseconds."""
        try:
            status = self.path.stat()
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return status.st_size, max(0, status.st_mtime_ns)


@dataclass(frozen=True)
class InputRange:
    """The records of a shard, or the error that all of them have."""

    number: int  # of the range in its file, from 0
    first: int  # row of its first record in the file, from 0
    ids: list[str] = field(repr=False)
    sequences: list[Any] = field(repr=False)  # as they are in the file
    error: InputError | None = None
    # row in the file -> what is wrong with the record, whose id and sequence may be empty
    errors: dict[int, InputError] = field(default_factory=dict, repr=False)

    def digest(self, without: Collection[int] = ()) -> str:
        """Return the digest of ids and sequences, in hexadecimal, without those of some rows."""
        digest = hashlib.blake2b(digest_size=16)
        for column in (self.ids, self.sequences):
            cells = (cell for row, cell in enumerate(column, self.first) if row not in without)
            text = "\n".join(map(str, cells))
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()


class Reading:
    """Iterates over the wanted ranges of a file, and counts all of them."""

    def __init__(
        self, source: InputFile, size: int, wanted: Callable[[int], bool], total: int | None = None
    ) -> None:
        self.source = source
        self.reached = 0  # number of the range that is read
        self.n_records: int | None = None  # both are known when the end has been reached
        self.n_ranges: int | None = None
        self._size, self._wanted, self._total = size, wanted, total

    def __iter__(self) -> Iterator[InputRange]:
        return self._parquet() if self.source.is_parquet else self._entries()

    def _entries(self) -> Iterator[InputRange]:
        numbers: Iterable[int] = itertools.count()
        if self._total is not None:  # nothing behind the last wanted range has to be read
            numbers = range(1 + max(filter(self._wanted, range(self._total)), default=-1))
        source = self.source
        columns = {"column": source.sequence_column, "id_column": source.id_column}
        if kind_of_name(source.path.name) not in TABLES:
            columns = {}  # they are of the tables among several inputs
        entries = iter_entries(str(source.path), **columns)
        n_records = 0
        for number in numbers:
            self.reached = number
            some = itertools.islice(entries, self._size)
            if self._wanted(number):
                found = list(some)
                n = len(found)
                if found:
                    yield _range_of(number, n_records, found)
            else:
                n = sum(1 for _ in some)
            n_records += n
            if n < self._size:
                self.n_records, self.n_ranges = n_records, -(-n_records // self._size)
                return

    def _parquet(self) -> Iterator[InputRange]:
        check_size(self.source.stamp()[0], str(self.source.path))
        try:
            file = open_parquet(self.source.path, "Reading Parquet")
        except MissingDependencyError:
            raise
        except Exception as error:  # Arrow's errors, and the system's
            raise _unreadable(self.source.path, error) from error
        with file:
            columns = _parquet_columns(self.source, file.schema_arrow)
            rows = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
            self.n_records, number, first = sum(rows), 0, 0
            self.n_ranges = sum(-(-n // self._size) for n in rows)
            for group, n in enumerate(rows):
                numbers = range(number, number + -(-n // self._size))
                if any(map(self._wanted, numbers)):
                    yield from self._of_group(file, columns, group, numbers, first)
                number, first = numbers.stop, first + n

    def _of_group(
        self, file: Any, columns: tuple[str, str | None], group: int, numbers: range, first: int
    ) -> Iterator[InputRange]:
        """Read the wanted ranges of one row group; if it is damaged, each has the error."""
        source, size = self.source, self._size
        needed = [name for name in columns if name is not None]
        batches = batches_of(file, needed, groups=[group], most=size)
        cells = _cells(batches, columns, first)
        damage: InputError | None = None
        for number in numbers:
            self.reached = number
            start = first + (number - numbers.start) * size
            records: list[tuple[Any, Any]] = []
            if damage is None:
                try:
                    records = list(itertools.islice(cells, size))
                except Exception as caught:  # of Arrow, of a codec, or of the system
                    damage = InputError(
                        f"{source.path}, row group {group}: cannot be read ({caught}). It is "
                        "damaged: copy the file again."
                    )
            if not self._wanted(number):
                continue
            errors = {
                row: InputError(
                    f"{source.path}: row {row} has no value in the column {columns[1]!r}. Give it "
                    "an id."
                )
                for row, (_, identifier) in enumerate(records, start)
                if identifier is None
            }
            ids = ["" if identifier is None else as_text(identifier) for _, identifier in records]
            for row, identifier in enumerate(ids, start):
                if not _is_utf8(identifier):
                    errors[row] = InputError(
                        f"{source.path}: the id of row {row}, {identifier!a}, is not UTF-8. Write "
                        "the column as text."
                    )
                    ids[row - start] = ""
            sequences = [sequence for sequence, _ in records]
            yield InputRange(number, start, ids, sequences, damage, errors)


def _range_of(number: int, first: int, entries: Sequence[Entry]) -> InputRange:
    errors = {
        row: entry.error for row, entry in enumerate(entries, first) if entry.error is not None
    }
    records = [entry.record or FastaRecord("", "", "") for entry in entries]
    ids, sequences = [record.id for record in records], [record.seq for record in records]
    return InputRange(number, first, ids, sequences, None, errors)


def check_columns(source: InputFile) -> None:
    """Check that a table has its columns; a damaged file is reported when it is read."""
    if source.is_parquet:
        module = import_parquet("Reading Parquet")
        try:
            schema = module.read_schema(source.path)
        except Exception:
            return
        _parquet_columns(source, schema)
    elif (kind := kind_of_name(source.path.name)) in TABLES:
        with open_table(str(source.path), str(kind)) as table:
            columns_of(table, source.sequence_column, source.id_column)


def _parquet_columns(source: InputFile, schema: Any) -> tuple[str, str | None]:
    """Find the columns of sequences and of ids."""
    table = Table(str(source.path), list(schema.names), iter(()), types_of(schema))
    at, id_at = columns_of(table, source.sequence_column, source.id_column)
    return table.header[at], None if id_at is None else table.header[id_at]


def find_sources(
    inputs: Iterable[str | os.PathLike[str]],
    *,
    sequence_column: str | None = None,
    id_column: str | None = None,
) -> list[InputFile]:
    """Find the files of paths, folders and patterns."""
    paths, _ = _distinct(inputs)
    stems = [_SOURCES.sub("", path.name) for path in paths]
    # Programs that read folders of Parquet skip names that begin with these.
    stems = [stem.lstrip("._") or "input" for stem in stems]
    return [
        InputFile(path, stem, sequence_column, id_column)
        for path, stem in zip(paths, file_names(stems), strict=True)
    ]


def repeated(inputs: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Describe the names of files that another input has named already, in another way."""
    return [f"{path} is the same file as {first}" for path, first in _distinct(inputs)[1]]


def _distinct(
    inputs: Iterable[str | os.PathLike[str]],
) -> tuple[list[Path], list[tuple[Path, Path]]]:
    """List files once, by their first names, and other names with the first ones."""
    first: dict[object, Path] = {}
    others: dict[Path, Path] = {}
    for path in (path for name in inputs for path in _files_of(os.fspath(name))):
        status = path.stat()
        # Some file systems have no numbers of files.
        key = (status.st_dev, status.st_ino) if status.st_ino else path.resolve()
        if first.setdefault(key, path) != path:
            others[path] = first[key]
    return list(first.values()), list(others.items())


def _files_of(name: str) -> Sequence[Path]:
    if name == "-":
        raise InputError(
            "Standard input cannot be cut into shards, because it cannot be read again when one of "
            "them is missing. Save it in a file first, or write one file: -o OUT.parquet."
        )
    path = Path(name)
    if path.is_dir():
        files = sorted(item for item in path.iterdir() if _is_source(item))
        if not files:
            others = left_out([name])
            advice = (
                f" It holds {others[0]}. Tables can be named: '{name}/*.csv'." if others else ""
            )
            raise InputError(f"The folder {name} holds no file that ends in {_ENDINGS}.{advice}")
        return files
    if path.exists():
        return [path]
    if _PATTERN.search(name):
        items = map(Path, glob.glob(name, recursive=True))  # noqa: PTH207 - also absolute
        files = sorted(item for item in items if item.is_file())
        if not files:
            raise InputError(f"No file matches {name} (relative names start at {Path.cwd()}).")
        return files
    raise InputError(f"{name}: there is no such file (relative names start at {Path.cwd()}).")


def left_out(inputs: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Describe, for each folder among inputs, the files in it that are not read."""
    found = []
    for name in inputs:
        folder = Path(name)
        if os.fspath(name) != "-" and folder.is_dir():
            items = sorted(item.name for item in folder.iterdir() if not _is_source(item))
            others = [item for item in items if not item.startswith(".")]
            if others:
                some = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
                found.append(f"{len(others)} other files and folders ({some})")
    return found


def _is_source(path: Path) -> bool:
    return bool(_SOURCES.search(path.name)) and not path.name.startswith(".") and path.is_file()


def _cells(
    batches: Iterator[Any], columns: tuple[str, str | None], first: int
) -> Iterator[tuple[Any, Any]]:
    """Yield sequence and id of each row, a batch at a time; without ids, the number of the row."""
    for batch in batches:
        sequences = cells_of(batch.column(columns[0]))
        ids: Sequence[Any] = range(first, first + len(sequences))
        if columns[1] is not None:
            ids = cells_of(batch.column(columns[1]))
        yield from zip(sequences, ids, strict=True)
        first += len(sequences)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: cannot be read ({error}). Copy it again, or remove it.")
