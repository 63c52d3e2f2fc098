"""Tables of predictions: CSV, TSV and Parquet, or CSV on standard output."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

from esm2_features._arrow import import_parquet
from esm2_features._io.cells import harmless
from esm2_features._io.paths import Output, atomic_output, check_output

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMATS = ("csv", "tsv", "parquet")
STANDARD_OUTPUT = "-"


def check_table_output(path: str | os.PathLike[str], *, force: bool = False) -> Output | None:
    """Check, before anything is computed, that a table can be written; None is standard output."""
    if os.fspath(path) == STANDARD_OUTPUT:
        return None
    output = check_output(path, formats=FORMATS, force=force)
    if output.format == "parquet":
        import_parquet("Writing Parquet")
    return output


def write_table(
    output: Output | None, columns: Mapping[str, Sequence[object] | NDArray[Any]]
) -> None:
    """Write columns of one length, completely or not at all."""
    if output is None:
        _write_text(sys.stdout, columns, ",")
        return
    with atomic_output(output) as part:
        if output.format == "parquet":
            import pyarrow as pa

            import_parquet("Writing Parquet").write_table(pa.table(dict(columns)), part)
            return
        with part.open("x", encoding="utf-8", newline="") as file:
            _write_text(file, columns, "," if output.format == "csv" else "\t")


def _write_text(
    file: IO[str], columns: Mapping[str, Sequence[object] | NDArray[Any]], delimiter: str
) -> None:
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    writer.writerow(columns)
    # Lists hold Python's numbers, which are written with enough digits to read the same back.
    lists = [
        getattr(values, "tolist", lambda values=values: values)() for values in columns.values()
    ]
    writer.writerows(map(harmless, row) for row in zip(*lists, strict=True))
