"""Containers of every kind, read as columns of cells.

`columns` gives one column for each chain, and that of the regions. Containers are told by what
they can do, not by what they are, so that no data frame library is imported for a list of
strings.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, Set, Sized
from numbers import Number
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm2_features.exceptions import InputError


class Column(NamedTuple):
    """One chain, or the regions: a column of the input."""

    name: str | None  # the column's name, where the container has names and they are strings
    values: list[object]  # the cells, row by row, not yet checked


_LABELS = {"accession", "class", "description", "gene", "id", "label", "name", "organism", "target"}
_TO_LIST = ("to_pylist", "tolist", "to_list")  # of Arrow, of NumPy and pandas, of Polars


def columns(X: object, *, owner: str, region: object = None) -> list[Column]:
    """Read a container of sequences, column by column.

    Messages name ``owner``; ``region``, if it is a str, is the name of the column of regions.
    """
    region = region if isinstance(region, str) else None
    if isinstance(X, np.ndarray):
        found = _from_array(X, owner)
    elif _type_has(X, "columns"):
        found = _from_frame(X, owner)
    elif _is_series(X):
        name = getattr(X, "name", None)
        found = [Column(str(name) if isinstance(name, str) and name else None, _cells(X))]
    else:
        _check_container(X, owner)
        found = _from_list(list(X))  # type: ignore[call-overload]
    _check_empty(found, X, owner)
    _warn_of_labels(found, region)
    if region is not None:
        _check_region_column(found, region)
    for column in found:
        if region is None or column.name != region:
            _check_numbers(column, owner)
    return found


def single_column(sequences: object, *, owner: str) -> list[object]:
    """List the cells of a container that must be a single column, and may be empty."""
    is_column = hasattr(type(sequences), "to_list") and not hasattr(type(sequences), "columns")
    is_array = isinstance(sequences, np.ndarray) and sequences.ndim == 1
    is_list = isinstance(sequences, list | tuple) or is_column or is_array
    if is_list and not len(sequences):  # type: ignore[arg-type]
        return []  # where scikit-learn would have no rows refused
    chains = columns(sequences, owner=owner)
    if len(chains) > 1:
        raise InputError(
            f"{owner} takes one column of sequences, but got {len(chains)}. Pass one of them, or "
            "use ESM2Transformer, which embeds several chains side by side."
        )
    return chains[0].values


def is_missing(value: object) -> bool:
    """Whether a cell holds a missing value, of whichever library."""
    if isinstance(value, str):
        return False
    if value is None or value is np.ma.masked:
        return True
    if isinstance(value, Number | np.datetime64 | np.timedelta64):
        return bool(value != value)
    if is_record(value):
        return is_missing(value.seq)  # type: ignore[attr-defined]
    return type(value).__name__ in ("NAType", "NaTType")


def is_record(value: object) -> bool:
    """Whether an object has a sequence as its ``.seq``, as Biopython's records have."""
    return hasattr(value, "seq")


def is_biopython_seq(value: object) -> bool:
    """Whether an object is Biopython's ``Seq``."""
    # Whoever made a Seq has imported its module.
    module = sys.modules.get("Bio.Seq")
    return module is not None and isinstance(value, module.Seq | module.MutableSeq)


def _from_array(X: NDArray[Any], owner: str) -> list[Column]:
    if X.ndim == 1:
        return [Column(None, _cells(X))]
    if X.ndim == 2:
        return [Column(None, _cells(X[:, j])) for j in range(X.shape[1])]
    raise TypeError(
        f"{owner} got an array of {X.ndim} dimensions. Pass one dimension (sequences), or two "
        "(rows x chains)."
    )


def _from_frame(X: Any, owner: str) -> list[Column]:
    if _type_has(X, "collect"):
        raise TypeError(f"{owner} got a lazy frame ({type(X).__name__}). Pass X.collect().")
    if _type_has(X, "column_names"):  # Arrow, where .columns are the columns themselves
        return [Column(n, _cells(c)) for n, c in zip(X.column_names, X.columns, strict=True)]
    names = list(X.columns)
    if _type_has(X, "iloc"):  # pandas allows two columns of the same name
        cells = [_cells(X.iloc[:, j]) for j in range(len(names))]
    else:
        cells = [_cells(X[name]) for name in names]
    return [Column(n, c) for n, c in zip(_names(names), cells, strict=True)]


def _names(names: list[object]) -> Sequence[str | None]:
    """Names of a frame's columns as scikit-learn takes them: all strings, or none."""
    if all(isinstance(name, str) for name in names):
        return [str(name) for name in names]
    if not any(isinstance(name, str) for name in names):
        return [None] * len(names)
    kinds = sorted({type(name).__name__ for name in names})
    raise TypeError(
        "Feature names are only supported if all input features have string names, but your "
        f"input has {kinds} as feature name / column name types. Convert them all to strings, "
        "by X.columns = X.columns.astype(str) for example."
    )


def _from_list(rows: list[Any]) -> list[Column]:
    rows = [row.tolist() if isinstance(row, np.ndarray) else row for row in rows]
    kinds = set(map(type, rows))
    of_chains = {kind for kind in kinds if issubclass(kind, list | tuple) and not is_record(kind)}
    if not of_chains:
        return [Column(None, rows)]
    if any(issubclass(kind, tuple) for kind in of_chains):
        raise InputError(
            "The rows are tuples. If they are (label, sequence) pairs, pass the sequences alone: "
            "[sequence for label, sequence in rows]. If they are the chains of one molecule, pass "
            "lists, an array or a data frame."
        )
    if kinds != of_chains:
        odd = next(i for i, row in enumerate(rows) if type(row) not in of_chains)
        raise InputError(
            f"Some rows are lists of chains, but row {odd} is a {type(rows[odd]).__name__}. "
            "Pass one sequence for every row, or a list of chains for every row."
        )
    width = len(rows[0])
    odd = next((i for i, row in enumerate(rows) if len(row) != width), -1)
    if odd >= 0:
        raise InputError(
            f"Row 0 has {width} chains, but row {odd} has {len(rows[odd])}. Give every row the "
            "same number, with None for a chain that is missing. If a row is one sequence, "
            'letter by letter, join it: "".join(row).'
        )
    return [Column(None, [row[j] for row in rows]) for j in range(width)]


def _cells(column: Any) -> list[object]:
    """List the cells of anything that is one-dimensional."""
    name = next((name for name in _TO_LIST if _type_has(column, name)), None)
    cells = column if name is None else getattr(column, name)()
    # StringDType lets anything stand for a missing value.
    na = getattr(getattr(column, "dtype", None), "na_object", None)
    return list(cells) if na is None else [None if cell is na else cell for cell in cells]


def _check_container(X: object, owner: str) -> None:
    """Raise TypeError for objects without rows, without an order, or that can be read only once."""
    if isinstance(X, str | bytes | bytearray):
        got, remedy = "a single string", "Pass a list: [sequence]; for a file, read_fasta(path)"
    elif is_record(X) or is_biopython_seq(X):
        got, remedy = f"a single {type(X).__name__}", "Pass a list: [record]"
    elif isinstance(X, Mapping | ItemsView):
        got, remedy = f"a {type(X).__name__}", "Pass its sequences: list(d.values())"
    elif isinstance(X, Set) and not isinstance(X, KeysView):
        got, remedy = f"a {type(X).__name__}, which has no order", "Pass a list: sorted(sequences)"
    elif isinstance(X, os.PathLike):
        got, remedy = "a path", "Pass what is in the file: read_fasta(path)"
    elif isinstance(X, Iterator):
        got = f"a {type(X).__name__}, which the first look would use up"
        remedy = "Pass a list: list(sequences)"
    elif _type_has(X, "nnz"):
        got, remedy = "sparse data", "Pass sequences as text"
    elif isinstance(X, Sized) and isinstance(X, Iterable):
        return
    else:
        got, remedy = type(X).__name__, "Pass a list of sequences, a Series or a data frame"
    raise TypeError(f"{owner} needs protein sequences, one for each row, but got {got}. {remedy}.")


def _warn_of_labels(found: list[Column], region: str | None) -> None:
    """Warn of a column among several whose name is not that of a chain."""
    if len(found) == 1:
        return
    for column in found:
        if column.name is not None and column.name != region and column.name.lower() in _LABELS:
            warnings.warn(
                f"The column {column.name!r} is embedded as a chain of its own, because it holds "
                "text. If it is none, pass the columns of sequences only, such as "
                "X[['sequence']]; if it is, rename it, and this warning goes.",
                stacklevel=4,
            )


def _check_empty(found: list[Column], X: Any, owner: str) -> None:
    """Raise InputError, in scikit-learn's words, if there are no rows or no columns."""
    if found and found[0].values:
        return
    what = "sample" if found else "feature"
    shape = tuple(getattr(X, "shape", (0,) if found else (len(X), 0)))
    raise InputError(
        f"Found array with 0 {what}(s) (shape={shape}) while a minimum of 1 is required by {owner}."
    )


def _check_numbers(column: Column, owner: str) -> None:
    """Raise TypeError for a column of numbers: the column is wrong, not one cell."""
    first = next((cell for cell in column.values if not is_missing(cell)), None)
    if isinstance(first, Number | np.generic) and not isinstance(first, str | bytes):
        which = f"column {column.name!r}" if column.name is not None else "a column"
        raise TypeError(
            f"{owner} needs protein sequences as text, but {which} holds numbers (such as "
            f"{first!s:.20}). Select the columns that hold sequences."
        )


def _check_region_column(found: list[Column], region: str) -> None:
    """Check that there is one column of sequences and one, by name, of their regions."""
    names = [column.name for column in found]
    if None in names:
        raise InputError(
            f"Got region={region!r}, the name of a column, but the columns of X have no names. "
            "Pass a data frame, or region=(start, stop) for a region that all sequences share."
        )
    if region not in names:
        raise InputError(
            f"Got region={region!r}, but X has no column of this name; it has {names}. Pass a "
            "frame with a column of sequences and this one."
        )
    if len(found) != 2 or names.count(region) != 1:
        raise InputError(
            f"Got region={region!r} and the columns {names}. Beside one column of regions there "
            "must be exactly one of sequences; for several chains, use a ColumnTransformer with "
            "one transformer for each chain and its regions."
        )


def _type_has(X: object, name: str) -> bool:
    """Ask the type, because a pandas object has an attribute for every label it holds."""
    return hasattr(type(X), name)


def _is_series(X: object) -> bool:
    # A NumPy scalar, and so a single str_, has a tolist as well.
    return not isinstance(X, np.generic) and any(_type_has(X, name) for name in _TO_LIST)
