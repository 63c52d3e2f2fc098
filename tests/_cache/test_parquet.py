"""What leaves a cache comes in again bit by bit, and what cannot be right does not come in."""

from __future__ import annotations

import dataclasses
import json
import sys
import tracemalloc
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from full_disk import no_room
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from esm2_features._cache.keys import KeyedVectors, Spec
from esm2_features._cache.parquet import read_parquet, write_parquet
from esm2_features._inputs.options import EVERY_POOLING
from esm2_features.exceptions import InputError, MissingDependencyError

DIM = 3
SPEC = Spec("sha256:46f0", 6, "mean", "float32", "float32", "tiny")
OTHERS = [
    Spec("sha256:46f0", 6, "cls", "float32", "float32", "tiny"),
    Spec("sha256:beef", 0, "mean", "bfloat16", "float16", ""),
]


def some_part(n=4, *, spec=SPEC, dim=DIM, seed=0):
    rng = np.random.default_rng(seed)
    return KeyedVectors(
        spec,
        rng.integers(0, 256, (n, 32), dtype=np.uint8),
        rng.standard_normal((n, dim)).astype(np.float32),
    )


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def bits(rows):
    return np.ascontiguousarray(rows, np.float32).view(np.uint32)


def gathered(parts):
    """Vector by key, for each spec."""
    found = {}
    for spec, keys, rows in parts:
        assert (keys.dtype, rows.dtype) == (np.uint8, np.float32)
        for key, row in zip(keys, rows, strict=True):
            assert found.setdefault(spec, {}).setdefault(key.tobytes(), row) is row
    return found


def assert_same(parts, expected):
    parts, expected = gathered(parts), gathered(expected)
    assert list(parts) == list(expected)
    for spec, vectors in expected.items():
        assert list(parts[spec]) == list(vectors)
        np.testing.assert_array_equal(
            bits(list(parts[spec].values())), bits(list(vectors.values()))
        )


def damaged(path, *, rows=4, **columns):
    """Write an export in which some columns are others; None takes one away."""
    write_parquet(path, [some_part(rows)])
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.remove_column(place)
        if values is not None:
            table = table.add_column(place, name, values)
    pq.write_table(table, path)
    return path


@given(hnp.arrays(np.uint32, st.tuples(st.integers(1, 5), st.integers(1, 4))))
def test__parquet__keeps_every_bit_pattern(tmp_path_factory, patterns):
    path = tmp_path_factory.mktemp("bits") / "x.parquet"
    rows = patterns.view(np.float32)  # NaNs with a payload and infinities included
    n = len(rows)
    assert write_parquet(path, [some_part(n)._replace(rows=rows)]) == n
    vectors = pq.read_table(path)["vector"].combine_chunks().flatten().to_numpy()
    np.testing.assert_array_equal(bits(vectors).reshape(patterns.shape), patterns)


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 4)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
        | st.sampled_from([-0.0, 2.0**-149]),
    )
)
def test__parquet__round_trip(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("trip") / "x.parquet"
    part = some_part(len(rows))._replace(rows=rows)
    write_parquet(path, [part])
    assert_same(read_parquet(path), [part])


@pytest.mark.parametrize("pooling", [*EVERY_POOLING, "log_probs"])
def test__parquet__every_pooling_that_a_cache_holds_comes_back(tmp_path, pooling):
    part = some_part(3)
    spec = dataclasses.replace(part.spec, pooling=pooling)
    write_parquet(tmp_path / "x.parquet", [part._replace(spec=spec)])
    assert [one.spec for one in read_parquet(tmp_path / "x.parquet")] == [spec]


def test__parquet__is_what_other_programs_can_read(tmp_path):
    part = some_part(spec=OTHERS[1])
    write_parquet(tmp_path / "x.parquet", [part])
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.schema.field("key").type == pa.binary(32)
    assert table.schema.field("layer").type == pa.int32()
    assert table.schema.field("vector").type == pa.list_(pa.float32(), DIM)
    assert table.drop_columns(["key", "vector"]).to_pylist() == 4 * [
        {
            "model": "",
            "checkpoint": "sha256:beef",
            "layer": 0,
            "pooling": "mean",
            "precision": "bfloat16",
            "dtype": "float16",
        }
    ]
    assert json.loads(table.schema.metadata[b"esm2_features"]) == {"format": 1}


def test__parquet__many_small_parts_become_few_row_groups(tmp_path):
    path = tmp_path / "x.parquet"
    parts = [some_part(25, seed=seed) for seed in range(400)]
    parts.insert(7, some_part(0, dim=99))
    assert write_parquet(path, iter(parts)) == 10_000
    metadata = pq.ParquetFile(path).metadata
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sizes == [4096, 4096, 1808]
    assert max(len(part.keys) for part in read_parquet(path)) <= 1024
    assert_same(read_parquet(path), [part for part in parts if len(part.keys)])


def test__parquet__one_large_part_becomes_row_groups(tmp_path):
    part = some_part(10_000)
    write_parquet(tmp_path / "x.parquet", [part])
    assert pq.ParquetFile(tmp_path / "x.parquet").metadata.num_row_groups == 3
    assert_same(read_parquet(tmp_path / "x.parquet"), [part])


def test__parquet__views_of_larger_arrays(tmp_path):
    large = some_part(8, dim=2 * DIM)
    part = KeyedVectors(SPEC, large.keys[::2], large.rows[::2, ::2])
    write_parquet(tmp_path / "x.parquet", [part])
    assert_same(read_parquet(tmp_path / "x.parquet"), [part])


def test__parquet__parts_are_taken_one_by_one(tmp_path):
    taken = []

    def parts():
        for seed in range(3):
            taken.append(seed)
            yield some_part(5000, seed=seed)
            # What was taken before is in the file, or will be, before the next is asked for.
            assert taken == list(range(seed + 1))

    write_parquet(tmp_path / "x.parquet", parts())
    assert taken == [0, 1, 2]


def test__parquet__many_specs_in_turn(tmp_path):
    path = tmp_path / "x.parquet"
    specs = [SPEC, *OTHERS]
    parts = [some_part(1, spec=specs[i % 3], seed=i) for i in range(30)]
    write_parquet(path, parts)
    found = list(read_parquet(path))
    assert [(part.spec, part.spec.model, len(part.keys)) for part in found] == [
        (spec, spec.model, 10) for spec in specs
    ]
    assert_same(found, parts)


def test__parquet__rewritten_by_other_programs(tmp_path):
    path, part = tmp_path / "x.parquet", some_part(2000)
    write_parquet(path, [part])
    table = pq.read_table(path)
    # As pandas and polars have it: sizes that vary, categories, columns moved and added.
    columns = {name: table[name] for name in reversed(table.column_names)}
    columns["vector"] = columns["vector"].cast(pa.large_list(pa.float32()))
    columns["key"] = columns["key"].cast(pa.binary()).cast(pa.large_binary())
    columns["layer"] = columns["layer"].cast(pa.int64())
    columns["checkpoint"] = columns["checkpoint"].cast(pa.large_string())
    columns["pooling"] = columns["pooling"].dictionary_encode()
    columns["note"] = pa.nulls(2000)
    pq.write_table(pa.table(columns), path)
    assert_same(read_parquet(path), [part])


def test__parquet__replaces_what_is_there_through_a_link(tmp_path):
    path, link = tmp_path / "x.parquet", tmp_path / "link.parquet"
    link.symlink_to(path)
    write_parquet(path, [some_part(2)])
    write_parquet(link, [some_part(3)])
    assert link.is_symlink()
    assert [len(part.keys) for part in read_parquet(path)] == [3]
    assert listed(tmp_path) == ["link.parquet", "x.parquet"]


@pytest.mark.parametrize("parts", [[], [some_part(0)]])
def test__write_parquet__nothing_to_write(tmp_path, parts):
    with pytest.raises(InputError, match=r"no vectors to write to .* Embed some sequences first"):
        write_parquet(tmp_path / "x.parquet", parts)
    assert listed(tmp_path) == []


def test__write_parquet__two_dimensions(tmp_path):
    parts = [some_part(), some_part(spec=OTHERS[1], dim=5)]
    with pytest.raises(InputError, match=r"of tiny have 3 .* sha256:beef 5,.* Choose one"):
        write_parquet(tmp_path / "x.parquet", parts)
    assert listed(tmp_path) == []


def test__write_parquet__no_folder_or_a_folder(tmp_path):
    with pytest.raises(InputError, match="There is no folder"):
        write_parquet(tmp_path / "nowhere" / "x.parquet", [some_part()])
    with pytest.raises(InputError, match="is a folder"):
        write_parquet(tmp_path, [some_part()])


def test__write_parquet__leaves_the_previous_file_when_parts_fail(tmp_path):
    def parts():
        yield some_part(5000)
        raise KeyboardInterrupt

    path = tmp_path / "x.parquet"
    path.write_text("precious")
    with pytest.raises(KeyboardInterrupt):
        write_parquet(path, parts())
    assert listed(tmp_path) == ["x.parquet"]
    assert path.read_text() == "precious"


@pytest.mark.parametrize("size", [0, 100, 100_000])
def test__write_parquet__leaves_nothing_behind_when_the_disk_is_full(tmp_path, size):
    with pytest.raises(OSError, match=r"x\.parquet"), no_room(size):
        write_parquet(tmp_path / "x.parquet", [some_part(5000)])
    assert listed(tmp_path) == []


def test__parquet__without_pyarrow(tmp_path, monkeypatch):
    write_parquet(tmp_path / "x.parquet", [some_part()])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    for action in (
        lambda: write_parquet(tmp_path / "y.parquet", [some_part()]),
        lambda: list(read_parquet(tmp_path / "x.parquet")),
    ):
        with pytest.raises(MissingDependencyError, match=r"esm2-features\[parquet\]"):
            action()


def test__read_parquet__missing_columns_are_listed(tmp_path):
    path = damaged(tmp_path / "x.parquet", dtype=None, layer=None)
    with pytest.raises(InputError, match=r"lacks 'layer', 'dtype' among .* 'key', 'model'"):
        list(read_parquet(path))


@pytest.mark.parametrize("name", ["key", "model", "checkpoint", "layer", "dtype", "vector"])
def test__read_parquet__missing_value(tmp_path, name):
    write_parquet(tmp_path / "x.parquet", [some_part(2000)])
    column = pq.read_table(tmp_path / "x.parquet")[name].combine_chunks()
    values = column.to_pylist()
    values[1500] = None
    # pyarrow 15 cannot write a hole among lists of a fixed size; others can.
    kind = pa.list_(pa.float32()) if name == "vector" else column.type
    holes = pa.array(values, kind)
    path = damaged(tmp_path / "x.parquet", rows=2000, **{name: holes})
    with pytest.raises(InputError, match=f"row 1500: the column '{name}' has no value"):
        list(read_parquet(path))


def test__read_parquet__missing_component(tmp_path):
    vectors = pa.array([[1, 2], [3, 4], [5, None], [7, 8]], pa.list_(pa.float32(), 2))
    with pytest.raises(InputError, match="row 2: the column 'vector' has no value"):
        list(read_parquet(damaged(tmp_path / "x.parquet", vector=vectors)))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("key", pa.array([b"short"] * 4)),
        ("key", pa.array(["text"] * 4)),
        ("layer", pa.array([0.5] * 4)),
        ("layer", pa.array([1 << 40] * 4)),
        ("pooling", pa.array([[]] * 4, pa.list_(pa.string()))),
        ("vector", pa.array([1.0] * 4, pa.float32())),
        ("vector", pa.array([[1.0, 2.0]] * 4, pa.list_(pa.float64(), 2))),
        ("vector", pa.array([[1.0], [1.0], [1.0], []], pa.list_(pa.float32()))),
    ],
)
def test__read_parquet__wrong_type(tmp_path, name, values):
    path = damaged(tmp_path / "x.parquet", **{name: values})
    with pytest.raises(InputError, match=f"the column '{name}' holds .* is needed"):
        list(read_parquet(path))


def test__read_parquet__no_components(tmp_path):
    vectors = pa.array([[]] * 4, pa.list_(pa.float32()))
    with pytest.raises(InputError, match="row 0: the vector has no components"):
        list(read_parquet(damaged(tmp_path / "x.parquet", vector=vectors)))


@pytest.mark.parametrize(
    ("name", "value"),
    [("layer", -1), ("pooling", "median"), ("precision", "int8"), ("dtype", "float64")],
)
def test__read_parquet__value_that_no_spec_has(tmp_path, name, value):
    values = [getattr(SPEC, name)] * 3 + [value]
    path = damaged(tmp_path / "x.parquet", **{name: pa.array(values)})
    with pytest.raises(InputError, match=f"row 3: there is no {name} {value!r}"):
        list(read_parquet(path))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test__read_parquet__not_finite(tmp_path, value):
    part = some_part(2000)
    part.rows[1500, 2] = value
    write_parquet(tmp_path / "x.parquet", [part])
    with pytest.raises(InputError, match=f"row 1500: component 2 of the vector is {value}"):
        list(read_parquet(tmp_path / "x.parquet"))


def test__read_parquet__no_rows(tmp_path):
    write_parquet(tmp_path / "x.parquet", [some_part()])
    pq.write_table(pq.read_table(tmp_path / "x.parquet").slice(0, 0), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="holds no vectors"):
        list(read_parquet(tmp_path / "x.parquet"))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [('{"format": 2}', "format 2, .* Upgrade it"), ("{}", "cannot be read"), ("?", "cannot be")],
)
def test__read_parquet__other_format(tmp_path, metadata, message):
    path = tmp_path / "x.parquet"
    write_parquet(path, [some_part()])
    table = pq.read_table(path).replace_schema_metadata({"esm2_features": metadata})
    pq.write_table(table, path)
    with pytest.raises(InputError, match=message):
        list(read_parquet(path))


def test__read_parquet__every_damaged_byte_is_found_or_harmless(tmp_path):
    path, part = tmp_path / "x.parquet", some_part(100)
    write_parquet(path, [part])
    whole = path.read_bytes()
    first_of_footer = len(whole) - int.from_bytes(whole[-8:-4], "little") - 8
    found = 0
    for place in range(4, first_of_footer, 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            assert_same(read_parquet(path), [part])
        except InputError as error:
            assert "damaged" in str(error)  # noqa: PT017 - some bytes change nothing
            found += 1
    assert found > 0.8 * first_of_footer / 7


@pytest.mark.parametrize("contents", [b"", b"PAR1", b"not Parquet at all" * 10])
def test__read_parquet__not_parquet(tmp_path, contents):
    (tmp_path / "x.parquet").write_bytes(contents)
    with pytest.raises(InputError, match=r"cannot be read .* damaged"):
        list(read_parquet(tmp_path / "x.parquet"))


def test__read_parquet__cut_short(tmp_path):
    path = tmp_path / "x.parquet"
    write_parquet(path, [some_part()])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        list(read_parquet(path))


def test__read_parquet__no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x\.parquet"):
        list(read_parquet(tmp_path / "x.parquet"))


# Files that would fill the memory -----------------------------------------------------------


def repeated(value, n, kind):
    """A column of one value, which the file holds once."""
    zeros = pa.array(np.zeros(n, np.int32))
    return pa.DictionaryArray.from_arrays(zeros, pa.array([value], kind))


def hostile(path, n, **columns):
    """Write n rows that are all alike, with some columns of their own."""
    values = {name: getattr(SPEC, name) for name in ("model", "checkpoint", "pooling")}
    values |= {"precision": "float32", "dtype": "float32"}
    table = {name: repeated(value, n, pa.string()) for name, value in values.items()}
    table["layer"] = pa.array(np.full(n, 6, np.int32))
    table["key"] = repeated(bytes(32), n, pa.binary())
    table["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(n, np.float32)), 1)
    pq.write_table(pa.table(table | columns), path, compression="zstd")
    return path


def test__read_parquet__more_vectors_than_keys_fit_into_the_file(tmp_path):
    path = hostile(tmp_path / "x.parquet", 1_000_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match=r"promises 1,000,000 vectors, more than a real file of"):
        list(read_parquet(path))


def test__read_parquet__lists_of_millions(tmp_path):
    n = (1 << 24) + 2
    vectors = pa.ListArray.from_arrays([0, n // 2, n], pa.nulls(n, pa.float32()))
    path = hostile(tmp_path / "x.parquet", 2, vector=vectors)
    with pytest.raises(InputError, match=r"16,777,218 components, more than a real file of"):
        list(read_parquet(path))


@pytest.mark.parametrize("name", ["key", "model"])
def test__read_parquet__a_text_of_megabytes(tmp_path, name):
    kind = pa.binary() if name == "key" else pa.string()
    text = repeated("A" * (2 << 20), 50, pa.string()).cast(pa.dictionary(pa.int32(), kind))
    path = hostile(tmp_path / "x.parquet", 50, **{name: text})
    with pytest.raises(InputError, match=rf"2,09\d,\d\d\d bytes of {name}, more than a real"):
        list(read_parquet(path))


def test__read_parquet__a_long_text_is_in_memory_once(tmp_path):
    text = repeated("A" * 900_000, 50, pa.string())
    path = hostile(tmp_path / "x.parquet", 50, model=text)
    tracemalloc.start()
    (part,) = read_parquet(path)
    assert part.spec.model == "A" * 900_000
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test__read_parquet__every_damaged_byte_of_the_footer_is_an_error_or_harmless(tmp_path):
    path, part = tmp_path / "x.parquet", some_part(100)
    write_parquet(path, [part])
    whole = path.read_bytes()
    first = len(whole) - int.from_bytes(whole[-8:-4], "little") - 8
    for place in range(first, len(whole), 17):
        for bit in (0x01, 0x40):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            with suppress(InputError):
                assert sum(len(part.keys) for part in read_parquet(path)) == 100


@pytest.mark.parametrize(("n", "times"), [(7, 1), (64, 1), (101, -1), (101, 1), (10**18, -1)])
def test__read_parquet__another_number_of_rows_than_there_are(tmp_path, n, times):
    path, part = tmp_path / "x.parquet", some_part(100)
    write_parquet(path, [part])
    whole = path.read_bytes()
    first = len(whole) - int.from_bytes(whole[-8:-4], "little") - 8
    footer = whole[first:-8].replace(varint(100), varint(n), times)
    assert footer != whole[first:-8]
    path.write_bytes(whole[:first] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(InputError, match="cannot be read"):
        list(read_parquet(path))


def varint(n):
    """A number as it is in a footer."""
    n, found = 2 * n, b""
    while n > 127:
        found, n = found + bytes([n & 127 | 128]), n >> 7
    return found + bytes([n])
