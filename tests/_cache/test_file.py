"""The file of the cache: what it looks like, and whose files are left alone."""

from __future__ import annotations

import gc
import os
import sqlite3
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cache_helpers import (
    HALF,
    POSIX,
    SPEC,
    filled,
    fork,
    found,
    keys_of,
    part_of,
    raw,
    rows_of,
    succeeded,
)

from esm2_features._cache import Cache
from esm2_features._cache.file import FORK_LOCK, connect, open_file, snapshot, transaction
from esm2_features.exceptions import CacheVersionError


def opened(folder):
    file = folder / "embeddings.sqlite3"
    file.touch()
    return open_file(file, 1.0)


def test_the_format_of_the_file(tmp_path):
    cache = filled(tmp_path, range(2), dim=3)
    cache._put_many([part_of(range(1), HALF, 3)])
    keys, rows = keys_of(range(2)), rows_of(range(2), 3)
    with raw(cache) as file:
        assert file.execute("pragma application_id").fetchone() == (0x45534D32,)
        assert file.execute("pragma user_version").fetchone() == (2,)
        assert file.execute("pragma journal_mode").fetchone() == ("delete",)
        assert file.execute("pragma page_size").fetchone() == (65536,)
        assert file.execute("select * from space").fetchall() == [
            (1, SPEC.digest, "sha256:46f0", 6, "mean", "float32", "float32", "tiny"),
            (2, HALF.digest, "sha256:46f0", 6, "mean", "float32", "float16", "tiny"),
        ]
        checks = [
            zlib.crc32(SPEC.digest + key.tobytes() + row.tobytes())
            for key, row in zip(keys, rows, strict=True)
        ]
        crc = zlib.crc32(SPEC.digest + keys.tobytes() + rows.tobytes())
        columns = "id, space, keys, checks, crc"
        assert file.execute(f"select {columns} from block").fetchall()[0] == (
            1, 1, keys.tobytes(), np.array(checks, "<u4").tobytes(), crc,
        )  # fmt: skip
        assert file.execute("select * from value").fetchall() == [
            (1, rows.astype("<f4").tobytes()),
            (2, rows[:1].astype("<f2").tobytes()),
        ]
    assert [entry.name for entry in tmp_path.iterdir()] == ["embeddings.sqlite3"]


def test_numbers_of_blocks_are_never_used_again(tmp_path):
    cache = filled(tmp_path, range(3))
    cache.clear()
    cache._put_many([part_of(range(3))])
    cache.prune(model=SPEC.checkpoint)
    cache._put_many([part_of(range(3))])
    with raw(cache) as file:
        assert file.execute("select id from block").fetchall() == [(3,)]


def test_an_empty_file_is_begun_and_opened_again(tmp_path):
    for _ in range(2):
        connection = opened(tmp_path)
        tables = connection.execute("select name from sqlite_master where type = 'table'")
        assert {b"space", b"block", b"value"} < {name for (name,) in tables.fetchall()}
        connection.close()


def test_a_file_is_begun_once_by_many_threads(tmp_path):
    (tmp_path / "embeddings.sqlite3").touch()
    with ThreadPoolExecutor(8) as pool:
        for connection in pool.map(opened, [tmp_path] * 8):
            assert connection.execute("select count(*) from space").fetchone() == (0,)
            connection.close()


def test_a_file_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(sqlite3.OperationalError):
        open_file(tmp_path / "new.sqlite3", 1.0)
    assert list(tmp_path.iterdir()) == []


def a_newer_version(file):
    file.execute("pragma user_version = 7")


def an_older_version(file):
    file.execute("pragma user_version = 1")


def another_program(file):
    file.execute("pragma application_id = 1")


def a_program_without_id(file):
    file.execute("pragma application_id = 0")
    file.execute("pragma user_version = 0")


@pytest.mark.parametrize(
    ("change", "message", "version"),
    [
        (a_newer_version, "has format 7; this version reads 2. Upgrade esm2-features", 7),
        (an_older_version, "has format 1; this version reads 2. Move it away, or choose", 1),
        (another_program, "belongs to another program. Move it away, or choose", 2),
        (a_program_without_id, "belongs to another program", 0),
    ],
)
def test_files_that_are_refused_and_left_as_they_are(tmp_path, change, message, version):
    folder, mine = tmp_path / "theirs", filled(tmp_path / "mine", range(5))
    cache = filled(folder, range(3))
    with raw(cache) as file:
        change(file)
    content = cache.file.read_bytes()
    for use in (
        lambda: found(Cache(folder), range(3)),
        lambda: filled(folder, range(3)),
        lambda: Cache(folder).info(),
        lambda: Cache(folder).verify(),
        lambda: Cache(folder).prune(),
        lambda: Cache(folder).clear(),
        lambda: Cache(folder).export(tmp_path / "x.parquet"),
        lambda: Cache(folder).import_(mine.path),
        lambda: mine.import_(folder),
    ):
        with pytest.raises(CacheVersionError, match=message) as caught:
            use()
        assert (caught.value.path, caught.value.found) == (str(cache.file), version)
        assert caught.value.expected == 2
    assert cache.file.read_bytes() == content
    assert [path.name for path in folder.iterdir()] == [cache.file.name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "theirs"]


def test_an_interrupted_transaction_is_taken_back(tmp_path):
    connection = opened(tmp_path)

    def interrupted():
        with transaction(connection):
            connection.execute("insert into value values(1, x'00')")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not connection.in_transaction
    assert connection.execute("select * from value").fetchall() == []
    with transaction(connection):
        connection.execute("insert into value values(1, x'00')")
    assert connection.execute("select * from value").fetchall() == [(1, b"\0")]
    connection.close()


def test_what_claims_to_be_text_is_bytes(tmp_path):
    connection = opened(tmp_path)
    assert connection.execute("select cast(x'ff80' as text)").fetchone() == (b"\xff\x80",)
    connection.close()


def test_a_connection_is_closed_when_it_is_let_go(tmp_path):
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("open files are not listed here")
    connection = opened(tmp_path)
    del connection
    gc.collect()  # of itself, it is in a cycle
    names = [str(entry.readlink()) for entry in descriptors.iterdir() if entry.is_symlink()]
    assert not [name for name in names if name.startswith(str(tmp_path))]


@POSIX
def test_a_child_lets_go_of_a_connection_of_its_parent_without_closing_it(tmp_path):
    connection = opened(tmp_path)
    assert connection.pid == os.getpid()
    changes = connection.total_changes

    def work():
        connection.__del__()
        assert connection.total_changes == changes  # raises if it was closed

    assert succeeded(fork(work))
    connection.close()


def test_connect__makes_no_file(tmp_path):
    with pytest.raises(sqlite3.OperationalError):
        connect(tmp_path / "new.sqlite3", 1.0)
    assert not (tmp_path / "new.sqlite3").exists()


@pytest.mark.parametrize("manager", [transaction, snapshot])
def test_an_interrupt_while_it_begins_leaves_no_transaction(tmp_path, manager):
    connection = opened(tmp_path)

    class Interrupted:
        def execute(self, statement):
            connection.execute(statement)
            if statement.startswith("begin"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), manager(Interrupted()):
        pass
    assert not connection.in_transaction
    connection.close()


def test_a_connection_that_is_collected_waits_for_nobody_and_is_closed_later(tmp_path):
    opened(tmp_path).close()
    file = tmp_path / "embeddings.sqlite3"
    held, release = threading.Event(), threading.Event()

    def hold():
        with FORK_LOCK:
            held.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    connection = connect(file, 1.0)
    connection.__del__()
    release.set()
    thread.join()
    connection.execute("select 1")
    connect(file, 1.0).close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("select 1")
