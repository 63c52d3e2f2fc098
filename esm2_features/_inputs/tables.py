"""Tables: CSV, TSV, Parquet and Excel, read row by row.

Cells of text files may be separated by commas, tabs, semicolons or bars, and the line ``sep=;`` of
Excel may stand first. Blank rows, and comments (``#``) above the header, are skipped.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from esm2_features._arrow import batches_of, cells_of, open_parquet
from esm2_features._inputs.options import similar
from esm2_features._inputs.streams import (
    Source,
    as_text,
    input_error,
    lines,
    name_of,
    open_bytes,
    shown_name,
    unreadable,
)
from esm2_features.exceptions import (
    InputError,
    MissingDependencyError,
    import_optional,
    list_problems,
    shorten,
)

SEQUENCE_COLUMNS = re.compile(
    "((protein|aa|amino_?acid|full|target|mutated|mutant|peptide)_?)?(sequence|seq)s?"
    "|sequence_aa|peptide"
)
"""Usual names of a column of sequences, in lower case, with ``_`` for other signs."""
VARIANT_COLUMNS = re.compile(
    "(mutation|mutant|variant)s?|mut|aa_?(change|substitutions?)|hgvs_p(ro)?"
)
"""Usual names of a column of variants."""
ID_COLUMNS = re.compile("ids?|identifier|(seq|sequence|uniprot)_id|(uniprot_)?accession|entry")
"""Usual names of a column of ids."""

ENDINGS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".xlsx": "excel",
    ".xlsm": "excel",
}
"""Endings of tables, and their kinds."""

_DELIMITERS = {"csv": ",;\t|", "tsv": "\t;,|"}
_SNIFFED = 50  # lines that tell the delimiter
_FEWEST_RESIDUES = 10  # of a text in a header that is taken for a sequence


@dataclass
class Table:
    """A table that is read row by row, once."""

    name: str  # of its file
    header: list[str]
    # where each row is, such as ``"line 3"``, and its cells, or what is wrong with it
    rows: Iterator[tuple[str, list[Any] | InputError]]
    # columns of Parquet that are no text -> what they hold
    types: dict[str, str] = field(default_factory=dict)
    needed: list[int] | None = None  # columns to read, where the others cost time; None for all


@contextmanager
def open_table(source: Source, kind: str, name: str | None = None) -> Iterator[Table]:
    """Open a table of one of the kinds csv, tsv, parquet and excel."""
    name = name_of(source) if name is None else name
    with open_bytes(source) as stream, ExitStack() as stack:
        if kind in _DELIMITERS:
            text = as_text(stream, name, newline="")
            stack.callback(text.detach)
            yield _of_text(lines(text, name), name, _DELIMITERS[kind])
            return
        seekable = stream if stream.seekable() else io.BytesIO(stream.read())
        yield stack.enter_context(_OPENERS[kind](seekable, name))


def read_rows(table: Table) -> tuple[list[str], list[list[str]]]:
    """Read the places and the cells of all rows, as text; raise InputError if some are wrong."""
    places: list[str] = []
    rows: list[list[str]] = []
    problems: list[InputError] = []
    for place, cells in table.rows:
        if isinstance(cells, InputError):
            problems.append(cells)
        else:
            places.append(place)
            rows.append([text_of(cell) for cell in cells])
    if len(problems) > 1:
        n = len(rows) + len(problems)
        raise InputError(list_problems(list(map(str, problems)), n, "rows"))
    if problems:
        raise problems[0]
    return places, rows


def find_column(
    table: Table,
    wanted: str | None,
    known: re.Pattern[str],
    *,
    what: str,
    option: str,
    beside: int | None = None,
) -> int:
    """Find a column by its name, or by one of the usual names; errors name the option.

    ``beside`` is a column that is something else already.
    """
    found = [i for i in matching_columns(table.header, wanted, known) if i != beside]
    if len(found) != 1:
        should = f"the column {wanted!r} once" if wanted is not None else f"one column of {what}"
        meant = "" if wanted in table.header else similar(wanted, table.header)
        raise input_error(
            table.name,
            f"should have {should}, and has the columns {listed(table.header)}. Name the column of "
            f"{what}: {option}.{meant}",
        )
    return found[0]


def matching_columns(
    header: Sequence[str], wanted: str | None, known: re.Pattern[str]
) -> list[int]:
    """List the columns that have the wanted name, or else one of the usual names."""
    if wanted is not None:
        return [i for i, name in enumerate(header) if name == wanted]
    found = [i for i, name in enumerate(header) if known.fullmatch(_plain(name))]
    return found or ([0] if len(header) == 1 else [])


def check_text_column(table: Table, at: int, option: str) -> None:
    """Raise InputError if a column of Parquet holds something else than text."""
    name = table.header[at]
    if name in table.types:
        raise input_error(
            table.name,
            f"the column {name!r} holds {table.types[name]}, where text is needed. Choose another "
            f"column with {option}.",
        )


def check_header(table: Table) -> None:
    """Raise InputError if the first row holds a sequence, and no names of columns."""
    odd = next((cell for cell in table.header if _is_sequence(cell)), None)
    if odd is not None:
        raise input_error(
            table.name,
            f"the first row holds the sequence {shorten(odd)!r} where the names of the columns are "
            "expected. Write a header above it.",
        )


def text_of(cell: object) -> str:
    """Write a cell as text; a missing one is empty."""
    if cell is None:
        return ""
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "replace")
    return str(cell)


def listed(header: Sequence[str]) -> str:
    shown = [name or "''" for name in header[:20]] + (["..."] if len(header) > 20 else [])
    return ", ".join(shown) or "none"


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name.strip().lower()).strip("_")


def _is_sequence(cell: str) -> bool:
    from esm2_features._inputs.alphabet import RESIDUES  # which needs NumPy, and help does not

    is_long = len(cell) >= _FEWEST_RESIDUES
    return is_long and cell.isupper() and not set(cell) - set(RESIDUES)


# ------------------------------------------------------------------ text


def _of_text(raw: Iterator[str], name: str, delimiters: str) -> Table:
    some = list(islice(raw, _SNIFFED))
    number = 0
    if some and (hint := re.match(r"(?i)\ufeff?sep=(.)\s*$", some[0])):
        delimiters, number = hint[1], 1
    delimiter = max(delimiters, key=lambda one: _fit(some[number:], one))  # the first of equals
    number += _comments(some[number:], delimiter)
    reader = csv.reader(chain(some[number:], raw), delimiter=delimiter, strict=True)
    rows = _rows(reader, name, number)
    header = next(rows, ("", []))[1]
    names = [cell.strip() for cell in header]
    return Table(name, names, _same_width(rows, len(header), name))


def _fit(some: Sequence[str], delimiter: str) -> tuple[int, int]:
    """Count the rows that a delimiter cuts into as many cells as the header, and these cells."""
    try:
        rows = [row for row in csv.reader(some, delimiter=delimiter) if "".join(row).strip()]
    except csv.Error:
        return 0, 0
    rows = [row for row in rows if not row[0].startswith("#")] or rows
    width = len(rows[0]) if rows else 0
    if width < 2:
        return 0, 0
    return sum(len(row) == width for row in rows), width


def _comments(some: Sequence[str], delimiter: str) -> int:
    """Count the lines of comments above a header, which may itself begin with #."""
    n = next((i for i, line in enumerate(some) if not line.lstrip().startswith("#")), len(some))
    if n and n < len(some):
        last, header = (line.count(delimiter) for line in (some[n - 1], some[n]))
        if last == header > 0:
            return n - 1
    return n


def _rows(reader: Any, name: str, before: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows that are not blank, and the last line of each, after ``before`` others."""
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"{shown_name(name)}, line {before + reader.line_num}: {error}. Write the table "
                "anew."
            ) from error
        if row is None:
            return
        if "".join(row).strip():
            yield f"line {before + reader.line_num}", row


def _same_width(
    rows: Iterator[tuple[str, list[str]]], width: int, name: str
) -> Iterator[tuple[str, list[str] | InputError]]:
    for place, row in rows:
        if len(row) == width:
            yield place, row
        else:
            what = f"{place} has {len(row)} cells, and the header has {width}"
            remedy = "Give every row a cell for each column."
            yield place, InputError(f"{shown_name(name)}, {what}. {remedy}")


# ------------------------------------------------------------------ Parquet and Excel


@contextmanager
def _open_parquet(stream: Any, name: str) -> Iterator[Table]:
    try:
        file = open_parquet(stream, "Reading Parquet")
    except MissingDependencyError:
        raise
    except Exception as error:  # Arrow's errors, and the system's
        raise input_error(name, unreadable(error)) from error
    with file:
        schema = file.schema_arrow
        table = Table(name, list(schema.names), iter(()), types_of(schema))
        table.rows = _parquet_rows(file, table)
        yield table


def _parquet_rows(file: Any, table: Table) -> Iterator[tuple[str, list[Any] | InputError]]:
    n = 0
    needed = range(len(table.header)) if table.needed is None else table.needed
    batches = batches_of(file, [table.header[i] for i in needed])
    while True:
        try:
            batch = next(batches, None)
        except Exception as error:  # of Arrow, of a codec, or of the system
            raise input_error(table.name, unreadable(error)) from error
        if batch is None:
            return
        columns: list[Sequence[Any]] = [[None] * batch.num_rows] * len(table.header)
        for i in needed:
            columns[i] = cells_of(batch.column(table.header[i]))
        for number, cells in enumerate(zip(*columns, strict=True), n):
            yield f"row {number}", list(cells)
        n += batch.num_rows


def types_of(schema: Any) -> dict[str, str]:
    """Describe the columns of an Arrow schema that hold no text."""
    import pyarrow as pa

    def is_text(kind: Any) -> bool:
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        return any(
            test(kind)
            for test in (
                *(pa.types.is_string, pa.types.is_large_string, pa.types.is_null),
                *(pa.types.is_binary, pa.types.is_large_binary),
                getattr(pa.types, "is_string_view", pa.types.is_null),
            )
        )

    return {each.name: str(each.type) for each in schema if not is_text(each.type)}


@contextmanager
def _open_excel(stream: Any, name: str) -> Iterator[Table]:
    openpyxl: Any = import_optional("openpyxl", extra="excel", purpose="Reading Excel")
    try:
        workbook = openpyxl.load_workbook(stream, read_only=True, data_only=True)
    except Exception as error:  # zip, XML and openpyxl have error classes of their own
        raise input_error(name, unreadable(error)) from error
    try:
        rows = _excel_rows(workbook.worksheets[0])
        header = next(rows, ("", []))[1]
        n = max((i for i, cell in enumerate(header, 1) if text_of(cell).strip()), default=0)
        names = [text_of(cell).strip() for cell in header[:n]]
        # A row may end before the header does, and empty cells may follow.
        padded = ((place, (cells + [None] * n)[:n]) for place, cells in rows)
        yield Table(name, names, padded)
    finally:
        workbook.close()


def _excel_rows(sheet: Any) -> Iterator[tuple[str, list[Any]]]:
    for number, cells in enumerate(sheet.iter_rows(values_only=True), start=1):
        if any(text_of(cell).strip() for cell in cells):
            yield f"row {number}", list(cells)


_OPENERS: dict[str, Callable[..., Any]] = {"parquet": _open_parquet, "excel": _open_excel}
