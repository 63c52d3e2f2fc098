"""Vectors as Arrow's lists of a fixed size, and Parquet that is read within bounds.

A Parquet file of 3 kB may hold 12 GB: a value that repeats is written once, and pages are
compressed. So the footer, which says how many rows and bytes there are, is checked before any page
is read, and pages are read in batches that have a bounded number of bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from esm2_features.exceptions import import_optional

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BATCH_ROWS, _BATCH_BYTES = 1 << 16, 1 << 26
# Bounds that no real table meets: even of one in which all rows are alike, writers make a byte for
# each 40 rows, and text that compresses 2,000 times is one sequence again and again.
_ROWS, _ROWS_PER_BYTE = 10**6, 1000
_BYTES, _BYTES_PER_BYTE = 1 << 26, 10_000


class FooterError(ValueError):
    """A Parquet file says of itself what cannot be."""


def vector_column(rows: NDArray[Any]) -> Any:
    """Make a column of vectors, each a list of dim components, of an array of shape (n, dim)."""
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


def import_parquet(purpose: str) -> ModuleType:
    """Import PyArrow's Parquet, or name the extra that installs it."""
    return import_optional("pyarrow.parquet", extra="parquet", purpose=purpose)


def open_parquet(source: Any, purpose: str, **options: Any) -> Any:
    """Open a path or a binary file as a `pyarrow.parquet.ParquetFile`, and check its footer.

    Columns of text are read as dictionaries: a long text that repeats is in memory once.

    Raises
    ------
    FooterError
        If the footer contradicts itself, or promises more than any real table has: more than a
        million rows and 1,000 for each byte of the file, or 64 MB and 10,000 times its size.
    MissingDependencyError
        If pyarrow is not installed.
    """
    import_parquet(purpose)
    import pyarrow.parquet
    import pyarrow.types as kinds

    is_path = isinstance(source, str | os.PathLike)
    size = os.stat(source).st_size if is_path else source.seek(0, os.SEEK_END)  # noqa: PTH116
    file = pyarrow.parquet.ParquetFile(source, **options)
    try:
        _check_footer(file.metadata, size)
        texts = [
            field.name
            for field in file.schema_arrow
            if kinds.is_string(field.type)
            or kinds.is_large_string(field.type)
            or kinds.is_binary(field.type)
            or kinds.is_large_binary(field.type)
        ]
        if texts:
            options |= {"metadata": file.metadata, "read_dictionary": texts}
            again = pyarrow.parquet.ParquetFile(source, **options)
            file, first = again, file
            first.close()
    except BaseException:
        file.close()
        raise
    return file


def batches_of(
    file: Any, columns: Sequence[str], *, groups: Sequence[int] | None = None, most: int = 0
) -> Iterator[Any]:
    """Yield record batches of some columns with a bounded number of rows and bytes.

    Raises
    ------
    FooterError
        If there are fewer rows than the footer says.
    """
    # Group by group, because one iterator over all of them keeps what it has read.
    for group in range(file.num_row_groups) if groups is None else groups:
        about = file.metadata.row_group(group)
        left = about.num_rows
        rows = _BATCH_BYTES * left // max(1, about.total_byte_size)
        rows = max(1, min(rows, most or _BATCH_ROWS))
        for batch in file.iter_batches(rows, row_groups=[group], columns=list(columns)):
            left -= len(batch)
            yield batch
        if left:
            raise FooterError(f"{left} of {about.num_rows} rows of row group {group} are missing")


def cells_of(column: Any) -> list[Any]:
    """Make a list of the values of a column; those of a dictionary are shared between rows."""
    import pyarrow as pa

    if not isinstance(column, pa.DictionaryArray):
        return list(column.to_pylist())
    values = column.dictionary.to_pylist()
    return [None if i is None else values[i] for i in column.indices.to_pylist()]


def _check_footer(metadata: Any, size: int) -> None:
    # Columns are not asked: PyArrow ends the process if what it has of them is damaged.
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    rows = [group.num_rows for group in groups]
    unpacked = [group.total_byte_size for group in groups]
    if min(rows + unpacked, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise FooterError("the numbers of rows in its footer contradict each other")
    check_proportion("rows", metadata.num_rows, size, _ROWS, _ROWS_PER_BYTE)
    check_proportion("unpacked bytes", sum(unpacked), size, _BYTES, _BYTES_PER_BYTE)


def check_proportion(what: str, n: int, size: int, free: int, per_byte: float) -> None:
    """Raise FooterError if a file of so many bytes cannot have n rows or the like."""
    if n > free and n > per_byte * size:
        raise FooterError(
            f"its footer promises {n:,} {what}, more than a real file of {size:,} bytes has"
        )
