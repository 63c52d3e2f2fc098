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

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO

from esm2_features.exceptions import NumericalError, import_optional

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
        """Return the schema of Arrow."""
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
        plain = ["id", "length", *(["sequence"] if table.with_sequence else [])]
        self._writer = parquet().ParquetWriter(
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
        import pyarrow as pa

        columns = [pa.array(ids, pa.string()), pa.array(lengths, pa.int32())]
        if self._table.with_sequence:
            columns.append(pa.array(sequences, pa.string()))
        dim = self._table.dim
        for i in range(len(self._table.vectors)):
            part = _rounded(values[:, i * dim : (i + 1) * dim], self._table.dtype, first)
            components = pa.array(part.ravel())
            columns.append(pa.FixedSizeListArray.from_arrays(components, dim))
        # The cast makes the components of `from_arrays` not nullable.
        table = pa.table(columns, names=self._schema.names).cast(self._schema)
        self._writer.write_table(table, row_group_size=ROW_GROUP)

    def close(self) -> None:
        """Write the footer of the file."""
        self._writer.close()


@contextmanager
def writing(path: Path, table: ShardTable) -> Iterator[ShardWriter]:
    """Write the file of a shard as a whole or not at all; an old file is replaced."""
    with atomic_write(path) as file:
        writer = ShardWriter(file, table)
        try:
            yield writer
        except BaseException:
            _abandon(writer)
            raise
        writer.close()


@contextmanager
def atomic_write(path: Path, *, once: bool = False) -> Iterator[BinaryIO]:
    """Write a file as a whole or not at all; with ``once``, an old file is kept."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if once:
            _name_once(part, path)
        else:
            part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def remove_parts(path: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote a file."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        part.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parquet(purpose: str = "Writing shards") -> ModuleType:
    """Import PyArrow's Parquet, or raise MissingDependencyError."""
    return import_optional("pyarrow.parquet", extra="parquet", purpose=purpose)


def _rounded(values: NDArray[np.float32], dtype: str, first: int) -> NDArray[Any]:
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
            f"The vector of row {first + row} has a component of size {largest:.3g}, and the "
            "largest float16 is 65504. Write float32 into another folder (--dtype float32)."
        )
    return rounded


def _abandon(writer: ShardWriter) -> None:
    """Close a writer whose file is discarded; a full disk has been reported before."""
    with suppress(OSError):
        writer.close()


def _name_once(part: Path, path: Path) -> None:
    """Rename a file, unless there is one of that name."""
    try:
        os.link(part, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not path.exists():
            part.replace(path)


def _sync_folder(folder: Path) -> None:
    """Flush the names of a folder to the disk, where the system can."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
