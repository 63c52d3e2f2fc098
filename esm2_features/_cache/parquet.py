"""Parquet files of `Cache.export` and `Cache.import_`.

One row for each vector, with the columns

    key            32 bytes: the digest of everything that determines the vector
    model          name of the checkpoint for people; may be empty
    checkpoint, layer, pooling, precision, dtype      the rest of a `Spec`
    vector         d float32

Every value is checked; errors name the row, from 0. A file may be larger than memory.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from esm2_features._arrow import (
    batches_of,
    cells_of,
    check_proportion,
    import_parquet,
    open_parquet,
    vector_column,
)
from esm2_features._cache.keys import KEY_BYTES, KeyedVectors, Spec
from esm2_features._cache.parquet_footer import column_sizes
from esm2_features._cache.vector_files import check_finite, listed, unreadable
from esm2_features._files import atomic_write
from esm2_features._inputs.options import CACHE_DTYPES, CACHED_POOLINGS, PRECISIONS
from esm2_features.exceptions import InputError, MissingDependencyError, shorten

_FORMAT = 1  # increase it when older versions would misread a file
# Vectors that are compressed and read together: 5 MB at 320 components, 84 MB at 5120.
_GROUP_ROWS = 4096
_BATCH_ROWS = 1024
# Vectors are numbers that hardly compress, and names are short.
_COMPONENTS, _COMPONENTS_PER_BYTE = 1 << 24, 8
_TEXT, _TEXT_PER_BYTE = 1 << 20, 64
_OF_SPEC = ("model", "checkpoint", "layer", "pooling", "precision", "dtype")
_TEXTS = [name for name in _OF_SPEC if name != "layer"]
_NAMES = ("key", *_OF_SPEC, "vector")
_KNOWN = {
    "layer": range(1 << 31),
    "pooling": CACHED_POOLINGS,
    "precision": PRECISIONS,
    "dtype": CACHE_DTYPES,
}


def write_parquet(path: Path, parts: Iterable[KeyedVectors]) -> int:
    """Write vectors of any number of specs into one file, and return how many."""
    parquet = import_parquet("Writing Parquet")
    path = path.resolve()  # a link stays a link: what it points to is replaced
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent} to write to. Make it first.")
    if path.is_dir():
        raise InputError(f"{path} is a folder. Choose another name for the file.")
    filled = (part for part in parts if len(part.keys))
    first = next(filled, None)
    if first is None:
        raise InputError(
            f"There are no vectors to write to {path}. Embed some sequences first, or choose a "
            "model, a layer and a pooling that the cache holds."
        )
    with atomic_write(path) as file:
        return _write_groups(parquet, file, first, filled)


def _write_groups(
    parquet: ModuleType, file: BinaryIO, first: KeyedVectors, others: Iterable[KeyedVectors]
) -> int:
    import pyarrow as pa

    n, dim = 0, first.rows.shape[1]
    schema = _schema(dim).with_metadata({"esm2_features": json.dumps({"format": _FORMAT})})
    waiting = schema.empty_table()
    with parquet.ParquetWriter(
        file,
        schema,
        compression="zstd",
        use_dictionary=_TEXTS,
        # Signs and exponents of all components come together, and so on: that saves a sixth of
        # the room, and more than half where vectors were rounded to float16.
        use_byte_stream_split=["vector.list.element"],
        write_page_checksum=True,
    ) as writer:
        for part in itertools.chain([first], others):
            if part.rows.shape[1] != dim:
                raise _of_two_widths(first, part)
            waiting = pa.concat_tables([waiting, _table(part, schema)])
            while len(waiting) >= _GROUP_ROWS:
                writer.write_table(waiting.slice(0, _GROUP_ROWS))
                waiting = waiting.slice(_GROUP_ROWS)
            n += len(part.keys)
        if len(waiting):
            writer.write_table(waiting)
    return n


def _of_two_widths(first: KeyedVectors, other: KeyedVectors) -> InputError:
    names = [part.spec.words[0] for part in (first, other)]
    option = "model"
    if names[0] == names[1]:  # vectors of the network's width, and log-probabilities of residues
        option = "pooling"
        names = [f"{names[0]} ({part.spec.words[2]})" for part in (first, other)]
    return InputError(
        f"Vectors of {names[0]} have {first.rows.shape[1]} components and those of {names[1]} "
        f"{other.rows.shape[1]}, and in one file all have the same number. Choose one "
        f"({option}=...), and write a file for each."
    )


def read_parquet(path: Path) -> Iterator[KeyedVectors]:
    """Read what `write_parquet` wrote, one row group in memory at a time."""
    start = 0
    for batch in _batches(path):
        columns = _columns(path, start, batch)
        n = len(columns["key"])
        keys = np.frombuffer(b"".join(cells_of(columns["key"])), np.uint8).reshape(n, KEY_BYTES)
        rows = columns["vector"].flatten().to_numpy().reshape(n, -1)
        check_finite(path, rows, start)
        fields = [cells_of(columns[name]) for name in _OF_SPEC]
        members: dict[tuple[Any, ...], list[int]] = {}
        for i, values in enumerate(zip(*fields, strict=True)):
            members.setdefault(values, []).append(i)
        for values, places in members.items():
            spec = Spec(**dict(zip(_OF_SPEC, values, strict=True)))
            _check_spec(path, start + places[0], spec)
            yield KeyedVectors(spec, keys[places], rows[places])
        start += n


def _batches(path: Path) -> Iterator[Any]:
    """Read record batches of at least one row that have all columns, of whatever type."""
    import_parquet("Reading Parquet")
    import pyarrow as pa

    with path.open("rb") as file:  # by Python, so that its OSErrors differ from damage
        try:
            source = open_parquet(file, "Reading Parquet", page_checksum_verification=True)
            schema = source.schema_arrow
            _check_format(path, (schema.metadata or {}).get(b"esm2_features"))
            absent = [name for name in _NAMES if schema.names.count(name) != 1]
            if absent:
                raise InputError(
                    f"{path} lacks {listed(absent)} among its columns, which are "
                    f"{listed(schema.names)}. Give a file that was exported from a cache, with "
                    "each of its columns once; vectors from elsewhere come in by .npz or .csv."
                )
            if not source.metadata.num_rows:
                raise InputError(f"{path} holds no vectors. Give a file that has some.")
            _check_size(file, source.metadata.num_rows)
            # Parquet's checksums are of values; that none is missing is checked there as well.
            for batch in batches_of(source, _NAMES, most=_BATCH_ROWS):
                batch.validate(full=True)  # nobody else checks that text is text
                if len(batch):
                    yield batch
        except (InputError, MissingDependencyError):
            raise
        except (pa.ArrowException, ArithmeticError, MemoryError, OSError, ValueError) as error:
            raise unreadable(path, error) from error


def _check_size(file: BinaryIO, n: int) -> None:
    """Raise FooterError if the columns are larger than those of any export."""
    size = os.fstat(file.fileno()).st_size
    check_proportion("vectors", n, size, 0, 1 / KEY_BYTES)  # keys are random
    for name, column in column_sizes(file).items():
        if name == "vector":
            check_proportion("components", column.values, size, _COMPONENTS, _COMPONENTS_PER_BYTE)
        elif name in _NAMES:
            check_proportion(f"bytes of {name}", column.bytes, size, _TEXT, _TEXT_PER_BYTE)


def _columns(path: Path, start: int, batch: Any) -> dict[str, Any]:
    """Take the columns of a batch, without missing values, in the types they are written in."""
    import pyarrow as pa

    columns = {name: batch.column(name) for name in _NAMES}
    for name, column in columns.items():
        _check_present(path, start, name, column)
    vectors = columns["vector"]
    # An export has lists of a fixed size; others who wrote it again may have freed the size.
    component = getattr(vectors.type, "value_field", None)
    if component is None or component.type != pa.float32():
        raise _wrong_type(path, "vector", vectors.type, "lists of float")
    dim = len(vectors[0])
    if not dim:
        raise InputError(f"{path}, row {start}: the vector has no components. Export it again.")
    _check_present(path, start, "vector", vectors.flatten(), dim)
    for field in _schema(dim):
        column = columns[field.name]
        is_dictionary = isinstance(column, pa.DictionaryArray)
        try:
            values = (column.dictionary if is_dictionary else column).cast(field.type)
        except pa.ArrowException as error:
            found = column.type.value_type if is_dictionary else column.type
            raise _wrong_type(path, field.name, found, str(field.type)) from error
        if is_dictionary:
            values = pa.DictionaryArray.from_arrays(column.indices, values)
        columns[field.name] = values
    return columns


def _schema(dim: int) -> Any:
    import pyarrow as pa

    types = {"key": pa.binary(KEY_BYTES), "layer": pa.int32()}
    types["vector"] = pa.list_(pa.float32(), dim)
    return pa.schema([(name, types.get(name, pa.string())) for name in _NAMES])


def _table(part: KeyedVectors, schema: Any) -> Any:
    import pyarrow as pa

    n = len(part.rows)
    keys = pa.py_buffer(np.ascontiguousarray(part.keys, np.uint8))
    columns = {name: pa.repeat(getattr(part.spec, name), n) for name in _OF_SPEC}
    columns["layer"] = columns["layer"].cast(pa.int32())
    columns["key"] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(KEY_BYTES), n, [None, keys])
    columns["vector"] = vector_column(np.asarray(part.rows, np.float32))
    return pa.table([columns[name] for name in _NAMES], schema=schema)


def _check_format(path: Path, metadata: bytes | None) -> None:
    if metadata is None:  # other programs leave it out
        return
    try:
        version = int(json.loads(metadata)["format"])
    except (ValueError, TypeError, KeyError) as error:
        raise unreadable(path, error) from error
    if version > _FORMAT:
        raise InputError(
            f"{path} has format {version}, and this version of esm2-features reads formats up to "
            f"{_FORMAT}. Upgrade it: pip install --upgrade esm2-features."
        )


def _check_present(path: Path, start: int, name: str, column: Any, width: int = 1) -> None:
    if column.null_count:
        row = start + int(column.is_null().to_numpy(zero_copy_only=False).argmax()) // width
        raise InputError(f"{path}, row {row}: the column {name!r} has no value. Remove the row.")


def _check_spec(path: Path, row: int, spec: Spec) -> None:
    for name, known in _KNOWN.items():
        if (value := getattr(spec, name)) not in known:
            raise InputError(
                f"{path}, row {row}: there is no {name} {shorten(repr(value))}. Remove the row, or "
                "upgrade esm2-features, if a newer version has it."
            )


def _wrong_type(path: Path, name: str, found: object, needed: str) -> InputError:
    return InputError(
        f"{path}: the column {name!r} holds {found}, where {needed} is needed. Export it again, "
        "and let no other program change its type."
    )
