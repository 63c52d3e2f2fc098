"""The file of a shard: its columns, and writing it as a whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from full_disk import no_room

from esm2_features import _files as files
from esm2_features._files import atomic_write, remove_parts
from esm2_features.distributed.files import ShardTable, writing
from esm2_features.exceptions import EndpointError, NumericalError

VALUES = np.arange(12, dtype=np.float32).reshape(2, 6)


def table(vectors=("embedding",), dim=6, dtype="float32", with_sequence=False):
    return ShardTable(tuple(vectors), dim, dtype, with_sequence, {"model": "m"})


def written(path, layout, values=VALUES):
    with writing(path, layout) as writer:
        writer.add(["a", "b"], ["MKT", "GSHM"], [3, 4], values, first=0)
    return pq.read_table(path)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test__file__has_lists_of_a_fixed_size(tmp_path, dtype):
    found = written(tmp_path / "x.parquet", table(dtype=dtype))
    component = {"float32": pa.float32(), "float16": pa.float16()}[dtype]
    assert found.schema.field("embedding").type == pa.list_(component, 6)
    assert found.schema.field("length").type == pa.int32()
    assert found["id"].to_pylist() == ["a", "b"]
    assert found["length"].to_pylist() == [3, 4]
    rows = found["embedding"].combine_chunks().flatten().to_numpy().reshape(2, 6)
    assert rows.dtype == dtype
    np.testing.assert_array_equal(rows, VALUES)


def test__several_vectors__have_a_column_each_and_sequences_on_request(tmp_path):
    layout = table(["embedding_layer0_mean", "embedding_layer6_mean"], dim=3, with_sequence=True)
    found = written(tmp_path / "x.parquet", layout)
    assert found.column_names == ["id", "length", "sequence", *layout.vectors]
    assert found["sequence"].to_pylist() == ["MKT", "GSHM"]
    assert found["embedding_layer6_mean"].to_pylist() == VALUES[:, 3:].tolist()


def test__float16__raises_on_values_out_of_range(tmp_path):
    with (
        pytest.raises(NumericalError, match=r"row 8 has a component of size 1e\+05"),
        writing(tmp_path / "x.parquet", table(dtype="float16", dim=1)) as writer,
    ):
        writer.add(["a", "b"], ["M", "M"], [1, 1], np.array([[1], [1e5]], np.float32), first=7)
    assert not list(tmp_path.iterdir())


def test__full_disk__leaves_nothing_and_names_the_file(tmp_path):
    values = np.zeros((4000, 6), np.float32)
    ids = [str(i) for i in range(4000)]
    with (
        pytest.raises(OSError, match=r"x\.parquet") as caught,
        no_room(4096),
        writing(tmp_path / "x.parquet", table()) as writer,
    ):
        writer.add(ids, ids, [1] * 4000, values, first=0)
    assert caught.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


def test__once__keeps_an_old_file(tmp_path):
    for content in (b"first", b"second"):
        with atomic_write(tmp_path / "x.json", once=True) as file:
            file.write(content)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]


WRITING = """
import os, signal, sys
from pathlib import Path
from esm2_features import _files as files
from esm2_features._files import atomic_write

with atomic_write(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path):
    """Start a process that writes a file until it is told to end."""
    started = []

    def start(name):
        words = [sys.executable, "-c", WRITING, str(tmp_path / name)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(words, stdin=pipe, stdout=pipe))
        assert started[-1].stdout.readline() == b"writing\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


NAMES = ["a-00000.parquet", "a[1]*?-00000.parquet", "\u00e4" * 60, "x" * 200]


def test__parts__of_killed_processes_are_removed_and_those_of_others_stay(tmp_path, writer):
    for name in NAMES:
        killed, alive = writer(name), writer(name)
        killed.kill()
        killed.wait()
        remove_parts(tmp_path)
        assert len(list(tmp_path.glob(".*.part"))) == 1
        alive.communicate()
        assert alive.returncode == 0
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()


def test__part__that_is_taken_before_its_lock_is_begun_again(tmp_path, monkeypatch):
    lock, calls = files._try_lock, []

    def late(handle):
        if not calls:
            calls.append(1)
            remove_parts(tmp_path)
        return lock(handle)

    monkeypatch.setattr(files, "_try_lock", late)
    with atomic_write(tmp_path / "x") as file:
        file.write(b"all")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"all"]


def test__parts__without_locks_are_removed_after_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    with atomic_write(tmp_path / "x") as file:
        file.write(b"all")
        file.flush()
        [part] = tmp_path.iterdir()
        now = part.stat().st_mtime
        for age in (-1e9, 0, 3600, 86000):  # a clock that is behind, too
            os.utime(part, (now - age, now - age))
            remove_parts(tmp_path)
            assert part.exists()
    old = tmp_path / ".y.0123abcd.part"
    old.touch()
    os.utime(old, (now - 90000, now - 90000))
    remove_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")


def test__folder_in_the_place_of_a_file__stays(tmp_path):
    (tmp_path / "x" / "mine").mkdir(parents=True)
    with pytest.raises(OSError, match="x"), atomic_write(tmp_path / "x") as file:
        file.write(b"all")
    assert (tmp_path / "x" / "mine").is_dir()
    assert len(list(tmp_path.iterdir())) == 1


def test__error_that_is_not_of_the_system__stays_as_it_is(tmp_path):
    with (
        pytest.raises(EndpointError, match=r"^no answer$"),
        atomic_write(tmp_path / "x"),
    ):
        raise EndpointError("no answer", url="http://host")
    assert not list(tmp_path.iterdir())
