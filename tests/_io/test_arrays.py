"""Each format gives back what was written, holds nothing, and leaves nothing behind."""

from __future__ import annotations

import csv
import errno
import sys
import weakref
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from full_disk import no_room

from esm2_features._io.arrays import (
    ARRAY_FORMATS,
    Arrays,
    check_array_output,
    check_ids,
    write_arrays,
)
from esm2_features.exceptions import InputError, MissingDependencyError

IDS = ["sp|P01308|INS", "a/b", "file", "b.npy", "100%", ".", "A/B"]
LABELS = [f"{identifier} human, whatever" for identifier in IDS]


def some_arrays(*shape):
    rng = np.random.default_rng(0)
    return [
        rng.standard_normal((*shape[:-2], n + 1, shape[-1])).astype(np.float32) for n in range(7)
    ]


def about(product="residues", layers=(6,), tokens=(), ids=IDS, labels=LABELS):
    return Arrays(product, ids, labels, "tiny", "float32", layers, tokens)


def written(path, arrays, contents=None, **options):
    output = check_array_output(path, **options)
    assert write_arrays(output, contents or about(), iter(arrays)) == len(arrays)
    return path


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4)])
def test__npz__round_trip(tmp_path, shape):
    arrays = some_arrays(*shape)
    with np.load(written(tmp_path / "x.npz", arrays), allow_pickle=False) as archive:
        assert archive.files == IDS
        for identifier, array in zip(IDS, arrays, strict=True):
            assert archive[identifier].dtype == np.float32
            np.testing.assert_array_equal(archive[identifier], array)


def test__npz__arrays_that_are_not_contiguous(tmp_path):
    arrays = [array.T for array in some_arrays(0, 4)]
    with np.load(written(tmp_path / "x.npz", arrays)) as archive:
        np.testing.assert_array_equal(archive["file"], arrays[2])


def test__npz__ids_that_numpy_takes_for_each_other_are_refused(tmp_path):
    output = check_array_output(tmp_path / "x.npz")
    with pytest.raises(
        InputError, match=r"numpy\.load cannot distinguish the ids 'a' and 'a\.npy'"
    ):
        check_ids(output, ["b", "a.npy", "a"])
    check_ids(output, ["b.npy", "a"])
    check_ids(check_array_output(tmp_path / "x.h5"), ["a.npy", "a"])


def test__h5__round_trip(tmp_path):
    import h5py

    arrays = some_arrays(2, 0, 3)
    contents = about("log_probs", layers=(0, 6), tokens=("A", "C", "<cls>"))
    with h5py.File(written(tmp_path / "x.h5", arrays, contents)) as file:
        assert [unquote(name) for name in file] == IDS  # in this order
        assert [dataset.attrs["id"] for dataset in file.values()] == IDS
        assert "a%2Fb" in file
        for dataset, array in zip(file.values(), arrays, strict=True):
            assert dataset.dtype == np.float32
            np.testing.assert_array_equal(dataset[()], array)
        assert file.attrs["product"] == "log_probs"
        assert file.attrs["model"] == "tiny"
        assert file.attrs["precision"] == "float32"
        assert file.attrs["layers"].tolist() == [0, 6]
        assert file.attrs["tokens"].tolist() == ["A", "C", "<cls>"]
        assert file.attrs["esm2_features"]


def test__h5__without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingDependencyError) as caught:
        check_array_output(tmp_path / "x.h5")
    assert str(caught.value) == (
        "Writing HDF5 needs the package h5py, which is not installed. "
        'Install it with: pip install "esm2-features[h5]"'
    )


def test__npy__a_file_for_each_id(tmp_path):
    arrays = some_arrays(0, 4)
    folder = written(tmp_path / "x.npy", arrays)
    names = ["sp|P01308|INS", "a_b", "file", "b.npy", "100%", "_", "A_B-2"]
    assert listed(folder) == sorted(["ids.csv", *(f"{name}.npy" for name in names)])
    with (folder / "ids.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "id"]
    assert rows == [
        [f"{name}.npy", identifier] for name, identifier in zip(names, IDS, strict=True)
    ]
    for name, array in zip(names, arrays, strict=True):
        np.testing.assert_array_equal(np.load(folder / f"{name}.npy"), array)


def test__npy__ids_that_can_be_names_need_no_index(tmp_path):
    contents = about(ids=["a", "b|c"], labels=["a", "b|c"])
    folder = written(tmp_path / "x.npy", some_arrays(0, 4)[:2], contents)
    assert listed(folder) == ["a.npy", "b|c.npy"]


@pytest.mark.parametrize("array", [np.zeros((0, 4), np.float32), np.ones((3, 4, 5), np.float32).T])
def test__npy__arrays_that_are_empty_or_not_contiguous(tmp_path, array):
    folder = written(tmp_path / "x.npy", [array], about(ids=["a"], labels=["a"]))
    found = np.load(folder / "a.npy", allow_pickle=False)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(("layers", "shape"), [((6,), (0, 4)), ((6, 0), (2, 0, 4))])
def test__pt__representations_as_extract_writes_them(tmp_path, layers, shape):
    arrays = some_arrays(*shape)
    folder = written(tmp_path / "x.pt", arrays, about(layers=layers))
    assert f"{LABELS[0]}.pt" in listed(folder)
    contents = torch.load(folder / f"{LABELS[2]}.pt", weights_only=True)
    assert list(contents) == ["label", "representations"]
    assert contents["label"] == LABELS[2]
    assert list(contents["representations"]) == list(layers)
    for layer, array in zip(layers, arrays[2].reshape(-1, 3, 4), strict=True):
        tensor = contents["representations"][layer]
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert tensor.untyped_storage().nbytes() == 4 * array.size


@pytest.mark.parametrize("product", ["logits", "log_probs", "contacts", "attentions"])
def test__pt__other_products_under_their_names(tmp_path, product):
    arrays = some_arrays(0, 4)
    folder = written(tmp_path / "x.pt", arrays, about(product, layers=()))
    contents = torch.load(folder / f"{LABELS[2]}.pt", weights_only=True)
    assert list(contents) == ["label", product]
    np.testing.assert_array_equal(contents[product].numpy(), arrays[2])


@pytest.mark.parametrize("kind", ARRAY_FORMATS)
def test__write__holds_one_array_at_a_time(tmp_path, kind):
    given = []

    def arrays():
        for n, _ in enumerate(IDS):
            assert sum(reference() is not None for reference in given) <= 1
            array = np.full((9, 5), n, np.float32)
            given.append(weakref.ref(array))
            yield array
            del array

    write_arrays(check_array_output(tmp_path / f"x.{kind}"), about(), arrays())
    assert len(given) == len(IDS)


@pytest.mark.parametrize("kind", ARRAY_FORMATS)
def test__format__is_told_by_option_before_ending(tmp_path, kind):
    path = written(tmp_path / "x.data", some_arrays(0, 4), format=kind)
    assert path.is_dir() == (kind in ("npy", "pt"))
    assert listed(tmp_path) == ["x.data"]


def test__check_array_output__unknown_ending_lists_the_known(tmp_path):
    with pytest.raises(InputError, match=r"\.npz, \.h5 \(a file\) or \.npy or \.pt \(a folder\)"):
        check_array_output(tmp_path / "x.csv")


@pytest.mark.parametrize("kind", ARRAY_FORMATS)
def test__check_array_output__existing_output_needs_force(tmp_path, kind):
    path = written(tmp_path / f"x.{kind}", some_arrays(0, 4))
    with pytest.raises(InputError, match="exists already"):
        check_array_output(path)
    contents = about(ids=["one"], labels=["one"])
    written(path, some_arrays(0, 4)[:1], contents, force=True)
    assert listed(tmp_path) == [path.name]
    if path.is_dir():
        assert listed(path) == [f"one.{kind}"]


@pytest.mark.parametrize("kind", ARRAY_FORMATS)
@pytest.mark.parametrize("room", [0, 100, 3000, 100_000])
def test__write__leaves_nothing_behind_when_the_disk_is_full(tmp_path, kind, room):
    path = tmp_path / f"x.{kind}"
    output = check_array_output(path)
    arrays = [np.zeros((300, 100), np.float32) for _ in IDS]
    with pytest.raises(OSError, match="File too large") as caught, no_room(room):
        write_arrays(output, about(), arrays)
    assert caught.value.errno == errno.EFBIG
    assert path.name in str(caught.value)
    assert listed(tmp_path) == []


@pytest.mark.parametrize("kind", ARRAY_FORMATS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test__write__leaves_nothing_behind_when_the_network_fails(tmp_path, kind, error):
    def arrays():
        yield from some_arrays(0, 4)[:3]
        raise error

    with pytest.raises(error):
        write_arrays(check_array_output(tmp_path / f"x.{kind}"), about(), arrays())
    assert listed(tmp_path) == []
