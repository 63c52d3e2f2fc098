"""The footer of a Parquet file: how many values and bytes each column has, before any is read.

PyArrow gives these numbers, too, but ends the process on some damaged footers. They are in Thrift's
compact protocol: fields of a structure have a type, and the difference of their number to the last.
"""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO, NamedTuple

_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)
# Of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData in parquet.thrift.
_ROW_GROUPS, _COLUMNS, _META_DATA, _PATH, _NUM_VALUES, _UNPACKED_SIZE = 4, 1, 3, 3, 5, 6


class ColumnSize(NamedTuple):
    """Numbers of values and bytes of a column in all row groups."""

    values: int  # of a list, its elements
    bytes: int  # unpacked; a value that repeats may count once


def column_sizes(file: BinaryIO) -> dict[str, ColumnSize]:
    """Read the sizes of the columns of a file by their names; parts of a column are added up.

    Raises
    ------
    ValueError
        If the footer is damaged.
    """
    file.seek(-8, os.SEEK_END)
    length = int.from_bytes(file.read(4), "little")
    file.seek(-8 - length, os.SEEK_END)
    sizes: dict[str, ColumnSize] = {}
    try:
        for group in _structure(io.BytesIO(file.read(length)))[_ROW_GROUPS]:
            for chunk in group[_COLUMNS]:
                about = chunk[_META_DATA]
                name = about[_PATH][0].decode()
                values, unpacked = sizes.get(name, ColumnSize(0, 0))
                values, unpacked = values + about[_NUM_VALUES], unpacked + about[_UNPACKED_SIZE]
                sizes[name] = ColumnSize(values, unpacked)
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("its footer is damaged") from error
    return sizes


def _structure(data: BinaryIO) -> dict[int, Any]:
    fields: dict[int, Any] = {}
    number = 0
    while (head := data.read(1)[0]) != _STOP:
        kind, step = head & 15, head >> 4
        number = number + step if step else _zigzag(data)
        fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else _value(data, kind)
    return fields


def _value(data: BinaryIO, kind: int) -> Any:
    if kind in _INTEGERS:
        return _zigzag(data)
    if kind == _BINARY:
        return _taken(data, _varint(data))
    if kind == _STRUCT:
        return _structure(data)
    if kind in (_LIST, _SET):
        head = data.read(1)[0]
        n, kind = head >> 4, head & 15
        return [_value(data, kind) for _ in range(_varint(data) if n == 15 else n)]
    if kind in (_TRUE, _FALSE, _BYTE, _DOUBLE):  # in lists, a truth value takes a byte
        return _taken(data, 8 if kind == _DOUBLE else 1)
    raise ValueError("its footer is damaged")


def _taken(data: BinaryIO, n: int) -> bytes:
    content = data.read(n)
    if len(content) < n:  # or a list of a billion of nothing would be made
        raise IndexError("the footer ends here")
    return content


def _zigzag(data: BinaryIO) -> int:
    n = _varint(data)
    return n >> 1 ^ -(n & 1)


def _varint(data: BinaryIO) -> int:
    n = shift = 0
    while True:
        byte = data.read(1)[0]
        n |= (byte & 127) << shift
        if byte < 128:
            return n
        shift += 7
