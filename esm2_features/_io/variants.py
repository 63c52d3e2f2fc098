"""Files of variants, and of their scores.

    .csv, .tsv       a table with a column of variants: all of its columns come out again
    .fasta, .fa ...  the sequences of mutants
    any other        text, one variant per line; standard input is FASTA if it begins with ``>``

All of them may be compressed. Only blank lines are skipped. The words that other programs write for
a missing value are an error, even if they spell a peptide.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from esm2_features._inputs.fasta import read_fasta
from esm2_features._io.paths import Output, atomic_output
from esm2_features.exceptions import InputError

COLUMNS = ("variant", "mutant", "mutation")
"""Names of the column of variants; the first that the table has is used."""

SCORE = "score"

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_FASTA = (".fasta", ".fa", ".faa", ".fas", ".fsa")
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


class VariantTable(NamedTuple):
    """Variants, and the other columns of their file."""

    header: list[str]  # names of the columns
    rows: list[list[str]]  # cells, one for each column
    variants: list[str]  # one for each row
    positions: list[str]  # of each row in its file, for messages: ``"line 3"``


def read_variant_file(path: str, *, column: str | None = None) -> VariantTable:
    """Read variants from a table, a FASTA file, or lines of text."""
    file = Path(path)
    if file.suffix.lower() in _COMPRESSED:
        file = file.with_suffix("")
    ending = file.suffix.lower()
    if ending not in _DELIMITERS and column is not None:
        raise InputError(
            f"Got --column {column}, but {_shown(path)} is not a table. Leave the option out, or "
            "give a .csv or .tsv."
        )
    if ending in _DELIMITERS:
        table = _read_table(path, _DELIMITERS[ending], column)
    elif ending in _FASTA:
        table = _read_records(path)
    else:
        table = _read_lines(path)
    if not table.rows:
        only = f" below its header, {', '.join(table.header)}" if table.header else ""
        raise InputError(f"{_shown(path)} holds no variants{only}. Give a file that has some.")
    return table


def write_scores(output: Output, table: VariantTable, scores: Sequence[float]) -> None:
    """Write a table with an additional column of scores, completely or not at all."""
    rows = ([*row, float(score)] for row, score in zip(table.rows, scores, strict=True))
    _write(output, [*table.header, SCORE], rows)


def write_scan(
    output: Output, wildtype: str, residues: str, scores: Sequence[Sequence[float]], *, offset: int
) -> int:
    """Write the scores of all single substitutions; return their number.

    Positions where the wild type has none of the 20 canonical residues are left out: ESM-2 hardly
    ever expects an X, so any residue in its place would seem far better.
    """
    rows = [
        [f"{before}{position}{after}", position, before, after, float(score)]
        for position, (before, row) in enumerate(zip(wildtype, scores, strict=True), 1 + offset)
        for after, score in zip(residues, row, strict=True)
        if before in residues and after != before
    ]
    _write(output, ["variant", "position", "wildtype", "mutant", SCORE], rows)
    return len(rows)


def _write(output: Output, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with atomic_output(output) as part, part.open("x", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)  # scores with enough digits to read the same numbers back


# ------------------------------------------------------------------ reading


def _read_table(path: str, delimiter: str, column: str | None) -> VariantTable:
    rows: list[list[str]] = []
    positions: list[str] = []
    text = io.StringIO(_read_text(path), newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        header = next((row for row in reader if "".join(row).strip()), [])
        for row in filter(None, reader):  # a blank line is no row
            positions.append(f"line {reader.line_num}")
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
    from esm2_features._inputs.mutations import is_notation  # which needs NumPy, and help does not

    # A column that is not asked for may be called H2O.
    is_known = any(name.lower() in COLUMNS for name in header)
    suspects = [column] if column is not None else [] if is_known else header
    odd = [cell for cell in suspects if cell in header and is_notation(cell)]
    if odd:
        raise InputError(
            f"The first line of {_shown(path)} holds {odd[0]!r}, which is a variant and no name of "
            "a column. Write a header above it."
        )
    at = _column(path, header, column)
    variants = [row[at] for row in rows]
    _check_missing(path, variants, positions)
    return VariantTable(header, rows, variants, positions)


def _column(path: str, header: Sequence[str], column: str | None) -> int:
    listed = ", ".join(header) or "none"
    if SCORE in header:
        raise InputError(
            f"{_shown(path)} has a column {SCORE!r} already, which would be there twice. Rename it."
        )
    if column is None and len(header) == 1 and ";" in header[0]:
        raise InputError(
            f"{_shown(path)} is separated by semicolons: {header[0]!r}. Separate its cells by "
            "commas (.csv) or tabs (.tsv)."
        )
    known = [name for name in header if name.lower() in COLUMNS]
    known.sort(key=lambda name: COLUMNS.index(name.lower()))
    wanted = [column] if column is not None else known[:1] or header
    if len(wanted) != 1 or header.count(wanted[0]) != 1:
        what = f"the column {column!r} once" if column is not None else "one column of variants"
        raise InputError(
            f"{_shown(path)} should have {what}, and has the columns {listed}. Name the column of "
            "variants: --column."
        )
    return header.index(wanted[0])


def _read_lines(path: str) -> VariantTable:
    text = _read_text(path)
    lines = [line.strip() for line in io.StringIO(text, newline=None)]
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line]
    variants = [variant for _, variant in numbered]
    if variants and variants[0].startswith(">"):
        if path == "-":  # which has no name that could say so
            stream = io.BytesIO(text.encode())
            stream.name = path
            return _read_records(stream)
        raise InputError(
            f"{_shown(path)} looks like FASTA. Let its name end in {' or '.join(_FASTA[:2])}, so "
            "that its sequences are read as mutants."
        )
    if variants and variants[0].lower().rstrip("s") in COLUMNS:
        # Its letters are residues, too, and it would be scored as a peptide.
        raise InputError(
            f"{_shown(path)}, line {numbered[0][0]}: {variants[0]!r} looks like a header. Delete "
            "it, or let the file's name end in .csv."
        )
    positions = [f"line {number}" for number, _ in numbered]
    _check_missing(path, variants, positions)
    return VariantTable(["variant"], [[variant] for variant in variants], variants, positions)


def _read_records(source: str | BinaryIO) -> VariantTable:
    records = read_fasta(source)
    return VariantTable(
        ["id"],
        [[record.id] for record in records],
        [record.seq for record in records],
        [f"record {number}, {record.id}" for number, record in enumerate(records, start=1)],
    )


def _check_missing(path: str, variants: Sequence[str], positions: Sequence[str]) -> None:
    from esm2_features._inputs.words import missing_words  # which needs NumPy, as above

    missing = missing_words(variants)
    for row, (variant, position) in enumerate(zip(variants, positions, strict=True)):
        if row in missing or not variant.strip():
            raise InputError(
                f"{_shown(path)}, {position}: {variant!r} stands for a missing value, where a "
                "variant is expected. Drop such rows, or write WT for the wild type. If a peptide "
                "of these letters is meant, write it in capitals with a stop, such as NA*."
            )


def _read_text(path: str) -> str:
    from xopen import xopen  # imported here because only files need it

    try:
        with xopen(sys.stdin.buffer if path == "-" else path, "rb", threads=0) as file:
            return bytes(file.read()).decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # every decompressor has an error class of its own
        raise InputError(
            f"{_shown(path)} cannot be read ({error}). A table or list of variants is text in "
            "UTF-8, plain or compressed: write it anew."
        ) from error


def _shown(path: str) -> str:
    return "standard input" if path == "-" else os.fsdecode(path)
