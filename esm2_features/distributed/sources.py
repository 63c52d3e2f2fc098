"""Inputs of shards: files of FASTA or Parquet, and their ranges of records.

A FASTA file is cut every so many records, a Parquet file at its row groups, and these again if they
have more rows than that. The ranges of a file are numbered from 0, and read when they are wanted:
of a Parquet file, the others are not read at all. No file is held in memory as a whole.
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

from esm2_features._arrow import import_parquet
from esm2_features._inputs.fasta import checked_record, iter_pairs
from esm2_features._io.paths import file_names
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
    stem: str  # its shards are named after it; unique within a job
    sequence_column: str = "sequence"  # of a Parquet file
    id_column: str = "id"  # of a Parquet file

    @property
    def is_parquet(self) -> bool:
        """Whether it is Parquet, and not FASTA."""
        return _PARQUET.search(self.path.name) is not None

    def stamp(self) -> tuple[int, int]:
        """Return size in bytes and time of the last change in nanoseconds."""
        try:
            status = self.path.stat()
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class InputRange:
    """The records of a shard, or the error that they have in the file."""

    number: int  # of the range in its file, from 0
    first: int  # row of its first record in the file, from 0
    ids: list[str] = field(repr=False)
    sequences: list[Any] = field(repr=False)  # as they are in the file
    error: InputError | None = None

    def digest(self) -> str:
        """Return the digest of ids and sequences, in hexadecimal."""
        digest = hashlib.blake2b(digest_size=16)
        for column in (self.ids, self.sequences):
            text = "\n".join(map(str, column))
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
        return self._parquet() if self.source.is_parquet else self._fasta()

    def _fasta(self) -> Iterator[InputRange]:
        numbers: Iterable[int] = itertools.count()
        if self._total is not None:  # nothing behind the last wanted range has to be read
            numbers = range(1 + max(filter(self._wanted, range(self._total)), default=-1))
        pairs = iter_pairs(str(self.source.path))
        n_records = 0
        for number in numbers:
            self.reached = number
            some = itertools.islice(pairs, self._size)
            if self._wanted(number):
                records = list(some)
                n = len(records)
                if records:
                    yield self._checked(number, n_records, records)
            else:
                n = sum(1 for _ in some)
            n_records += n
            if n < self._size:
                self.n_records, self.n_ranges = n_records, -(-n_records // self._size)
                return

    def _checked(self, number: int, first: int, pairs: list[tuple[str, str]]) -> InputRange:
        path = str(self.source.path)
        try:
            records = [checked_record(*pair, i, path) for i, pair in enumerate(pairs, first + 1)]
        except InputError as error:
            return InputRange(number, first, [], [], error)
        return InputRange(number, first, [r.id for r in records], [r.seq for r in records])

    def _parquet(self) -> Iterator[InputRange]:
        module = import_parquet("Reading Parquet")
        try:
            file = module.ParquetFile(self.source.path)
        except Exception as error:  # Arrow's errors, and the system's
            raise _unreadable(self.source.path, error) from error
        with file:
            check_columns(self.source, file.schema_arrow)
            rows = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
            self.n_records, number, first = sum(rows), 0, 0
            self.n_ranges = sum(-(-n // self._size) for n in rows)
            for group, n in enumerate(rows):
                numbers = range(number, number + -(-n // self._size))
                if any(map(self._wanted, numbers)):
                    yield from self._of_group(file, group, numbers, first)
                number, first = numbers.stop, first + n

    def _of_group(self, file: Any, group: int, numbers: range, first: int) -> Iterator[InputRange]:
        """Read the wanted ranges of one row group; if it is damaged, each has the error."""
        source, size = self.source, self._size
        columns = [source.id_column, source.sequence_column]
        cells = _cells(file.iter_batches(size, row_groups=[group], columns=columns), columns)
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
            error, ids = damage, [identifier for identifier, _ in records]
            if None in ids:
                error = InputError(
                    f"{source.path}: row {start + ids.index(None)} has no value in the column "
                    f"{source.id_column!r}. Give it an id."
                )
                records = []
            sequences = [sequence for _, sequence in records]
            yield InputRange(number, start, [str(i) for i, _ in records], sequences, error)


def check_columns(source: InputFile, schema: Any = None) -> None:
    """Check that a Parquet file has its columns; a damaged file is reported when it is read."""
    if schema is None:
        module = import_parquet("Reading Parquet")
        try:
            schema = module.read_schema(source.path)
        except Exception:
            return
    for name, option in (
        (source.sequence_column, "--sequence-column"),
        (source.id_column, "--id-column"),
    ):
        if schema.names.count(name) != 1:
            raise InputError(
                f"{source.path} must have one column {name!r}; its columns are "
                f"{', '.join(schema.names)}. Choose another one with {option}."
            )


def find_sources(
    inputs: Iterable[str | os.PathLike[str]],
    *,
    sequence_column: str = "sequence",
    id_column: str = "id",
) -> list[InputFile]:
    """Find the files of paths, folders and patterns."""
    paths = list(dict.fromkeys(path for name in inputs for path in _files_of(os.fspath(name))))
    stems = [_FASTA.sub("", _PARQUET.sub("", path.name)) for path in paths]
    # Programs that read folders of Parquet skip names that begin with these.
    stems = [stem.lstrip("._") or "input" for stem in stems]
    return [
        InputFile(path, stem, sequence_column, id_column)
        for path, stem in zip(paths, file_names(stems), strict=True)
    ]


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
            raise InputError(f"The folder {name} holds no file that ends in {_ENDINGS}.")
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


def _is_source(path: Path) -> bool:
    is_named = _FASTA.search(path.name) or _PARQUET.search(path.name)
    return bool(is_named) and not path.name.startswith(".") and path.is_file()


def _cells(batches: Iterator[Any], columns: list[str]) -> Iterator[tuple[Any, Any]]:
    """Yield id and sequence of each row, a batch at a time."""
    for batch in batches:
        yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: cannot be read ({error}). Copy it again, or remove it.")
