"""The file of a shard: Parquet, written as a whole or not at all.

    id         string
    length     int32, residues of the sequence that the vectors are of
    sequence   string, on request
    embedding  lists of dim float32 or float16; of several layers or poolings a column each,
               embedding_layer6_mean

A file is written under a temporary name in its folder, flushed to the disk, and renamed. Vectors
are not compressed: it would save little, and they are read faster as they are.

Its metadata, under ``esm2_features``, tell which shard of which job it is. Pages have Parquet's
checksums, which other programs can check. They do not cover the headers of pages and the footer, so
the record of a shard has the checksums of `checksums`, with which `ShardFile` compares what it
reads.
"""

from __future__ import annotations

import json
import zlib
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
METADATA = "esm2_features"
"""Key of the metadata of a file."""
ROW_GROUP = 1024
"""Rows of a row group, which is read as a whole."""


@dataclass(frozen=True)
class ShardTable:
    """The columns of a shard."""

    vectors: Sequence[str]  # names of the columns of vectors
    dim: int
    dtype: str  # one of `DTYPES`
    with_sequence: bool
    about: dict[str, Any]  # for the metadata of the file

    def schema(self, name: str = "") -> Any:
        """Return the schema of Arrow, with metadata for the shard of this name."""
        import pyarrow as pa

        component = pa.float32() if self.dtype == "float32" else pa.float16()
        fields = [("id", pa.string()), ("length", pa.int32())]
        if self.with_sequence:
            fields.append(("sequence", pa.string()))
        fields += [(name, pa.list_(component, self.dim)) for name in self.vectors]
        about = {METADATA: json.dumps(self.about | {"shard": name})}
        return pa.schema([pa.field(*field, nullable=False) for field in fields], about)


def vector_columns(layers: Sequence[int], poolings: Sequence[str]) -> tuple[str, ...]:
    """Name the columns of vectors, in the order of an engine's features."""
    if len(layers) == len(poolings) == 1:
        return ("embedding",)
    return tuple(f"embedding_layer{layer}_{word}" for layer in layers for word in poolings)


class ShardWriter:
    """Writes rows into the file of a shard; made by `writing`."""

    def __init__(self, file: BinaryIO, table: ShardTable, name: str = "") -> None:
        self._table = table
        self._schema = table.schema(name)
        plain = [name for name in self._schema.names if name not in table.vectors]
        self._writer = import_parquet("Writing shards").ParquetWriter(
            file,
            self._schema,
            compression=dict.fromkeys(plain, "zstd")
            | {f"{name}.list.element": "none" for name in table.vectors},
            use_dictionary=False,
            write_statistics=["id", "length"],
            write_page_checksum=True,
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
        writer = ShardWriter(file, table, path.name.removesuffix(ENDING))
        try:
            yield writer
        except BaseException:
            with suppress(OSError):  # a full disk has been reported before
                writer.close()
            raise
        writer.close()


class ShardFile:
    """The file of a shard, opened for reading.

    ``expected`` are its `checksums`; without them, as in format 1, nothing is compared. Raises
    ValueError or OSError if the file is not what it was; so do the methods.
    """

    def __init__(self, path: Path, expected: Sequence[int] = ()) -> None:
        import pyarrow as pa

        parquet = import_parquet("Reading shards")
        # Not mapped into memory: a disk that fails would end the process.
        self._file = pa.OSFile(str(path))
        try:
            if expected and zlib.crc32(_footer_of(self._file)) != expected[0]:
                raise ValueError("the checksum of its footer is another")
            self._parquet = parquet.ParquetFile(self._file)
        except BaseException:
            self._file.close()
            raise
        self._expected = expected
        self.schema = self._parquet.schema_arrow
        metadata = self._parquet.metadata
        self.group_rows = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
        if expected and len(expected) != 1 + len(self.group_rows) * metadata.num_columns:
            raise ValueError("its record has checksums of another file")

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._parquet.close()
        self._file.close()

    @property
    def about(self) -> dict[str, Any]:
        """The metadata about the shard and its job."""
        about = json.loads((self.schema.metadata or {}).get(METADATA.encode(), b"{}"))
        return about if isinstance(about, dict) else {}

    def compare(self, schema: Any, rows: int, about: dict[str, str]) -> None:
        """Raise ValueError if the file has other columns, rows or metadata."""
        for name, value in about.items():
            if self.about.get(name) != value:
                raise ValueError(f"its metadata are of something else: {name!r} is another")
        for field in schema:
            if self.schema.field(field.name).type != field.type:
                raise ValueError(f"its columns are others: {self.schema.field(field.name)}")
        if sum(self.group_rows) != rows:
            raise ValueError(f"it has {sum(self.group_rows)} rows, and not {rows}")

    def checksums(self) -> Iterator[int]:
        """Yield the CRC-32 of the footer, and of each column of each row group."""
        yield zlib.crc32(_footer_of(self._file))
        for group in range(len(self.group_rows)):
            for column in range(self._parquet.metadata.num_columns):
                yield self._checksum(group, column)

    def column(self, name: str, groups: Sequence[int] | None = None) -> Any:
        """Read a column, of some row groups or of all, as one array of Arrow."""
        groups = range(len(self.group_rows)) if groups is None else groups
        at = self.schema.names.index(name)
        n_columns = self._parquet.metadata.num_columns
        for group in groups if self._expected else ():
            if self._checksum(group, at) != self._expected[1 + group * n_columns + at]:
                raise ValueError(f"the checksum of {name!r}, row group {group}, is another")
        return self._parquet.read_row_groups(list(groups), [name]).column(0).combine_chunks()

    def _checksum(self, group: int, column: int) -> int:
        """Return the CRC-32 of a column of a row group: headers of pages, and pages."""
        chunk = self._parquet.metadata.row_group(group).column(column)
        return zlib.crc32(self._file.read_at(chunk.total_compressed_size, chunk.data_page_offset))


def checksums(path: Path) -> tuple[int, ...]:
    """Return the CRC-32 of the footer of a file, and of each column of each row group."""
    with ShardFile(path) as file:
        return tuple(file.checksums())


def _footer_of(file: Any) -> bytes:
    """Read the footer of Parquet: metadata, their length, and the file's last letters."""
    size = file.size()
    length = int.from_bytes(file.read_at(8, max(0, size - 8))[:4], "little")
    footer: bytes = file.read_at(length + 8, max(0, size - 8 - length))
    return footer


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
