"""Files of variants, and of their scores.

A file is a table with a column of variants (all of its columns come out again), a file of the
sequences of mutants, such as FASTA, or text with one variant per line. The words that other
programs write for a missing value are an error, even if they spell a peptide.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from esm2_features._inputs.records import TABLES, open_told, read_records
from esm2_features._inputs.streams import Source, as_text, lines, shown_name
from esm2_features._inputs.tables import (
    VARIANT_COLUMNS,
    Table,
    check_text_column,
    find_column,
    matching_columns,
    open_table,
    read_rows,
)
from esm2_features._io.paths import Output, atomic_output
from esm2_features.exceptions import InputError, list_problems

COLUMNS = ("variant", "mutant", "mutation", "hgvs_pro")
"""Names of the column of variants; the first that the table has is used."""

SCORE = "score"


class VariantTable(NamedTuple):
    """Variants, and the other columns of their file."""

    header: list[str]  # names of the columns
    rows: list[list[str]]  # cells, one for each column
    variants: list[str]  # one for each row
    positions: list[str]  # of each row in its file, for messages: ``"line 3"``


def read_variant_file(path: str, *, column: str | None = None) -> VariantTable:
    """Read variants from a table, a file of sequences, or lines of text."""
    with open_told(path, VARIANT_COLUMNS) as (kind, stream):
        if kind not in TABLES and column is not None:
            raise InputError(
                f"Got --column {column}, but {shown_name(path)} is not a table. Leave the option "
                "out, or give a table, such as .csv."
            )
        if kind in TABLES:
            table = _read_table(stream, path, kind, column)
        elif kind == "text":
            table = _read_lines(stream, path)
        else:
            table = _read_records(stream, path)
    if not table.rows:
        only = f" below its header, {', '.join(table.header)}" if table.header else ""
        raise InputError(f"{shown_name(path)} holds no variants{only}. Give a file that has some.")
    return table


def write_scores(output: Output, table: VariantTable, scores: Sequence[float]) -> None:
    """Write a table with an additional column of scores, completely or not at all."""
    rows = ([*row, float(score)] for row, score in zip(table.rows, scores, strict=True))
    write_rows(output, [*table.header, SCORE], rows)


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
    write_rows(output, ["variant", "position", "wildtype", "mutant", SCORE], rows)
    return len(rows)


def write_rows(output: Output, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table, completely or not at all."""
    with atomic_output(output) as part, part.open("x", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)  # scores with enough digits to read the same numbers back


# ------------------------------------------------------------------ reading


def _read_table(stream: Source, name: str, kind: str, column: str | None) -> VariantTable:
    with open_table(stream, kind, name) as table:
        at = _column(table, column)
        positions, rows = read_rows(table)
    variants = [row[at] for row in rows]
    _check_missing(table.name, variants, positions)
    return VariantTable(table.header, rows, variants, positions)


def _column(table: Table, column: str | None) -> int:
    from esm2_features._inputs.mutations import is_notation  # which needs NumPy, and help does not

    path, header = shown_name(table.name), table.header
    known = matching_columns(header, None, VARIANT_COLUMNS)
    # A column that is not asked for may be called H2O.
    has_names = len(header) > 1 and known
    suspects = [column] if column is not None else [] if has_names else header
    odd = [cell for cell in suspects if cell in header and is_notation(cell)]
    if odd:
        raise InputError(
            f"The first line of {path} holds {odd[0]!r}, which is a variant and no name of a "
            "column. Write a header above it."
        )
    if SCORE in header:
        raise InputError(
            f"{path} has a column {SCORE!r} already, which would be there twice. Rename it."
        )
    if column is None and len(known) > 1:
        known.sort(key=lambda at: [name not in header[at].lower() for name in COLUMNS])
        column = header[known[0]]
    at = find_column(table, column, VARIANT_COLUMNS, what="variants", option="--column")
    check_text_column(table, at, "--column")
    return at


def _read_lines(stream: io.BufferedReader, name: str) -> VariantTable:
    text = as_text(stream, name)
    rows = [line.strip() for line in lines(text, name)]
    text.detach()
    numbered = [(number, line) for number, line in enumerate(rows, start=1) if line]
    variants = [variant for _, variant in numbered]
    if variants and variants[0].lower().rstrip("s") in COLUMNS:
        # Its letters are residues, too, and it would be scored as a peptide.
        raise InputError(
            f"{shown_name(name)}, line {numbered[0][0]}: {variants[0]!r} looks like a header. "
            "Delete it, or let the file's name end in .csv."
        )
    positions = [f"line {number}" for number, _ in numbered]
    _check_missing(name, variants, positions)
    return VariantTable(["variant"], [[variant] for variant in variants], variants, positions)


def _read_records(stream: Source, name: str) -> VariantTable:
    start = len(f"{shown_name(name)}: ")
    records, places = read_records(stream, name=name)
    return VariantTable(
        ["id"],
        [[record.id] for record in records],
        [record.seq for record in records],
        [place[start].lower() + place[start + 1 :] for place in places],
    )


def _check_missing(name: str, variants: Sequence[str], positions: Sequence[str]) -> None:
    from esm2_features._inputs.words import missing_words  # which needs NumPy

    missing = missing_words(variants)
    problems = [
        f"{shown_name(name)}, {position}: {variant!r} stands for a missing value, where a variant "
        "is expected. Drop such rows, or write WT for the wild type. If a peptide of these letters "
        "is meant, write it in capitals with a stop, such as NA*."
        for row, (variant, position) in enumerate(zip(variants, positions, strict=True))
        if row in missing or not variant.strip()
    ]
    if len(problems) > 1:
        raise InputError(list_problems(problems, len(variants), "rows"))
    if problems:
        raise InputError(problems[0])
