"""What a region may look like: one position, a slice, a list of positions, or text.

`read_region` gives the parts of the sequence that are meant, checked against its length.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from numbers import Integral, Number
from typing import Any

import numpy as np

from esm2_features._inputs.cells import is_missing
from esm2_features._inputs.containers import cells_of
from esm2_features._inputs.options import is_whole
from esm2_features._inputs.rows import place_of
from esm2_features._inputs.views import Spans
from esm2_features.exceptions import InputError, InvalidRegionError, shorten

_PART = re.compile(r"\s*(-?\d+)\s*(?::\s*(-?\d+)\s*)?", re.ASCII)
_LONGEST_SHOWN = 60


def read_region(value: object, *, length: int, index: int, column: str | None = None) -> Spans:
    """Read one region, and check that it is a part of its sequence."""
    try:
        parts = _parts(value)
        for start, stop in parts:
            _check_part(start, stop, length)
    except ValueError as error:
        raise InvalidRegionError(
            f"The region {_shown(value)} in {place_of(index, column)} {error}. Its sequence has "
            f"{length} residues. Positions count from 0 (residue 1 of a paper is position 0): give "
            "one position, (start, stop) as in sequence[start:stop], a list of positions, or text "
            'such as "26:33,50:58".',
            index=index,
            region=value,
            length=length,
        ) from None
    spans = _united(parts)
    return () if spans == ((0, length),) else spans


def _united(parts: Iterable[tuple[int, int]]) -> Spans:
    """Join parts that touch or overlap."""
    spans: list[tuple[int, int]] = []
    for start, stop in sorted(parts):
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], stop))
        else:
            spans.append((start, stop))
    return tuple(spans)


def region_cells(regions: Any) -> list[object]:
    """List the regions of several sequences, one cell for each."""
    is_pair = isinstance(regions, tuple) and len(regions) > 0
    is_one = (
        isinstance(regions, str | bytes | Number | np.generic)
        or getattr(regions, "ndim", 1) == 0
        or (is_pair and all(isinstance(cell, Integral) for cell in regions))
    )
    if is_one:
        raise TypeError(
            f"Got regions={regions!r}, which is one region, and each sequence needs its own: pass "
            "a list of them. One region for all is for Engine(region=(start, stop))."
        )
    names = ("to_pylist", "tolist")
    has_rows = isinstance(regions, Collection) or any(hasattr(type(regions), n) for n in names)
    is_other = isinstance(regions, Mapping | Set) or hasattr(type(regions), "columns")
    if is_other or not has_rows:
        raise TypeError(
            f"Got {type(regions).__name__} as regions. Pass a list with one for each sequence, in "
            "their order, or one column of a table."
        )
    return cells_of(regions)


def warn_of_pairs(cells: Sequence[object], column: str | None = None) -> None:
    """Warn of lists that may have been tuples: Parquet, Polars and JSON have none."""
    if len(cells) > 1 and all(_is_pair(cell) for cell in cells):
        where = f" in column {column!r}" if column is not None else ""
        warnings.warn(
            f"Every region{where} is a list of two ascending numbers, such as {_shown(cells[0])}: "
            "two positions each. If slices are meant, write them as text, '2:8', or as tuples.",
            UserWarning,
            stacklevel=2,
        )


def _is_pair(cell: object) -> bool:
    if isinstance(cell, tuple | str | bytes | Mapping) or not isinstance(cell, Collection):
        return False
    numbers = [number for number in cell if isinstance(number, Number)]
    return len(numbers) == len(cell) == 2 and bool(numbers[0] < numbers[1])  # type: ignore[operator]


def _parts(value: object) -> list[tuple[int, int]]:
    """Read starts and stops; what is wrong with the value is the text of a ValueError."""
    if isinstance(value, str):
        return _parts_of_text(value)
    if isinstance(value, tuple):
        if len(value) != 2:
            raise ValueError(
                f"is a tuple of {len(value)}, but (start, stop) has two; positions are a list"
            )
        return [(_whole(value[0]), _whole(value[1]))]
    if isinstance(value, Collection) and not isinstance(value, bytes | bytearray | Mapping):
        if isinstance(value, np.ndarray) and value.ndim != 1:
            raise ValueError(f"is an array of {value.ndim} dimensions, but positions have one")
        if not len(value):
            raise ValueError("is empty")
        positions = map(_whole, value)
    else:
        positions = map(_whole, (value,))
    return [(position, position + 1) for position in positions]


def _parts_of_text(text: str) -> list[tuple[int, int]]:
    if text.strip()[:1] in ("(", "["):  # what CSV files make of tuples and lists
        try:
            value = ast.literal_eval(text.strip())
        except (SyntaxError, ValueError):
            raise ValueError("cannot be read") from None
        return _parts(value)
    parts = []
    for part in text.split(","):
        found = _PART.fullmatch(part)
        if found is None:
            raise ValueError(f"cannot be read: {part.strip()!r} is neither start:stop nor a number")
        start, stop = found.groups()
        parts.append((int(start), int(start) + 1 if stop is None else int(stop)))
    return parts


def _whole(number: object) -> int:
    # A mask of True and False would be read as the positions 0 and 1.
    if is_whole(number):
        return int(number)
    if isinstance(number, float | np.floating) and float(number).is_integer():
        return int(number)
    raise ValueError(f"cannot be read: {_shown(number)} is not a whole number")


def _check_part(start: int, stop: int, length: int) -> None:
    if start < 0 or stop < 0:
        raise ValueError(f"has the negative number {min(start, stop)}")
    if start >= stop:
        raise ValueError(f"holds no residue: {start}:{stop} stops before it starts")
    if stop > length:
        raise ValueError(f"reaches to position {stop - 1}, beyond the last one, {length - 1}")


def _shown(value: object) -> str:
    return shorten(repr(value), _LONGEST_SHOWN)


def read_regions(regions: Collection[object], sequences: Sequence[str]) -> list[Spans]:
    """Read the region of each sequence; a missing one is all of it."""
    cells = region_cells(regions)
    if len(cells) != len(sequences):
        raise InputError(
            f"Got {len(cells)} regions for {len(sequences)} sequences; pass one for each."
        )
    warn_of_pairs(cells)
    return [
        () if is_missing(cell) else read_region(cell, length=len(sequence), index=row)
        for row, (cell, sequence) in enumerate(zip(cells, sequences, strict=True))
    ]
