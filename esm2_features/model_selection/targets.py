"""What is to be predicted: classes or numbers, checked."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm2_features._inputs.cells import is_missing
from esm2_features._inputs.containers import listed
from esm2_features._inputs.options import one_of
from esm2_features._inputs.rows import first_place, place_of
from esm2_features.exceptions import InputError, shorten

_TASKS = ("auto", "classification", "regression")
_MOST_CLASSES = 10
"""Distinct whole numbers up to which they are taken for classes."""


@dataclass(frozen=True)
class Targets:
    """Targets of all rows: numbers, or numbers of classes.

    ``values`` has shape (n,), float64 or intp; ``classes`` are sorted, and None for numbers.
    """

    values: NDArray[Any]
    classes: NDArray[Any] | None

    @property
    def task(self) -> str:
        return "regression" if self.classes is None else "classification"

    @property
    def original(self) -> NDArray[Any]:
        """The targets as they were given."""
        return self.values if self.classes is None else self.classes[self.values]


def read_targets(y: object, n_rows: int, task: str) -> Targets:
    """Check targets, and find out whether they are classes."""
    one_of("task", task, _TASKS)
    if getattr(y, "ndim", 1) == 2 and getattr(y, "shape", (0, 0))[1] == 1:
        y = y.iloc[:, 0] if hasattr(y, "iloc") else np.asarray(y)[:, 0]
    if getattr(y, "ndim", 1) > 1:
        raise TypeError(f"Got y of shape {y.shape}. Pass one column.")  # type: ignore[attr-defined]
    cells = listed(y, "y")
    if len(cells) != n_rows:
        raise InputError(f"X has {n_rows:,} rows, but y has {len(cells):,}.")
    missing = [row for row, cell in enumerate(cells) if is_missing(cell)]
    if missing:
        raise InputError(
            f"The target is missing in {first_place(missing)}. Drop such rows from X and y, such "
            "as by X[y.notna()] and y[y.notna()].",
        )
    for row, cell in enumerate(cells):
        if not isinstance(cell, str | Real | np.bool_):
            raise InputError(
                f"The target in {place_of(row)} is {shorten(repr(cell), 60)}. Pass numbers, or "
                "classes as text, numbers or truth values."
            )
    are_numbers = all(isinstance(cell, Real) and not _is_truth(cell) for cell in cells)
    if task == "auto":
        task = "regression" if are_numbers and not _few_whole(cells) else "classification"
    if task == "regression":
        return Targets(_numbers(cells), None)
    _check_text_numbers(cells)
    kinds = {type(cell) for cell in cells}
    if len(kinds) > 1 and not are_numbers:
        cells = [str(cell) for cell in cells]
    classes, codes = np.unique(np.array(cells), return_inverse=True)
    _check_varied(len(classes), cells[0])
    return Targets(codes.astype(np.intp), classes)


def _numbers(cells: list[Any]) -> NDArray[np.float64]:
    for row, cell in enumerate(cells):
        if not isinstance(cell, Real) or not np.isfinite(float(cell)):
            raise InputError(
                f"The target in {place_of(row)} is no finite number: "
                f"{shorten(repr(cell), 60)}. Mend it (pandas.to_numeric reads numbers from text), "
                'or pass task="classification" if the targets are classes.',
            )
    values = np.array([float(cell) for cell in cells])
    _check_varied(len(np.unique(values)), cells[0])
    return values


def _check_varied(n_distinct: int, first: object) -> None:
    if n_distinct < 2:
        raise InputError(
            f"All targets are {shorten(repr(first), 60)}, so there is nothing to predict. Pass the "
            "column that differs from row to row."
        )


def _check_text_numbers(cells: list[Any]) -> None:
    """Raise InputError for a column of many numbers that were read as text."""
    distinct = {cell for cell in cells if isinstance(cell, str)}
    if len(distinct) <= _MOST_CLASSES or not all(map(_reads_as_number, distinct)):
        return
    raise InputError(
        f"The targets are numbers as text, such as {cells[0]!r}, with {len(distinct):,} different "
        "values. Turn them into numbers first, such as by pandas.to_numeric(y)."
    )


def check_classes(targets: Targets, groups: NDArray[np.intp] | None) -> None:
    """Raise InputError if a class is in too few rows or families to be learned and tested."""
    if targets.classes is None:
        return
    pairs = zip(
        targets.values, range(len(targets.values)) if groups is None else groups, strict=True
    )
    counts = Counter(code for code, _ in {(int(code), int(group)) for code, group in pairs})
    code, n = min(counts.items(), key=lambda item: (item[1], item[0]))
    if n >= 3:
        return
    what = "row" if groups is None else "family"
    many = "rows" if groups is None else "families"
    raise InputError(
        f"The class {shorten(repr(targets.classes[code].item()), 60)} is in {n} "
        f"{what if n == 1 else many} only, and at least 3 are needed to learn it, to choose by it, "
        "and to test it. Leave its rows out, or join it with another class."
        + ("" if groups is None else " If the rows are independent, pass groups=None.")
    )


def _few_whole(cells: list[Any]) -> bool:
    distinct = {float(cell) for cell in cells}
    return len(distinct) == 2 or (
        len(distinct) <= _MOST_CLASSES and all(value.is_integer() for value in distinct)
    )


def _is_truth(cell: object) -> bool:
    return isinstance(cell, bool | np.bool_)


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
