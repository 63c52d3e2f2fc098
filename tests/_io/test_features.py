"""Each format gives back what was written, and nothing is left of what was not finished."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_helpers import as_another_user, fork, succeeded
from full_disk import no_room

from esm2_features._io.cells import harmless
from esm2_features._io.features import (
    FORMATS,
    Features,
    check_feature_ids,
    check_features_output,
    write_features,
)
from esm2_features.exceptions import InputError, MissingDependencyError

LAYERS, POOLINGS, DIM = (0, 2), ("cls", "mean"), 3
WIDTH = len(LAYERS) * len(POOLINGS) * DIM


def some_features(n=4):
    rng = np.random.default_rng(0)
    # Sums of tiny and huge, so that a number printed with too few digits shows.
    values = rng.standard_normal((n, WIDTH)) * 10.0 ** rng.integers(-30, 30, (n, WIDTH))
    ids = ["P01308", 'a,b"c', "=1+1", *(f"id{i}" for i in range(3, n))][:n]
    return Features(
        ids=ids,
        labels=[f"{identifier} human, whatever" for identifier in ids],
        values=values.astype(np.float32),
        names=[f"tiny_{i}" for i in range(WIDTH)],
        layers=LAYERS,
        poolings=POOLINGS,
    )


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def written(path, features, **options):
    write_features(check_features_output(path, poolings=features.poolings, **options), features)
    return path


def test__npz__round_trip(tmp_path):
    features = some_features()
    with np.load(written(tmp_path / "x.npz", features), allow_pickle=False) as archive:
        assert sorted(archive) == ["embedding", "feature", "id"]
        assert archive["embedding"].dtype == np.float32
        np.testing.assert_array_equal(archive["embedding"], features.values)
        assert archive["id"].tolist() == features.ids
        assert archive["feature"].tolist() == features.names


def test__parquet__round_trip(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = some_features()
    table = pq.read_table(written(tmp_path / "x.parquet", features))
    assert table.column_names == ["id", "embedding"]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), WIDTH)
    assert table["id"].to_pylist() == features.ids
    values = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, WIDTH)
    np.testing.assert_array_equal(values, features.values)
    assert json.loads(table.schema.metadata[b"feature_names"]) == features.names


def test__csv__round_trip_of_every_bit(tmp_path):
    features = some_features()
    with written(tmp_path / "x.csv", features).open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["id", *features.names]
    assert [row[0] for row in rows] == [harmless(one) for one in features.ids]
    values = np.array([row[1:] for row in rows]).astype(np.float32)
    np.testing.assert_array_equal(values, features.values)


def test__pt__is_what_extract_writes(tmp_path):
    features = some_features()
    folder = written(tmp_path / "x.pt", features)
    assert listed(folder) == sorted(f"{label}.pt" for label in features.labels)
    for label, row in zip(features.labels, features.values, strict=True):
        contents = torch.load(folder / f"{label}.pt", weights_only=True)
        assert list(contents) == ["label", "bos_representations", "mean_representations"]
        assert contents["label"] == label
        expected = iter(row.reshape(-1, DIM))
        for layer in LAYERS:
            for kind in ("bos_representations", "mean_representations"):
                assert list(contents[kind]) == list(LAYERS)
                tensor = contents[kind][layer]
                np.testing.assert_array_equal(tensor.numpy(), next(expected))
                assert tensor.untyped_storage().nbytes() == 4 * DIM


@pytest.mark.parametrize("kind", FORMATS)
def test__format__is_told_by_option_before_ending(tmp_path, kind):
    path = written(tmp_path / "x.data", some_features(), format=kind)
    assert path.is_dir() == (kind == "pt")
    assert listed(tmp_path) == ["x.data"]


@pytest.mark.parametrize("name", ["x", "x.hdf", "x.npz.gz", ".npz"])
def test__check__unknown_ending_lists_the_known(tmp_path, name):
    with pytest.raises(InputError, match=r"\.npz, \.parquet, \.csv, \.h5 \(a file\) or \.pt"):
        check_features_output(tmp_path / name, poolings=["mean"])


@pytest.mark.parametrize("pooling", ["max", "std", "eos"])
def test__check__pt_refuses_poolings_that_extract_has_not(tmp_path, pooling):
    with pytest.raises(InputError, match=f"pooling {pooling}, only for mean and cls"):
        check_features_output(tmp_path / "x.pt", poolings=["mean", pooling])


def test__check__no_folder(tmp_path):
    with pytest.raises(InputError, match="There is no folder"):
        check_features_output(tmp_path / "nowhere" / "x.npz", poolings=["mean"])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder"):
        check_features_output(tmp_path / "file" / "x.npz", poolings=["mean"])


def test__check__folder_may_not_be_written_to():
    def work():
        as_another_user()
        with pytest.raises(InputError, match="may not be written to"):
            check_features_output(Path("/x.npz"), poolings=["mean"])

    assert succeeded(fork(work))


@pytest.mark.parametrize("kind", FORMATS)
def test__check__existing_output_needs_force(tmp_path, kind):
    path = written(tmp_path / f"x.{kind}", some_features(4))
    with pytest.raises(InputError, match="exists already"):
        check_features_output(path, poolings=["mean"])
    written(path, some_features(2), force=True)
    assert listed(tmp_path) == [path.name]
    if kind == "pt":
        assert len(listed(path)) == 2
    elif kind == "npz":
        assert len(np.load(path)["id"]) == 2


def test__check__never_replaces_a_folder_with_other_things(tmp_path):
    (tmp_path / "thesis.tex").touch()
    for force in (False, True):
        with pytest.raises(InputError, match=r"other things than .pt files, such as thesis.tex"):
            check_features_output(tmp_path, poolings=["mean"], format="pt", force=force)


def test__check__never_replaces_a_checkpoint_by_a_folder(tiny_checkpoint):
    with pytest.raises(InputError, match="is a file, but the format pt is a folder"):
        check_features_output(tiny_checkpoint, poolings=["mean"], force=True)


def test__check__never_replaces_a_folder_or_a_device_by_a_file(tmp_path):
    (tmp_path / "x.npz").mkdir()
    with pytest.raises(InputError, match="is a folder, but the format npz is a file"):
        check_features_output(tmp_path / "x.npz", poolings=["mean"], force=True)
    with pytest.raises(InputError, match="is no file"):
        check_features_output(os.devnull, poolings=["mean"], format="csv", force=True)


@pytest.mark.parametrize("path", ["-", "/dev/stdout", "/proc/self/fd/1"])
def test__check__refuses_what_is_no_file(path):
    with pytest.raises(InputError, match="is no file"):
        check_features_output(path, format="csv", poolings=["mean"])


def test__write__looks_again_before_it_replaces(tmp_path):
    output = check_features_output(tmp_path / "x.csv", poolings=["mean"])
    (tmp_path / "x.csv").write_text("somebody else's")
    features = Features(["a"], ["a"], np.zeros((1, 2), np.float32), ["f0", "f1"], [0], ["mean"])
    with pytest.raises(InputError, match="exists already"):
        write_features(output, features)
    assert (tmp_path / "x.csv").read_text() == "somebody else's"
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test__write__through_a_link(tmp_path):
    (tmp_path / "link.npz").symlink_to(tmp_path / "target.npz")
    written(tmp_path / "link.npz", some_features())
    assert (tmp_path / "link.npz").is_symlink()
    assert np.load(tmp_path / "target.npz")["id"].size == 4


def test__write__permissions_are_the_usual_ones(tmp_path):
    (tmp_path / "other").touch()
    path = written(tmp_path / "x.csv", some_features())
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("kind", FORMATS)
def test__write__leaves_nothing_behind_when_the_disk_is_full(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    output = check_features_output(path, poolings=POOLINGS)
    with pytest.raises(OSError, match=path.name), no_room():
        write_features(output, some_features(4))
    assert listed(tmp_path) == []


@pytest.mark.parametrize("kind", FORMATS)
def test__write__leaves_the_previous_output_when_the_disk_is_full(tmp_path, kind):
    def contents():
        return [file.read_bytes() for file in (sorted(path.iterdir()) if kind == "pt" else [path])]

    path = written(tmp_path / f"x.{kind}", some_features(4))
    before = contents()
    output = check_features_output(path, poolings=POOLINGS, force=True)
    with pytest.raises(OSError, match=path.name), no_room():
        write_features(output, some_features(3))
    assert listed(tmp_path) == [path.name]
    assert contents() == before


def test__write__folder_gone_since(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    output = check_features_output(folder / "x.npz", poolings=["mean"])
    folder.rmdir()
    with pytest.raises(FileNotFoundError):
        write_features(output, some_features())


def test__parquet__without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingDependencyError) as caught:
        check_features_output(tmp_path / "x.parquet", poolings=["mean"])
    assert str(caught.value) == (
        "Writing Parquet needs the package pyarrow, which is not installed. "
        'Install it with: pip install "esm2-features[parquet]"'
    )


@pytest.mark.parametrize("keys", ["id", "hash"])
def test__h5__is_what_others_read(tmp_path, keys):
    import h5py

    features = some_features()
    n = len(features.ids)
    sequences = ["MKT", *["GSHM" + "A" * i for i in range(n - 1)]]
    features = dataclasses.replace(features, sequences=sequences, h5_keys=keys)
    with h5py.File(written(tmp_path / "x.h5", features)) as file:
        by_id = {dataset.attrs["original_id"]: dataset[()] for dataset in file.values()}
        names = list(file)
    assert sorted(by_id) == sorted(features.ids)
    for identifier, row in zip(features.ids, features.values, strict=True):
        np.testing.assert_array_equal(by_id[identifier], row)
    digest = hashlib.sha256(b"MKT_3").hexdigest()
    assert (digest in names) == (keys == "hash")


def test__h5__equal_sequences_have_one_hash(tmp_path):
    import h5py

    features = some_features()
    sequences = ["MKT"] * len(features.ids)
    features = dataclasses.replace(features, sequences=sequences, h5_keys="hash")
    with h5py.File(written(tmp_path / "x.h5", features)) as file:
        [dataset] = file.values()
        assert dataset.attrs["original_id"] == features.ids[0]


def test__npz__one_long_id_does_not_make_it_huge(tmp_path):
    output = check_features_output(tmp_path / "x.npz", poolings=["mean"])
    check_feature_ids(output, ["a" * 2000] * 50)
    check_feature_ids(output, ["a" * 60] * 600_000)
    ids = [*map(str, range(30_000)), "a" * 9000]
    with pytest.raises(InputError, match=r"has 9000 characters\. .* 1030 MB here.* \.parquet"):
        check_feature_ids(output, ids)
    other = check_features_output(tmp_path / "x.csv", poolings=["mean"])
    check_feature_ids(other, ids)
