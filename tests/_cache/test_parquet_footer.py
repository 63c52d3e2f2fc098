"""The footer of a Parquet file is read as PyArrow reads it, and a damaged one is an error."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from esm2_features._cache.parquet_footer import column_sizes


def footer(content):
    return io.BytesIO(content + len(content).to_bytes(4, "little") + b"PAR1")


@pytest.mark.parametrize("version", ["1.0", "2.6"])
def test_sizes_are_those_of_pyarrow(version):
    file = io.BytesIO()
    columns = {
        "key": [b"%032d" % i for i in range(1000)],
        "layer": list(range(1000)),
        "vector": [[float(i)] * 7 for i in range(1000)],
    }
    # More columns than fit into the short form of a list, and several row groups.
    columns |= {f"more_{i}": ["text"] * 1000 for i in range(20)}
    pq.write_table(pa.table(columns), file, row_group_size=300, version=version)
    metadata = pq.ParquetFile(file).metadata
    expected = {}
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            name = column.path_in_schema.split(".")[0]
            values, unpacked = expected.get(name, (0, 0))
            values += column.num_values
            expected[name] = values, unpacked + column.total_uncompressed_size
    assert column_sizes(file) == expected
    assert expected["vector"][0] == 7000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        bytes([0x19, 0xF1]) + b"\xff" * 6 + b"\x01",  # a list of 4 trillion truth values
        bytes([0x19, 0xF7]) + b"\xff" * 6 + b"\x01",  # or of real numbers
        bytes([0x18]) + b"\xff" * 6 + b"\x01",  # a text of as many letters
        bytes([0x1C]) * 10_000,  # structures in structures
        bytes([0x1D, 0]),  # a type that there is not
        bytes([0x49, 0x15, 2]),  # numbers in the place of row groups
    ],
)
def test_a_damaged_footer_is_an_error(content):
    with pytest.raises(ValueError, match="its footer is damaged"):
        column_sizes(footer(content))
