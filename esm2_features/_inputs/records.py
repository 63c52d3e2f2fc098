"""Files of sequences of every kind, read as records.

What a file is is told by how it begins, or else by its ending: FASTA, a table (CSV, TSV, Parquet,
Excel), or a flat file that Biopython reads. `read_records` reads all of it, and counts every record
that is wrong; `iter_entries` reads one record after the other.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import PurePath
from typing import NamedTuple

from esm2_features._inputs import flat_files, tables
from esm2_features._inputs.fasta import FastaRecord, checked_record, iter_pairs
from esm2_features._inputs.streams import (
    Source,
    as_text,
    input_error,
    name_of,
    open_bytes,
    peek,
    shown_name,
)
from esm2_features._inputs.tables import Table, open_table
from esm2_features.exceptions import InputError, list_problems

FASTA_ENDINGS = (".fasta", ".fa", ".faa", ".fas", ".fsa")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
ENDINGS = {**dict.fromkeys(FASTA_ENDINGS, "fasta"), **tables.ENDINGS, **flat_files.ENDINGS}
"""Endings of files of sequences, and their kinds."""
TABLES = frozenset(tables.ENDINGS.values())

COLUMN, ID_COLUMN = "--column", "--id-column"
_NUMBERED = "none"
"""What ``--id-column`` is for a table without ids."""


class Entry(NamedTuple):
    """A record of a file, or the error in its place."""

    place: str  # such as ``"record 3"`` or ``"line 4"``
    record: FastaRecord | None
    error: InputError | None = None


class SequenceFile(NamedTuple):
    """The records of a file, and where in it each of them is."""

    records: list[FastaRecord]
    places: list[str]  # for messages: ``"x.csv: Line 4, P01308"``


def read_records(
    source: Source,
    *,
    column: str | None = None,
    id_column: str | None = None,
    usual_column: str | None = None,
    name: str | None = None,
) -> SequenceFile:
    """Read all records of a file; raise InputError if one is wrong, or two have the same id.

    Without ``column``, ``usual_column`` is that of sequences in a table that has it.
    """
    name = shown_name(name_of(source) if name is None else name)
    records: list[FastaRecord] = []
    places: list[str] = []
    problems: list[InputError] = []
    first: dict[str, str] = {}  # id -> where it occurs
    for entry in iter_entries(
        source, column=column, id_column=id_column, usual_column=usual_column, name=name
    ):
        record, error = entry.record, entry.error
        if record is not None and first.setdefault(record.id, entry.place) != entry.place:
            word, one = first[record.id].split()
            error = InputError(
                f"{name}: {word}s {one} and {entry.place.split()[1]} have the same id, "
                f"{record.id!a}. "
                "Give every record an id of its own; results are labelled by it."
                + _other_ids(entry.place)
            )
        if error is not None:
            problems.append(error)
        elif record is not None:
            records.append(record)
            places.append(f"{name}: {entry.place.capitalize()}, {record.id}")
    if len(problems) > 1:
        said = list(map(str, problems))
        raise InputError(list_problems(said, len(records) + len(said), "records"))
    if problems:
        raise problems[0]
    if not records:
        raise InputError(f"{name}: holds no records. Give a file that has some.")
    return SequenceFile(records, places)


def iter_entries(
    source: Source,
    *,
    column: str | None = None,
    id_column: str | None = None,
    usual_column: str | None = None,
    name: str | None = None,
) -> Iterator[Entry]:
    """Read a file record by record; ids may repeat."""
    name = name_of(source) if name is None else name
    # Opened once: what comes out of a pipe cannot be read again.
    with open_told(source, name=name) as (kind, stream):
        if kind in TABLES:
            with open_table(stream, kind, name) as table:
                if column is None and usual_column in table.header:
                    column = usual_column
                yield from _of_table(table, column, id_column)
            return
        for given, option in ((column, COLUMN), (id_column, ID_COLUMN)):
            if given is not None:
                raise InputError(
                    f"Got {option} {given}, but {shown_name(name)} is not a table. Leave the "
                    "option out, or give a table."
                )
        if kind in ("fasta", "text"):
            yield from _of_fasta(stream, name)
            return
        text = as_text(stream, name)
        try:
            for number, record in enumerate(flat_files.read_flat_file(text, kind, name), start=1):
                yield Entry(f"record {number}", *_checked(record, name, f"record {number}"))
        finally:
            text.detach()


def _of_fasta(stream: io.BufferedReader, name: str) -> Iterator[Entry]:
    # Closed at once if the reader stops early.
    with closing(iter_pairs(stream, name)) as pairs:  # type: ignore[type-var]
        for number, pair in enumerate(pairs, start=1):
            try:
                entry = Entry(f"record {number}", checked_record(*pair, number, name))
            except InputError as error:
                entry = Entry(f"record {number}", None, error)
            yield entry


@contextmanager
def open_told(
    source: Source, columns: re.Pattern[str] = tables.SEQUENCE_COLUMNS, name: str | None = None
) -> Iterator[tuple[str, io.BufferedReader]]:
    """Open a file, decompressed, and tell its kind: one of `ENDINGS`, or "text".

    A table whose ending does not say so is told by the usual names of its ``columns``.
    """
    name = name_of(source) if name is None else name
    with open_bytes(source, name=name) as stream:
        head = peek(stream, name)
        if head.startswith(b"PK"):  # other archives are unpacked, or an error
            kind = "excel"
        elif head.startswith(b"PAR1"):
            kind = "parquet"
        else:
            text = as_text(io.BufferedReader(io.BytesIO(head)), name).read()
            start = text.lstrip("\ufeff").lstrip("\r\n\t ")
            kind = _kind_of_text(start, kind_of_name(name), columns)
        yield kind, stream


def kind_of_name(name: str) -> str | None:
    """Tell what a file is by its ending, without that of its compression."""
    path = PurePath(name)
    while path.suffix.lower() in COMPRESSED:
        path = path.with_suffix("")
    return ENDINGS.get(path.suffix.lower())


def _kind_of_text(head: str, named: str | None, columns: re.Pattern[str]) -> str:
    if head.startswith(">"):
        return "fasta"
    if named in flat_files.ENDINGS.values():
        return str(named)
    for beginning, kind in flat_files.BEGINNINGS.items():
        if head.startswith(beginning) and named not in ("csv", "tsv"):
            return kind
    if named in (None, "parquet", "excel"):
        # A table without an ending that says so has the name of a column in its first line.
        words = re.split(r"[,;\t|]", head.partition("\n")[0])
        return "csv" if len(words) > 1 and tables.matching_columns(words, None, columns) else "text"
    return named


def _of_table(table: Table, column: str | None, id_column: str | None) -> Iterator[Entry]:
    from esm2_features._inputs.words import is_missing_word, may_be_peptide  # these need NumPy

    at, id_at = columns_of(table, column, id_column)
    table.needed = [i for i in (at, id_at) if i is not None]
    n = 0
    for n, (place, cells) in enumerate(table.rows, start=1):
        if isinstance(cells, InputError):
            yield Entry(place, None, cells)
            continue
        identifier = str(n - 1) if id_at is None else tables.text_of(cells[id_at]).strip()
        text = tables.text_of(cells[at])
        # Words that may be peptides are decided by the column, when sequences are checked.
        if is_missing_word(text) and not may_be_peptide(text):
            error = InputError(
                f"{shown_name(table.name)}, {place} ({identifier!a}): {text.strip()!r} stands for "
                "a missing value, where a sequence is expected. Remove the row."
            )
            yield Entry(place, None, error)
            continue
        record = FastaRecord(identifier, identifier, text)
        yield Entry(place, *_checked(record, table.name, place))
    if not n:
        only = f" below its header, {tables.listed(table.header)}" if table.header else ""
        raise input_error(table.name, f"holds no records{only}. Give a file that has some.")


def columns_of(table: Table, column: str | None, id_column: str | None) -> tuple[int, int | None]:
    """Find the column of sequences, and that of ids, if there is one."""
    known = tables.SEQUENCE_COLUMNS
    if not table.header:
        raise input_error(table.name, "holds no records. Give a file that has some.")
    if column is None:
        tables.check_header(table)
    at = tables.find_column(table, column, known, what="sequences", option=COLUMN)
    tables.check_text_column(table, at, COLUMN)
    if id_column == _NUMBERED and _NUMBERED not in table.header:
        return at, None
    ids = tables.matching_columns(table.header, id_column, tables.ID_COLUMNS)
    ids = [i for i in ids if i != at or id_column is not None]
    if id_column is None and len(ids) != 1:
        return at, None
    id_at = tables.find_column(
        table, id_column or table.header[ids[0]], known, what="ids", option=ID_COLUMN
    )
    kind = table.types.get(table.header[id_at], "")
    if re.match(r"(large_|fixed_size_)?(list|struct|map)", kind):
        tables.check_text_column(table, id_at, ID_COLUMN)
    return at, id_at


def _checked(
    record: FastaRecord, name: str, place: str
) -> tuple[FastaRecord | None, InputError | None]:
    where = f"{shown_name(name)}, {place}"
    if not record.id:
        return None, InputError(f"{where} has no id. Give it one.{_other_ids(place)}")
    if not record.id.isprintable():
        return None, InputError(
            f"{where}: the id {record.id!a} holds characters that cannot be printed. Remove them."
        )
    if not record.seq.strip():
        return None, InputError(
            f"{where} ({record.id!a}) has no sequence. Remove it, or add its sequence."
        )
    return record, None


def _other_ids(place: str) -> str:
    """Give the remedies that a table has besides."""
    if place.startswith("record"):
        return ""
    return f" Another column may hold ids ({ID_COLUMN} NAME), or none ({ID_COLUMN} {_NUMBERED})."
