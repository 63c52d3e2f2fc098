"""Groups of rows, such as families."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm2_features._inputs.cells import is_missing
from esm2_features._inputs.containers import listed
from esm2_features._inputs.rows import first_place
from esm2_features.exceptions import InputError


def group_cells(
    groups: Any,
    n: int,
    *,
    name: str = "groups",
    of: str = "rows",
    place: Callable[[Sequence[int]], str] = first_place,
) -> list[object]:
    """List the group of each of ``n`` rows; raise InputError if some are missing."""
    cells = listed(groups, name)
    if len(cells) != n:
        raise InputError(f"Got {len(cells):,} {name} for {n:,} {of}. Pass one for each.")
    if missing := [row for row, cell in enumerate(cells) if is_missing(cell)]:
        raise InputError(
            f"The group of {place(missing)} is missing. Give each row a group, those without "
            "relatives one of their own."
        )
    return cells


def group_codes(cells: list[object], codes: dict[object, int] | None = None) -> NDArray[np.intp]:
    """Give each group a number, from 0 in their order, or that which ``codes`` has."""
    known = {} if codes is None else codes
    return np.array([known.setdefault(cell, len(known)) for cell in cells], np.intp)
