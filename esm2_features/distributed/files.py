"""The file of a shard: Parquet, written as a whole or not at all.

    id         string
    length     int32, residues of the sequence that the vectors are of
    sequence   string, on request
    embedding  lists of dim float32 or float16; of several layers or poolings a column each,
               embedding_layer6_mean

A file is written under a temporary name in its folder, flushed to the disk, and renamed. Vectors
are not compressed: it would save little, and they are read faster as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from esm2_features._arrow import import_parquet, vector_column
from esm2_features._files import atomic_write
from esm2_features.exceptions import NumericalError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DTYPES = ("float32", "float16")
"""Types of the vectors in the files."""

ENDING = ".parquet"
ROW_GROUP = 1024
"""Rows of a row group, which is read as a whole."""


@dataclass(frozen=True)
class ShardTable:
    """The columns of a shard."""

    vectors: tuple[str, ...]  # names of the columns of vectors
    dim: int
    dtype: str  # one of `DTYPES`
    with_sequence: bool
    about: dict[str, str]  # for the metadata of the file

    def schema(self) -> Any:
        import pyarrow as pa

        component = pa.float32() if self.dtype == "float32" else pa.float16()
        fields = [("id", pa.string()), ("length", pa.int32())]
        if self.with_sequence:
            fields.append(("sequence", pa.string()))
        fields += [(name, pa.list_(component, self.dim)) for name in self.vectors]
        about = {"esm2_features": json.dumps(self.about)}
        return pa.schema([pa.field(*field, nullable=False) for field in fields], about)


def vector_columns(layers: Sequence[int], poolings: Sequence[str]) -> tuple[str, ...]:
    """Name the columns of vectors, in the order of an engine's features."""
    if len(layers) == len(poolings) == 1:
        return ("embedding",)
    return tuple(f"embedding_layer{layer}_{word}" for layer in layers for word in poolings)


class ShardWriter:
    """Writes rows into the file of a shard; made by `writing`."""

    def __init__(self, file: BinaryIO, table: ShardTable) -> None:
        self._table = table
        self._schema = table.schema()
        plain = [name for name in self._schema.names if name not in table.vectors]
        self._writer = import_parquet("Writing shards").ParquetWriter(
            file,
            self._schema,
            compression=dict.fromkeys(plain, "zstd")
            | {f"{name}.list.element": "none" for name in table.vectors},
            use_dictionary=False,
            write_statistics=["id", "length"],
        )

    def add(
        self,
        ids: Sequence[str],
        sequences: Sequence[str],
        lengths: Sequence[int],
        values: NDArray[np.float32],
        *,
        first: int,
    ) -> None:
        """Write some rows; ``first`` is the row of the first in its input."""
        import numpy as np
        import pyarrow as pa

        columns = [pa.array(ids, pa.string()), pa.array(lengths, pa.int32())]
        if self._table.with_sequence:
            columns.append(pa.array(sequences, pa.string()))
        parts = np.split(values, len(self._table.vectors), axis=1)
        remedy = "Write float32 into another folder (--dtype float32)."
        columns += [
            vector_column(
                rounded(part, self._table.dtype, lambda row: f"row {first + row}", remedy)
            )
            for part in parts
        ]
        # The cast makes the components of `vector_column` not nullable.
        table = pa.table(columns, names=self._schema.names).cast(self._schema)
        self._writer.write_table(table, row_group_size=ROW_GROUP)

    def close(self) -> None:
        """Write the footer of the file."""
        self._writer.close()


@contextmanager
def writing(path: Path, table: ShardTable) -> Iterator[ShardWriter]:
    """Write the file of a shard as a whole or not at all; an old file is replaced."""
    with atomic_write(path, sync=True) as file:
        writer = ShardWriter(file, table)
        try:
            yield writer
        except BaseException:
            with suppress(OSError):  # a full disk has been reported before
                writer.close()
            raise
        writer.close()


def rounded(
    values: NDArray[np.float32], dtype: str, name: Callable[[int], str], remedy: str
) -> NDArray[Any]:
    """Round vectors to the type of a file; ``name`` names a row of them in the error."""
    import numpy as np

    if dtype == "float32":
        return np.ascontiguousarray(values)
    with np.errstate(over="ignore"):  # reported below
        rounded = values.astype(np.float16)
    finite = np.isfinite(rounded).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        largest = float(np.abs(values[row]).max())
        raise NumericalError(
            f"The vector of {name(row)} has a component of size {largest:.3g}, and the largest "
            f"float16 is 65504. {remedy}"
        )
    return rounded
