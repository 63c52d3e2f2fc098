"""Containers of every kind, read as columns of cells.

`columns` gives one column for each chain, and that of the regions. Containers are told by what
they can do, not by what they are, so that no data frame library is imported for a list of
strings.
"""

from __future__ import annotations

import os
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, Set, Sized
from numbers import Number
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm2_features._inputs.cells import is_biopython_seq, is_missing, is_record
from esm2_features._inputs.labels import check_labels, may_be_sequences
from esm2_features._inputs.options import is_whole, similar
from esm2_features.exceptions import InputError


class Column(NamedTuple):
    """One chain, or the regions: a column of the input."""

    name: str | None  # the column's name, where the container has names and they are strings
    values: list[object]  # the cells, row by row, not yet checked
    labels: Sequence[object] | None = None  # what the user calls the rows, besides their numbers
    # lengths at which words such as NA are peptides; None to find them in the values
    peptide_sizes: frozenset[int] | None = None


_TO_LIST = ("to_pylist", "tolist", "to_list")  # of Arrow, of NumPy and pandas, of Polars


def columns(
    X: object, *, owner: str, region: object = None, chains: Sequence[str | int] | None = None
) -> list[Column]:
    """Read a container of sequences, column by column.

    Messages name ``owner``; ``region``, if it is a str, is the name of the column of regions.
    Of several columns, ``chains`` are those to read, by their names or numbers.
    """
    region = region if isinstance(region, str) else None
    found = _read(X, owner)
    _check_empty(found, X, owner)
    if chains is not None:
        found = _chosen(found, chains, region)
    if region is not None:
        _check_region_column(found, region)
    for column in found:
        if region is None or column.name != region:
            _check_numbers(column, found, X, owner)
    return found


def check_sequences(found: Sequence[Column], X: object, *, region: object, insist: str) -> None:
    """Raise InputError for columns of labels; ``insist`` says how to embed them all the same."""
    chains = [column for column in found if not isinstance(region, str) or column.name != region]
    check_labels(
        [column[:2] for column in chains],
        pick=lambda kept: _selection(X, found, [chains[i] for i in kept]),
        join=_joined(X),
        insist=insist,
    )


def single_column(sequences: object, *, owner: str) -> Column:
    """Read a container that must be a single column, and may be empty."""
    is_column = hasattr(type(sequences), "to_list") and not hasattr(type(sequences), "columns")
    is_array = isinstance(sequences, np.ndarray) and sequences.ndim == 1
    is_list = isinstance(sequences, list | tuple) or is_column or is_array
    if is_list and isinstance(sequences, Sized) and not len(sequences):
        return Column(None, [])  # where scikit-learn would have no rows refused
    chains = columns(sequences, owner=owner)
    is_one = len(chains) == 1
    insist = "If they are peptides, write them with a stop, such as {word}*." if is_one else ""
    check_sequences(chains, sequences, region=None, insist=insist)
    if len(chains) > 1:
        raise InputError(
            f"{owner} takes one column of sequences, but got {len(chains)}. Pass one of them, or "
            "use ESM2Transformer, which embeds several chains side by side."
        )
    return chains[0]


def listed(column: Any, what: str) -> list[object]:
    """List the cells of one column that is an argument of its own."""
    # A table iterates over its columns, a mapping over its keys, a record over its letters.
    is_other = isinstance(column, str | bytes | Mapping | Set) and not isinstance(column, KeysView)
    is_other |= _type_has(column, "columns") or _type_has(column, "seq")
    if is_other or not isinstance(column, Iterable):
        raise TypeError(
            f"Got {type(column).__name__} as {what}. Pass a list, or one column of a table."
        )
    return cells_of(column)


def _read(X: Any, owner: str) -> list[Column]:
    if isinstance(X, np.ndarray):
        return _from_array(X, owner)
    if _type_has(X, "fetchall") and _type_has(X, "columns"):  # a relation of DuckDB
        return _from_rows(list(X.columns), X.fetchall())
    _check_lazy(X, owner)
    if _type_has(X, "columns"):
        return _from_frame(X)
    if isinstance(X, Mapping) or (_type_has(X, "select_columns") and not isinstance(X, Sized)):
        _check_container(X, owner)
    if _type_has(X, "select_columns"):  # a data set of Hugging Face
        return [Column(name, list(X[name])) for name in X.column_names]
    if _is_series(X):
        name = getattr(X, "name", None)
        name = str(name) if isinstance(name, str) and name else None
        return [Column(name, cells_of(X), labels_of(X))]
    if type(X) not in (list, tuple):
        _check_container(X, owner)
    return _from_list(list(X))


def _chosen(found: list[Column], chains: Sequence[str | int], region: str | None) -> list[Column]:
    """Choose the columns that hold chains, and that of the regions."""
    names = [column.name for column in found]
    is_list = isinstance(chains, list | tuple | np.ndarray)
    wanted = list(chains) if is_list else [chains]
    chosen = []
    for chain in wanted:
        if is_whole(chain) and 0 <= chain < len(found):
            chosen.append(int(chain))
        elif isinstance(chain, str) and names.count(chain) == 1:
            chosen.append(names.index(chain))
        else:
            known = [name for name in names if name is not None]
            raise InputError(
                f"Got chains={chains!r}, but X has no such column as {chain!r}; it has "
                f"{known or len(found)}.{similar(chain, known)} Name columns by their names, or by "
                "their numbers from 0."
            )
    if not chosen or len(set(chosen)) < len(chosen):
        raise InputError(f"Got chains={chains!r}; name each column once, and at least one.")
    regions = [i for i, name in enumerate(names) if name is not None and name == region]
    return [found[i] for i in [*(i for i in chosen if i not in regions), *regions]]


def _joined(X: Any) -> str:
    """Write how to join rows of letters."""
    if _type_has(X, "iloc"):
        return 'X.agg("".join, axis=1)'
    rows = "X.rows()" if _type_has(X, "rows") else "X"
    rows = "X.astype(str)" if isinstance(X, np.ndarray) and X.dtype.kind == "S" else rows
    return f'["".join(row) for row in {rows}]'


def _selection(X: Any, found: Sequence[Column], kept: Sequence[Column]) -> str:
    """Write how to pass only some of the columns."""
    names = [column.name for column in kept]
    at = [i for i, column in enumerate(found) if any(column is one for one in kept)]
    if isinstance(X, np.ndarray):
        return f"X[:, {at}]"
    if _type_has(X, "fetchall"):
        return f"X.select({', '.join(map(repr, names))})"
    if _type_has(X, "select_columns"):
        return f"X.select_columns({names!r})"
    if _type_has(X, "columns"):
        named = None not in names
        if _type_has(X, "iloc"):
            return f"X[{names!r}]" if named else f"X.iloc[:, {at}]"
        return f"X[{names!r}]" if _type_has(X, "get_column") else f"X.select({names!r})"
    keys = [repr(i if name is None else name) for i, name in zip(at, names, strict=True)]
    if len(keys) == 1:
        return f"[row[{keys[0]}] for row in X]"
    return f"[[{', '.join(f'row[{key}]' for key in keys)}] for row in X]"


def _from_array(X: NDArray[Any], owner: str) -> list[Column]:
    if X.ndim == 1:
        return [Column(None, cells_of(X))]
    if X.ndim == 2:
        return [Column(None, cells_of(X[:, j])) for j in range(X.shape[1])]
    raise TypeError(
        f"{owner} got an array of {X.ndim} dimensions. Pass one dimension (sequences), or two "
        "(rows x chains)."
    )


def _from_frame(X: Any) -> list[Column]:
    if _type_has(X, "column_names"):  # Arrow, where .columns are the columns themselves
        return [Column(n, cells_of(c)) for n, c in zip(X.column_names, X.columns, strict=True)]
    names = list(X.columns)
    if _type_has(X, "iloc"):  # pandas allows two columns of the same name
        cells = [cells_of(X.iloc[:, j]) for j in range(len(names))]
    else:
        cells = [cells_of(X[name]) for name in names]
    labels = labels_of(X)
    return [Column(n, c, labels) for n, c in zip(_names(names), cells, strict=True)]


def labels_of(X: Any) -> Sequence[object] | None:
    """Give the index of a pandas object, if it is more than the numbers of the rows."""
    if not _type_has(X, "iloc"):
        return None
    index = X.index
    is_default = getattr(index, "start", None) == 0 and getattr(index, "step", None) == 1
    return None if is_default else index


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
    if kinds and all(issubclass(kind, Mapping) for kind in kinds):
        return _from_mappings(rows)
    of_chains = {kind for kind in kinds if issubclass(kind, list | tuple) and not is_record(kind)}
    if not of_chains:
        return [Column(None, rows)]
    if kinds != of_chains:
        odd = next(i for i, row in enumerate(rows) if type(row) not in of_chains)
        raise InputError(
            f"Some rows are lists of chains, but row {odd} is a {type(rows[odd]).__name__}. "
            "Pass one sequence for every row, or a list of chains for every row."
        )
    width = len(rows[0])
    if any(issubclass(kind, tuple) for kind in of_chains) and any(len(row) != 1 for row in rows):
        alone = "label, sequence" if width == 2 else "sequence, *_"
        raise InputError(
            "The rows are tuples. If they are (label, sequence) pairs, pass the sequences alone: "
            f"[sequence for {alone} in rows]. If they are the chains of one molecule, pass lists: "
            "list(map(list, rows))."
        )
    odd = next((i for i, row in enumerate(rows) if len(row) != width), -1)
    if odd >= 0:
        raise InputError(
            f"Row 0 has {width} chains, but row {odd} has {len(rows[odd])}. Give every row the "
            "same number, with None for a chain that is missing. If a row is one sequence, "
            'letter by letter, join them: ["".join(row) for row in X].'
        )
    return _from_rows([None] * width, rows)


def _from_rows(names: Sequence[str | None], rows: Sequence[Any]) -> list[Column]:
    return [Column(name, [row[j] for row in rows]) for j, name in enumerate(names)]


def _from_mappings(rows: Sequence[Mapping[Any, object]]) -> list[Column]:
    """Read rows that have names for their cells, such as those of csv.DictReader."""
    names = list(rows[0])
    odd = next((i for i, row in enumerate(rows) if row.keys() != rows[0].keys()), -1)
    if odd >= 0:
        raise InputError(
            f"Row 0 has the keys {names}, but row {odd} has {list(rows[odd])}. Give every row the "
            "same keys, with None for what is missing."
        )
    return [
        Column(n, [row[key] for row in rows]) for n, key in zip(_names(names), names, strict=True)
    ]


def cells_of(column: Any) -> list[object]:
    """List the cells of anything that is one-dimensional."""
    name = next((name for name in _TO_LIST if _type_has(column, name)), None)
    cells = column if name is None else getattr(column, name)()
    # StringDType lets anything stand for a missing value.
    na = getattr(getattr(column, "dtype", None), "na_object", None)
    return list(cells) if na is None else [None if cell is na else cell for cell in cells]


_LAZY: list[tuple[tuple[str, ...], str]] = [
    (("toPandas", "collect"), "X.toPandas()"),  # Spark
    (("collect", "collect_schema"), "X.collect()"),  # Polars
    (("compute", "persist"), "X.compute()"),  # Dask
    (("to_pandas", "execute"), "X.to_pandas()"),  # Ibis
    (("fetchall", "execute"), "X.fetchall()"),  # cursors of databases
]
"""What types have whose values are computed when they are asked for, and how to ask."""


def _check_lazy(X: object, owner: str) -> None:
    for names, remedy in _LAZY:
        if all(_type_has(X, name) for name in names):
            raise TypeError(
                f"{owner} got a {type(X).__name__}, whose rows are not computed yet. Pass {remedy}."
            )


def _check_container(X: object, owner: str) -> None:
    """Raise TypeError for objects without rows, without an order, or that can be read only once."""
    name = f"a {type(X).__name__}"
    if isinstance(X, str | bytes | bytearray):
        got, remedy = "a single string", "Pass a list: [sequence]; for a file, read_fasta(path)"
    elif is_record(X) or is_biopython_seq(X):
        got, remedy = f"a single {type(X).__name__}", "Pass a list: [record]"
    elif isinstance(X, Mapping | ItemsView):
        got, remedy = name, _remedy_for_mapping(X)
    elif isinstance(X, Set) and not isinstance(X, KeysView):
        got, remedy = f"{name}, which has no order", "Pass a list: sorted(sequences)"
    elif isinstance(X, os.PathLike):
        got, remedy = "a path", "Pass what is in the file: read_fasta(path)"
    elif isinstance(X, Iterator):
        got, remedy = f"{name}, which the first look would use up", "Pass a list: list(sequences)"
    elif _type_has(X, "nnz"):
        got, remedy = "sparse data", "Pass sequences as text"
    elif isinstance(X, Sized) and isinstance(X, Iterable):
        return
    elif _type_has(X, "select_columns"):  # a data set of Hugging Face that is streamed
        got = f"{name}, which has no length"
        remedy = 'Pass a list, such as [row["sequence"] for row in X]'
    else:
        got, remedy = type(X).__name__, "Pass a list of sequences, a Series or a data frame"
    raise TypeError(f"{owner} needs protein sequences, one for each row, but got {got}. {remedy}.")


def _remedy_for_mapping(X: Mapping[Any, object] | ItemsView[Any, object]) -> str:
    values = list(X.values()) if isinstance(X, Mapping) else []
    if any(_type_has(value, "select_columns") for value in values):  # splits of a data set
        return f"Pass one of its parts: X[{next(iter(X))!r}]"
    if values and all(isinstance(value, list) for value in values):
        return "Pass one of its lists, or a data frame: pandas.DataFrame(d)"
    return "Pass its sequences: list(d.values())"


def _check_empty(found: list[Column], X: Any, owner: str) -> None:
    """Raise InputError, in scikit-learn's words, if there are no rows or no columns."""
    if found and found[0].values:
        return
    what = "sample" if found else "feature"
    shape = tuple(getattr(X, "shape", (0,) if found else (len(X), 0)))
    raise InputError(
        f"Found array with 0 {what}(s) (shape={shape}) while a minimum of 1 is required by {owner}."
    )


def _check_numbers(column: Column, found: Sequence[Column], X: object, owner: str) -> None:
    """Raise TypeError for a column of numbers: the column is wrong, not one cell."""
    first = _first(column)
    if isinstance(first, Number | np.generic) and not isinstance(first, str | bytes):
        which = f"column {column.name!r}" if column.name is not None else "a column"
        text = [other for other in found if isinstance(_first(other), str | bytes)]
        kept = [text[i] for i in may_be_sequences([other[:2] for other in text])]
        example = f": {_selection(X, found, kept)}" if kept else ""
        raise TypeError(
            f"{owner} needs protein sequences as text, but {which} holds numbers (such as "
            f"{first!s:.20}). Select the columns that hold sequences{example}."
        )


def _first(column: Column) -> object:
    cells = (cell for cell in column.values if isinstance(cell, str) or not is_missing(cell))
    return next(cells, None)


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
            f"Got region={region!r}, but X has no column of this name; it has {names}."
            f"{similar(region, [name for name in names if name])} Pass a frame with a column of "
            "sequences and this one, or region=(start, stop) for all rows."
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
