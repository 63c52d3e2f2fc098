"""The file of one shard: a Parquet file that is there when it is complete, and then on the disk.

    id         string
    length     int32, residues of the sequence that the vectors are of
    sequence   string, on request
    embedding  lists of dim float32 or float16; of several layers or poolings a column each,
               embedding_layer6_mean

A file grows under a temporary name in its folder, is brought to the disk, and takes its own name.
Vectors do not compress, and are left as they are, which is quickest to read.
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
"""What vectors can be written as."""

ENDING = ".parquet"
ROW_GROUP = 1024
"""Rows that are read to get one of them."""


@dataclass(frozen=True)
class ShardTable:
    """What the file of a shard looks like."""

    vectors: tuple[str, ...]  # names of the columns of vectors
    dim: int  # components of a vector
    dtype: str  # one of `DTYPES`
    with_sequence: bool
    about: dict[str, str]  # what is written into the file's metadata

    def schema(self) -> Any:
        """Give Arrow's schema."""
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
    """Write rows into the file of a shard, portion after portion; made by `writing`."""

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
        """Write some rows."""
        import pyarrow as pa

        columns = [pa.array(ids, pa.string()), pa.array(lengths, pa.int32())]
        if self._table.with_sequence:
            columns.append(pa.array(sequences, pa.string()))
        dim = self._table.dim
        for i in range(len(self._table.vectors)):
            part = _rounded(values[:, i * dim : (i + 1) * dim], self._table.dtype, first)
            components = pa.array(part.ravel())
            columns.append(pa.FixedSizeListArray.from_arrays(components, dim))
        # Cast: what `from_arrays` gives says that there may be None in it.
        table = pa.table(columns, names=self._schema.names).cast(self._schema)
        self._writer.write_table(table, row_group_size=ROW_GROUP)

    def close(self) -> None:
        """Write what stands at the end of the file."""
        self._writer.close()


@contextmanager
def writing(path: Path, table: ShardTable) -> Iterator[ShardWriter]:
    """Write the file of a shard, completely or not at all; one that is there is replaced."""
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
    """Write a file that is there when it is complete, whatever happens, power cuts included."""
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
    """Remove what processes left behind that were killed while they wrote a file."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        part.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parquet(purpose: str = "Writing shards") -> ModuleType:
    """Import PyArrow's Parquet, or say how to install it."""
    return import_optional("pyarrow.parquet", extra="parquet", purpose=purpose)


def _rounded(values: NDArray[np.float32], dtype: str, first: int) -> NDArray[Any]:
    import numpy as np

    if dtype == "float32":
        return np.ascontiguousarray(values)
    with np.errstate(over="ignore"):  # infinities are told by their row
        rounded = values.astype(np.float16)
    finite = np.isfinite(rounded).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        largest = float(np.abs(values[row]).max())
        raise NumericalError(
            f"The vector of row {first + row} has a component of size {largest:.3g}, and float16 "
            "ends at 65504. Write float32 into another folder (--dtype float32)."
        )
    return rounded


def _abandon(writer: ShardWriter) -> None:
    """Close a writer whose file is not wanted; what it says of a full disk has been said."""
    with suppress(OSError):
        writer.close()


def _name_once(part: Path, path: Path) -> None:
    """Give a file its name, unless another one has it."""
    try:
        os.link(part, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not path.exists():
            part.replace(path)


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where that can be asked for."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
