"""Waiting for locks: how long, how often, and what goes on meanwhile."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from contextlib import closing
from itertools import pairwise

import pytest
from cache_helpers import (
    POSIX,
    as_another_user,
    caches_warn,
    filled,
    fork,
    found,
    part_of,
    raw,
    succeeded,
)
from faulty_io import output_under

from esm2_features._cache import Cache, locks
from esm2_features._cache.connection import CacheConnection
from esm2_features._cache.file import connect, transaction
from esm2_features._cache.locks import Patience


def busy():
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_BUSY, "SQLITE_BUSY"
    return error


@pytest.fixture
def clock(monkeypatch):
    """A clock that only sleeping moves; the seconds since the test began."""
    now = [1000.0]

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(locks.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(locks.time, "sleep", sleep)
    return lambda: round(now[0] - 1000.0, 6)


# How long to wait -----------------------------------------------------------------------------


def test_patience_is_spent_once_and_restored_by_a_success(tmp_path, clock):
    patience, tries = Patience(tmp_path / "x"), []

    def locked(commit_seconds):
        tries.append(commit_seconds)
        raise busy()

    with pytest.raises(sqlite3.OperationalError):
        patience.run(locked, 30.0)
    assert 30.0 <= clock() < 30.1
    assert len(tries) > 100
    assert max(tries) == 1.0
    for _ in range(3):  # each tries once, and a commit in it does not wait
        before, tries[:] = clock(), []
        with pytest.raises(sqlite3.OperationalError):
            patience.run(locked, 30.0)
        assert (clock(), tries) == (before, [0.0])
    assert patience.run(lambda _: "done", 30.0) == "done"
    before = clock()
    with pytest.raises(sqlite3.OperationalError):
        patience.run(locked, 30.0)
    assert clock() - before >= 30.0


def test_patience_does_not_wait_for_other_failures(tmp_path, clock):
    def failing(commit_seconds):
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(sqlite3.OperationalError, match="I/O"):
        Patience(tmp_path / "x").run(failing, 30.0)
    assert clock() == 0.0


def test_an_action_is_repeated_until_the_lock_is_free(tmp_path, clock):
    left = [busy()] * 5

    def action(commit_seconds):
        if left:
            raise left.pop()
        return "done"

    assert Patience(tmp_path / "x").run(action, 30.0) == "done"
    assert 0.0 < clock() < 0.1


def test_all_caches_of_a_folder_in_a_process_share_their_patience(tmp_path, clock):
    cache = filled(tmp_path, range(3))
    with raw(cache) as file, caches_warn() as messages:
        file.execute("begin exclusive")
        for _ in range(3):  # as after unpickling
            another = Cache(tmp_path)
            assert found(another, range(3)) == 0
            another._put_many([part_of(range(3))])
        assert 30.0 <= clock() < 30.2  # to read, and who cannot read cannot write
        file.execute("commit")
    assert "database is locked (SQLITE_BUSY): another process uses it" in messages[0]
    assert found(Cache(tmp_path), range(3)) == 3


def test_who_can_read_still_waits_to_write_and_only_once(tmp_path, clock):
    cache = filled(tmp_path, range(3))
    with raw(cache) as file, caches_warn():
        file.execute("begin immediate")  # lets others read
        for _ in range(3):
            another = Cache(tmp_path)
            assert found(another, range(3)) == 3
            another._put_many([part_of(range(3, 4))])
        assert 30.0 <= clock() < 30.2


def test_who_was_refused_comes_back_soon_and_then_less_often(tmp_path, monkeypatch, clock):
    monkeypatch.setattr(CacheConnection, "busy_seconds", 0.0)
    link, tries = CacheConnection(tmp_path / "x.sqlite3"), []

    def locked(connection):
        tries.append(clock())
        raise busy()

    with caches_warn() as messages:
        for _ in range(4000):
            assert link.attempt("written", locked) is None
            locks.time.sleep(0.1)
    assert len(messages) == 1
    waits = [round(later - earlier) for earlier, later in pairwise(tries)]
    assert waits[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    link._resting_until["written"] = 0.0
    assert link.attempt("written", lambda connection: "done") == "done"
    tries.clear()
    for _ in range(20):
        link.attempt("written", locked)
        locks.time.sleep(0.1)
    assert len(tries) == 2  # soon again


# What goes on meanwhile -----------------------------------------------------------------------


@POSIX
def test_a_locked_cache_stops_neither_others_nor_forks(tmp_path, monkeypatch):
    locked, free = filled(tmp_path / "locked", range(3)), filled(tmp_path / "free", range(3))
    waits, go_on, sleep = threading.Event(), threading.Event(), locks.time.sleep

    def sleep_until_released(seconds):
        waits.set()
        assert go_on.wait(20.0)
        sleep(0)

    monkeypatch.setattr(locks.time, "sleep", sleep_until_released)
    with raw(locked) as file:
        file.execute("begin exclusive")
        numbers = []
        thread = threading.Thread(target=lambda: numbers.append(found(locked, range(3))))
        thread.start()
        try:
            assert waits.wait(20.0)  # for the lock, while this thread and a child go on
            assert found(free, range(3)) == 3
            free._put_many([part_of(range(3, 5))])
            assert succeeded(fork(lambda: found(free, range(5)), seconds=10))
        finally:
            file.execute("commit")
            go_on.set()
            thread.join()
    assert numbers == [3]


def test_a_commit_waits_for_readers_and_keeps_new_ones_out(tmp_path):
    cache = filled(tmp_path, range(3))
    writer = connect(cache.file)
    writer.commit_seconds = 20.0
    with raw(cache) as reader, raw(cache) as late:
        reader.execute("begin")
        reader.execute("select count(*) from block").fetchone()
        refused, begun = threading.Event(), threading.Event()

        def write():
            with transaction(writer) as connection:
                connection.execute("update block set day = 1")
                begun.set()

        thread = threading.Thread(target=write)
        thread.start()
        assert begun.wait(20.0)
        late.execute("pragma busy_timeout=0")
        for _ in range(100_000):
            try:
                late.execute("select count(*) from block").fetchone()
            except sqlite3.OperationalError:
                refused.set()
                break
        assert refused.is_set()
        assert thread.is_alive()
        reader.execute("commit")
        thread.join()
        assert late.execute("select day from block").fetchall() == [(1,)]
    assert writer.execute("pragma busy_timeout").fetchone() == (0,)
    writer.close()


def test_a_write_that_is_repeated_is_written_once(tmp_path, monkeypatch):
    cache = filled(tmp_path, range(300))
    found(cache, range(300))
    with raw(cache) as file:
        file.execute("begin immediate")
        monkeypatch.setattr(locks.time, "sleep", lambda _: file.in_transaction and file.rollback())
        cache._put_many([part_of(range(200, 500))])
    assert found(cache, range(500)) == 500
    assert cache.info().rows == 500


# File systems without locks -------------------------------------------------------------------

EXPECTED = "the file system of {} has no locks (No locks available), without which"


def no_locks(monkeypatch, number=errno.ENOLCK):
    """Let locks fail, as far as Python takes them."""

    def lockf(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "lockf", lockf)
    monkeypatch.setattr(locks, "_FAULTS", {})


@POSIX
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_noticed_at_once(tmp_path, monkeypatch, clock, number):
    no_locks(monkeypatch, number)
    cache = filled(tmp_path, range(3))  # SQLite itself has locks here
    with raw(cache) as file, caches_warn() as messages:
        file.execute("begin exclusive")
        for _ in range(3):
            assert found(cache, range(3)) == 0
            cache._put_many([part_of(range(3))])
    assert clock() == 0.0
    (message,) = messages
    assert f"the file system of {tmp_path} has no locks ({os.strerror(number)})" in message
    assert "a folder on a local disk: cache=, or ESM2_FEATURES_CACHE." in message
    for use in (cache.info, cache.verify, cache.prune, cache.clear):
        with pytest.raises(OSError, match="has no locks"):
            use()
    assert sorted(path.name for path in tmp_path.iterdir()) == [cache.file.name]


@POSIX
def test_a_lock_that_is_taken_is_no_missing_lock(tmp_path, monkeypatch, clock):
    no_locks(monkeypatch, errno.EAGAIN)
    cache = filled(tmp_path, range(3))
    with raw(cache) as file:
        file.execute("begin exclusive")
        with pytest.raises(OSError, match="database is locked"):
            cache.info()
        file.execute("commit")
    assert cache.info().rows == 3


USE = """
import sys
from cache_helpers import Cache, filled, found, part_of
for _ in range(3):
    cache = Cache(sys.argv[1])
    found(cache, range(3))
    cache._put_many([part_of(range(3))])
try:
    cache.info()
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("there", [0, 3])
def test_locks_that_fail_for_sqlite_itself(tmp_path, there):
    if there:
        filled(tmp_path, range(there))
    printed, warned = output_under("enolck", USE, tmp_path, name=tmp_path)
    assert EXPECTED.format(tmp_path) in printed
    assert EXPECTED.format(tmp_path) in warned
    assert "locked" not in printed + warned


CLAIM = """
import sys
from pathlib import Path
from cache_helpers import keys_of
from esm2_features._cache.claims import Claims
for _ in range(3):
    with Claims(Path(sys.argv[1])) as claims:
        assert claims.claim(keys_of(range(3))).all()
        claims.release(keys_of(range(3)))
"""


def test_claims_where_there_are_no_locks_leave_no_files(tmp_path):
    output_under("enolck", CLAIM, tmp_path, name=tmp_path)
    assert [path.name for path in tmp_path.glob("*.lock")] == []


@POSIX
def test_locks_that_fail_in_a_folder_that_is_read_only(shared_folder, monkeypatch, clock):
    cache = filled(shared_folder, range(3))
    cache.file.chmod(0o444)
    cache.path.chmod(0o555)

    def work():
        as_another_user()
        no_locks(monkeypatch)
        with closing(sqlite3.connect(f"file:{cache.file}?mode=ro", uri=True)) as reader:
            reader.execute("begin")
            reader.execute("select * from block").fetchall()
            assert locks._probe(cache.file) == "No locks available"
            assert reader.execute("select count(*) from block").fetchone() == (1,)

    try:
        assert succeeded(fork(work))
    finally:
        cache.path.chmod(0o755)
