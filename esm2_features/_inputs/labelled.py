"""Tables of labelled sequences: each row has a sequence and a target, and may have a family."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from esm2_features._inputs.records import TABLES, columns_of, open_told
from esm2_features._inputs.streams import input_error, shown_name
from esm2_features._inputs.tables import find_column, open_table, read_rows
from esm2_features._inputs.words import is_missing_word
from esm2_features.exceptions import InputError, list_problems, shorten

_NO_NAME = re.compile(r"(?!)")
_LABELS = frozenset(["true", "false"])
"""Words for a missing sequence that are labels; ``-`` is one beside ``+``."""


@dataclass
class LabelledTable:
    """Rows of a table that have a target, as columns."""

    name: str  # of the file
    column: str  # name of the column of sequences
    ids: list[str]
    places: list[str]  # such as ``"line 3"``
    sequences: list[str]
    targets: list[Any]  # numbers, or text
    groups: list[str] | None
    n_dropped: int  # rows without a target


def read_labelled_table(
    path: str,
    *,
    target: str,
    column: str | None = None,
    id_column: str | None = None,
    group: str | None = None,
    task: str = "auto",
) -> LabelledTable:
    """Read a table; rows without a target are dropped, and other wrong cells are an InputError."""
    with open_told(path) as (kind, stream):
        if kind not in TABLES and kind != "text":
            raise input_error(
                path, "is no table. Give a table (CSV, TSV, Parquet, Excel) with a column of "
                "sequences and one of targets.",
            )  # fmt: skip
        with open_table(stream, kind if kind in TABLES else "csv", path) as table:
            places, rows = read_rows(table)
    at, id_at = columns_of(table, column, id_column)
    wanted = {"target": target, "group": group}
    found = {
        option: find_column(table, name, _NO_NAME, what=f"{option}s", option=f"--{option}")
        for option, name in wanted.items()
        if name is not None
    }
    for option, i in found.items():
        if i == at:
            raise InputError(
                f"{shown_name(path)}: the column {table.header[at]!r} holds the sequences, and "
                f"cannot be that of the {option}s. Choose another one: --{option}."
            )
    cells = [row[found["target"]].strip() for row in rows]
    is_dropped = _are_missing(cells)
    kept = [i for i, dropped in enumerate(is_dropped) if not dropped]
    if not kept:
        what = f"no row with a target in the column {target!r}" if rows else "no rows"
        raise input_error(path, f"holds {what}. Give a table that has some.")
    places = [places[i] for i in kept]
    ids = [str(i) if id_at is None else rows[i][id_at].strip() for i in kept]
    _check_ids(path, ids, places, is_numbered=id_at is None)
    groups = [rows[i][found["group"]].strip() for i in kept] if "group" in found else None
    empty = [place for place, name in zip(places, groups or (), strict=False) if not name]
    if empty:
        raise InputError(
            f"{shown_name(path)}, {empty[0]}: the column {group!r} is empty, in {len(empty)} of "
            f"{len(kept)} rows. Fill it in, or leave --group out to find families by identity."
        )
    return LabelledTable(
        name=shown_name(path),
        column=table.header[at],
        ids=ids,
        places=places,
        sequences=[rows[i][at] for i in kept],
        targets=_values([cells[i] for i in kept], path, places, task),
        groups=groups,
        n_dropped=len(rows) - len(kept),
    )


def _are_missing(cells: list[str]) -> list[bool]:
    labels = _LABELS | ({"-"} if "+" in cells else set())
    return [not c or (is_missing_word(c) and c.casefold() not in labels) for c in cells]


def _check_ids(path: str, ids: list[str], places: list[str], *, is_numbered: bool) -> None:
    first: dict[str, str] = {}
    for place, identifier in zip(places, ids, strict=True):
        other = first.setdefault(identifier, place)
        if not is_numbered and (other != place or not identifier):
            problem = f"has the id {identifier!r} of {other}" if identifier else "has no id"
            raise InputError(
                f"{shown_name(path)}, {place} {problem}. Give every row an id of its own, another "
                "column of ids (--id-column NAME), or none (--id-column none)."
            )


def _values(cells: list[str], path: str, places: list[str], task: str) -> list[Any]:
    """Read targets as numbers if they are, and else as text."""
    numbers = [_number(cell) for cell in cells]
    odd = [i for i, number in enumerate(numbers) if number is None]
    if not odd:
        known = [number for number in numbers if number is not None]
        is_whole = all(number.is_integer() and abs(number) < 2**53 for number in known)
        return [int(number) for number in known] if is_whole else known
    if task == "classification" or (task == "auto" and len(odd) > len(cells) / 2):
        return cells
    commas = any(re.fullmatch(r"[-+]?\d+,\d+", cells[i]) for i in odd)
    remedy = "Write decimal points in the place of commas." if commas else (
        "Write a number, or empty the cell: rows without a target are dropped."
    )  # fmt: skip
    problems = [
        f"{shown_name(path)}, {places[i]}: the target {shorten(cells[i])!r} is no finite number."
        for i in odd
    ]
    what = problems[0] if len(odd) == 1 else list_problems(problems, len(cells), "targets")
    raise InputError(f'{what}\n{remedy} If the targets are classes: task="classification".')


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None
