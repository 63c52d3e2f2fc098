"""A folder of shards reads like an array, by number and by id."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from shard_helpers import fasta, peptides

from esm2_features import Engine, distributed, open_embeddings
from esm2_features.exceptions import InputError, MissingDependencyError

SEQUENCES = peptides(40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_checkpoint):
    place = tmp_path_factory.mktemp("shards")
    source = fasta(place / "a.fasta", SEQUENCES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("esm2_features.distributed.files.ROW_GROUP", 4)
        distributed.embed_shards(source, place / "out", model=tiny_checkpoint, shard_size=9)
    return place / "out"


@pytest.fixture(scope="module")
def expected(tiny_checkpoint):
    return Engine(tiny_checkpoint, cache=None).embed(list(SEQUENCES.values()))


@pytest.fixture
def x(folder):
    return open_embeddings(folder)


def test__shape_and_ids__are_those_of_the_input(x):
    assert x.shape == (40, 32)
    assert len(x) == 40
    assert x.ids.tolist() == list(SEQUENCES)
    assert x.column == "embedding"
    assert x.dtype == np.float32


@pytest.mark.parametrize(
    "rows",
    [
        *(0, 39, -1, -40, np.int64(9)),
        *(slice(None), slice(3, 30), slice(-3, None), slice(30, 3), slice(5, 6), slice(0, 0)),
        *(slice(None, None, 7), slice(20, 2, -3), slice(9, 18)),
        *([5, 39, 5, -2], [], np.array([8, 9, 10]), np.arange(40) % 3 == 0),
    ],
    ids=str,
)
def test__rows__are_those_of_an_array(x, expected, rows):
    index = np.array(rows, int) if isinstance(rows, list) and not rows else rows
    np.testing.assert_allclose(x[rows], expected[index], atol=1e-6)


def test__rows_out_of_range__are_index_errors(x):
    for row in (40, -41, [0, 40]):
        with pytest.raises(IndexError, match="of 40"):
            _ = x[row]


@pytest.mark.parametrize("rows", ["p1", [1.5], [[1]], np.zeros(3, bool), True])
def test__rows_by_other_things__are_type_errors(x, rows):
    with pytest.raises(TypeError, match="by ids, with get"):
        _ = x[rows]


def test__iteration__ends(x, expected):
    np.testing.assert_allclose(np.array(list(x)), expected, atol=1e-6)


def test__array__is_all_of_it(x, expected):
    np.testing.assert_allclose(np.asarray(x), expected, atol=1e-6)
    assert np.asarray(x, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="is a copy"):
        np.asarray(x, copy=False)


def test__to_numpy__writes_into_a_file(x, expected, tmp_path):
    out = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", x.dtype, x.shape)
    assert x.to_numpy(out) is out
    out.flush()
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), expected, atol=1e-6)
    with pytest.raises(InputError, match=r"shape \(3, 3\) for rows of \(40, 32\)"):
        x.to_numpy(np.zeros((3, 3)))


def test__get__joins_by_id(x, expected):
    np.testing.assert_allclose(x.get(["p31", "p0", "p31"]), expected[[31, 0, 31]], atol=1e-6)
    assert x.get([]).shape == (0, 32)


def test__get__names_missing_ids(x):
    with pytest.raises(InputError, match="has the id 'a', 'b', 'c', and 1 others"):
        x.get(["p1", "a", "b", "c", "d"])
    with pytest.raises(TypeError, match="needs a list"):
        x.get("p1")


def test__dataset_and_scan__are_the_same_rows(x, expected):
    import polars as pl

    frame = x.scan().filter(pl.col("id") == "p7").collect()
    np.testing.assert_allclose(frame["embedding"].to_numpy()[0], expected[7], atol=1e-6)
    assert x.dataset().count_rows() == 40
    labels = pl.LazyFrame({"id": ["p3", "p30"], "y": [0, 1]})
    assert x.scan().join(labels, on="id").collect().height == 2


def test__scan__without_polars_names_the_extra(x, monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingDependencyError, match=r'"esm2-features\[polars\]"'):
        x.scan()


def test__float16__is_read_by_all(tmp_path, tiny_checkpoint, expected):
    source = fasta(tmp_path / "a.fasta", SEQUENCES)
    distributed.embed_shards(source, tmp_path / "out", model=tiny_checkpoint, dtype="float16")
    x = open_embeddings(tmp_path / "out")
    assert x.dtype == np.float16
    np.testing.assert_array_equal(x[:], expected.astype(np.float16))
    assert x.scan().collect().height == x.dataset().count_rows() == 40


def test__several_columns__need_a_choice(tmp_path, tiny_checkpoint):
    source = fasta(tmp_path / "a.fasta", SEQUENCES)
    distributed.embed_shards(source, tmp_path / "out", model=tiny_checkpoint, layers=[0, -1])
    x = open_embeddings(tmp_path / "out")
    assert x.columns == ("embedding_layer0_mean", "embedding_layer2_mean")
    with pytest.raises(InputError, match="Choose one: open_embeddings"):
        _ = x[0]
    assert open_embeddings(tmp_path / "out", column=x.columns[1])[3].shape == (32,)
    with pytest.raises(InputError, match=r"Got column='embedding', and .* has the columns"):
        open_embeddings(tmp_path / "out", column="embedding")


def test__folder_without_shards__is_an_error(tmp_path):
    with pytest.raises(InputError, match="no folder of shards"):
        open_embeddings(tmp_path)


def test__folder_without_finished_shards__is_empty_with_allow_partial(tmp_path, tiny_checkpoint):
    source = fasta(tmp_path / "a.fasta", {"p": "MK1"})
    distributed.embed_shards(source, tmp_path / "out", model=tiny_checkpoint)
    x = open_embeddings(tmp_path / "out", allow_partial=True)
    assert (x.shape, x[:].shape, x.ids.shape) == ((0, 32), (0, 32), (0,))
    assert x.missing == ["a-00000"]
    assert x.scan().collect().height == x.dataset().count_rows() == 0


def test__shard_that_is_damaged__is_named(tmp_path, tiny_checkpoint):
    source = fasta(tmp_path / "a.fasta", SEQUENCES)
    distributed.embed_shards(source, tmp_path / "out", model=tiny_checkpoint)
    path = tmp_path / "out" / "a-00000.parquet"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(InputError, match=r"a-00000\.parquet cannot be read.*--check digest"):
        _ = open_embeddings(tmp_path / "out")[0]


def test__flipped_bit_anywhere__is_an_error(folder, tmp_path):
    """Pages, their headers, the footer and its length: everywhere in the file."""
    shutil.copytree(folder, tmp_path / "out")
    path = tmp_path / "out" / "a-00001.parquet"
    whole = path.read_bytes()
    draw = np.random.default_rng(0)
    flips = [*range(32, 8 * 150, 3), *range(8 * len(whole) - 100, 8 * len(whole))]
    flips += draw.integers(32, 8 * len(whole), size=100).tolist()
    groups = pq.read_metadata(path)
    lengths = [groups.row_group(g).column(1) for g in range(groups.num_row_groups)]
    unread = {
        byte
        for one in lengths
        for byte in range(one.data_page_offset, one.data_page_offset + one.total_compressed_size)
    }
    for at in (at for at in flips if at // 8 not in unread):
        content = bytearray(whole)
        content[at // 8] ^= 1 << at % 8
        path.write_bytes(content)
        x = open_embeddings(tmp_path / "out")
        with pytest.raises(InputError, match=r"a-00001\.parquet cannot be read, or is damaged"):
            _ = x[9:18], x.ids
    assert x.verify() == ["a-00001.parquet"]


def test__pages__have_checksums_that_others_can_check(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "out")
    path = tmp_path / "out" / "a-00001.parquet"
    content = bytearray(path.read_bytes())
    metadata = pq.read_metadata(path).row_group(0).column(2)
    content[metadata.data_page_offset + metadata.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC checksum"):
        open_embeddings(tmp_path / "out").dataset().to_table()


def test__shard_that_is_gone__is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "out")
    x = open_embeddings(tmp_path / "out")
    (tmp_path / "out" / "a-00001.parquet").unlink()
    with pytest.raises(InputError, match=r"a-00001\.parquet cannot be read"):
        _ = x[:]
    assert x.verify() == ["a-00001.parquet"]
