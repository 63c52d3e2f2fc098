"""Files of variants, and of their scores.

    .csv, .tsv       a table with a column of variants: all of its columns come out again
    .fasta, .fa ...  the sequences of mutants
    any other        text, one variant a line

All of them may be compressed. Nothing is skipped but blank lines.

Never here: what a variant means, how it is scored.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from esm2_features._fasta import read_fasta
from esm2_features._places import Output, growing
from esm2_features.exceptions import InputError

COLUMNS = ("variant", "mutant", "mutation")
"""Names of the column of variants, if nobody says another; the first that there is."""

SCORE = "score"

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_FASTA = (".fasta", ".fa", ".faa", ".fas", ".fsa")
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


class VariantTable(NamedTuple):
    """Variants, and all that stood beside them.

    Attributes
    ----------
    header : list of str
        Names of the columns.
    rows : list of list of str
        Cells, one for each column.
    variants : list of str
        One for each row.
    places : list of str
        Where each row stands in its file, for messages.
    """

    header: list[str]
    rows: list[list[str]]
    variants: list[str]
    places: list[str]


def read_variant_file(path: str, *, column: str | None = None) -> VariantTable:
    """Read variants.

    Parameters
    ----------
    path : str
        ``"-"`` is standard input, one variant a line.
    column : str, optional
        Name of the column of a table; by default the first of `COLUMNS`, or the only one.

    Returns
    -------
    table : VariantTable
        At least one row. Of FASTA files, the column is ``id``.

    Raises
    ------
    InputError
        If there are no variants, a table has no such column, or a row has more or fewer cells
        than the header.
    FastaError
        If a FASTA file cannot be used.
    OSError
        If there is no such file, or it cannot be read.
    """
    ending = _ending(path)
    if ending not in _DELIMITERS and column is not None:
        raise InputError(
            f"Got --column {column}, but {_shown(path)} is no table. Leave it out, or give a .csv "
            "or .tsv."
        )
    if ending in _DELIMITERS:
        table = _read_table(path, _DELIMITERS[ending], column)
    elif ending in _FASTA:
        records = read_fasta(path)
        table = VariantTable(
            ["id"],
            [[record.id] for record in records],
            [record.seq for record in records],
            [f"record {number}, {record.id}" for number, record in enumerate(records, start=1)],
        )
    else:
        table = _read_lines(path)
    if not table.rows:
        raise InputError(f"{_shown(path)} holds no variants. Give a file that has some.")
    return table


def write_scores(output: Output, table: VariantTable, scores: Sequence[float]) -> None:
    """Write a table with a column of scores, completely or not at all.

    Parameters
    ----------
    output : Output
    table : VariantTable
    scores : sequence of float
        One for each row; written so that they are read as the same numbers.

    Raises
    ------
    OSError
        If it cannot be written; nothing is left behind then.
    """
    _write(
        output,
        [*table.header, SCORE],
        ([*row, _digits(score)] for row, score in zip(table.rows, scores, strict=True)),
    )


def write_scan(
    output: Output, wildtype: str, residues: str, scores: Sequence[Sequence[float]], *, offset: int
) -> int:
    """Write the scores of all single substitutions, completely or not at all.

    Parameters
    ----------
    output : Output
    wildtype : str
        The L residues.
    residues : str
        What the columns of ``scores`` are of.
    scores : sequence of shape (L, 20)
    offset : int
        Number of the residue before the first one.

    Returns
    -------
    n : int
        Number of substitutions: a residue is not replaced by itself.

    Raises
    ------
    OSError
        If it cannot be written; nothing is left behind then.
    """
    rows = [
        [f"{before}{position}{after}", str(position), before, after, _digits(score)]
        for position, (before, row) in enumerate(zip(wildtype, scores, strict=True), 1 + offset)
        for after, score in zip(residues, row, strict=True)
        if after != before
    ]
    _write(output, ["variant", "position", "wildtype", "mutant", SCORE], rows)
    return len(rows)


def _write(output: Output, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with (
        growing(output) as part,
        part.open("x", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _digits(score: float) -> str:
    return repr(float(score))  # as many as it takes to read the same number back


# ------------------------------------------------------------------ reading


def _read_table(path: str, delimiter: str, column: str | None) -> VariantTable:
    rows: list[list[str]] = []
    places: list[str] = []
    reader = csv.reader(io.StringIO(_text_of(path), newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        for row in filter(None, reader):  # a blank line is no row
            places.append(f"line {reader.line_num}")
            if len(row) != len(header):
                raise InputError(
                    f"{_shown(path)}, line {reader.line_num} has {len(row)} cells, and the header "
                    f"has {len(header)}. Give every row a cell for each column."
                )
            rows.append(row)
    except csv.Error as error:
        raise InputError(
            f"{_shown(path)}, line {reader.line_num}: {error}. Write the table anew."
        ) from error
    at = _column(path, header, column)
    return VariantTable(header, rows, [row[at] for row in rows], places)


def _column(path: str, header: Sequence[str], column: str | None) -> int:
    """Find the column of variants."""
    listed = ", ".join(header) or "none"
    if SCORE in header:
        raise InputError(
            f"{_shown(path)} has a column {SCORE!r} already, which would be there twice. Rename it."
        )
    wanted = [column] if column is not None else [name for name in COLUMNS if name in header][:1]
    if column is None and not wanted and len(header) == 1:
        wanted = [header[0]]
    if len(wanted) != 1 or header.count(wanted[0]) != 1:
        what = f"the column {column!r} once" if column is not None else "one column of variants"
        raise InputError(
            f"{_shown(path)} should have {what}, and has the columns {listed}. Name the column of "
            "variants: --column."
        )
    return header.index(wanted[0])


def _read_lines(path: str) -> VariantTable:
    lines = [line.strip() for line in io.StringIO(_text_of(path), newline=None)]
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line]
    variants = [variant for _, variant in numbered]
    if variants and variants[0].startswith(">"):
        raise InputError(
            f"{_shown(path)} looks like FASTA. Let its name end in {' or '.join(_FASTA[:2])}, so "
            "that its sequences are read as mutants."
        )
    places = [f"line {number}" for number, _ in numbered]
    return VariantTable(["variant"], [[variant] for variant in variants], variants, places)


def _text_of(path: str) -> str:
    from xopen import xopen  # imported here because only files need it

    try:
        with xopen(sys.stdin.buffer if path == "-" else path, "rb", threads=0) as file:
            return str(file.read(), encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # every decompressor has an error class of its own
        raise InputError(
            f"{_shown(path)} cannot be read ({error}). A table or list of variants is text in "
            "UTF-8, plain or compressed: write it anew."
        ) from error


def _ending(path: str) -> str:
    endings = [ending.lower() for ending in Path(path).suffixes]
    if endings and endings[-1] in _COMPRESSED:
        endings.pop()
    return endings[-1] if endings else ""


def _shown(path: str) -> str:
    return "standard input" if path == "-" else os.fsdecode(path)
