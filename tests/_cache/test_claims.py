"""Claims: work is shared while it can be, and never refused when claims fail."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import stat
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from cache_helpers import POSIX, as_another_user, fork, succeeded

from esm2_features._cache.claims import Claims
from esm2_features._cache.keys import computation_keys


def keys_of(numbers):
    return computation_keys("sha256:46f0", "float32", map(str, numbers))


def raw(folder, query, *values):
    with closing(sqlite3.connect(folder / "claims.sqlite3", isolation_level=None)) as file:
        return file.execute(query, values).fetchall()


def claimed_by(folder, owner, numbers, until=None):
    """Let somebody else claim."""
    until = time.time() + 300 if until is None else until
    with Claims(folder) as claims:
        claims.claim(keys_of([999]))
    for key in keys_of(numbers):
        raw(folder, "insert into claim values(?, ?, ?)", key.tobytes(), owner, until)


def a_dead_process():
    """The id of a process that has just ended, and was waited for."""
    pid = fork(lambda: None)
    assert succeeded(pid)
    return pid


# Shared work --------------------------------------------------------------------------------


def test_two_runs_share_the_work(tmp_path):
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        granted = first.claim(keys_of(range(60))), second.claim(keys_of(range(40, 100)))
        assert granted[0].dtype == np.bool_
        assert granted[0].all()
        assert granted[1].tolist() == [False] * 20 + [True] * 40
        assert second.unclaimed(keys_of(range(100))).tolist() == [False] * 60 + [True] * 40
        assert first.unclaimed(keys_of(range(100))).tolist() == [True] * 60 + [False] * 40


def test_what_is_ones_own_may_be_taken_again(tmp_path):
    with Claims(tmp_path) as claims:
        assert claims.claim(keys_of(range(5))).all()
        assert claims.claim(keys_of([3, 3, 7])).all()


def test_what_is_released_is_free(tmp_path):
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        first.claim(keys_of(range(10)))
        second.release(keys_of(range(10)))  # which are not its own
        assert not second.unclaimed(keys_of(range(10))).any()
        first.release(keys_of(range(4)))
        assert second.claim(keys_of(range(10))).tolist() == [True] * 4 + [False] * 6


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_leaving_releases_all(tmp_path, error):
    with Claims(tmp_path) as second:
        try:
            with Claims(tmp_path) as first:
                first.claim(keys_of(range(10)))
                assert not second.unclaimed(keys_of(range(10))).any()
                if error is not None:
                    raise error
        except KeyboardInterrupt:
            pass
        assert second.unclaimed(keys_of(range(10))).all()
        assert second.claim(keys_of(range(10))).all()
    assert raw(tmp_path, "select * from claim") == []


def test_to_ask_what_is_free_takes_nothing(tmp_path):
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert first.unclaimed(keys_of(range(5))).all()
        assert second.claim(keys_of(range(5))).all()


def test_more_keys_than_one_query_takes(tmp_path):
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert first.claim(keys_of(range(0, 3000, 3))).all()
        assert (~second.claim(keys_of(range(3000)))).nonzero()[0].tolist() == list(
            range(0, 3000, 3)
        )


def test_no_keys(tmp_path):
    with Claims(tmp_path) as claims:
        assert claims.claim(keys_of([])).shape == claims.unclaimed(keys_of([])).shape == (0,)
        claims.release(keys_of([]))


def test_who_claims_nothing_makes_nothing(tmp_path):
    with Claims(tmp_path / "new") as claims:
        claims.release(keys_of(range(3)))
    assert list(tmp_path.iterdir()) == []


@POSIX
def test_the_file_is_for_the_owner_only(tmp_path):
    with Claims(tmp_path / "new") as claims:
        claims.claim(keys_of(range(3)))
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "new" / "claims.sqlite3").stat().st_mode) == 0o600


def test_threads_share_the_work(tmp_path):
    barrier, granted = threading.Barrier(6), []

    def work(order):
        with Claims(tmp_path) as claims:
            keys = keys_of(range(200))
            mine = np.zeros(200, np.int64)
            barrier.wait(30)
            for start in order:
                some = slice(start, start + 10)
                mine[some] += claims.claim(keys[some])
            granted.append(mine)
            barrier.wait(30)  # nobody releases before all have asked

    orders = [np.random.default_rng(seed).permutation(range(0, 200, 10)) for seed in range(6)]
    threads = [threading.Thread(target=work, args=(order.tolist(),)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.sum(granted, axis=0).tolist() == [1] * 200


# Whose claims count -------------------------------------------------------------------------


def test_a_lease_that_has_ended_is_taken_over(tmp_path, monkeypatch):
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        monkeypatch.setattr(Claims, "lease_seconds", 0.0)
        assert first.claim(keys_of(range(5))).all()
        monkeypatch.undo()
        assert second.unclaimed(keys_of(range(5))).all()
        assert second.claim(keys_of(range(5))).all()
        assert not first.claim(keys_of(range(5))).any()
        first.release(keys_of(range(5)))  # which are no longer its own
        assert not first.unclaimed(keys_of(range(5))).any()


def test_taking_again_begins_a_lease_anew(tmp_path, monkeypatch):
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        monkeypatch.setattr(Claims, "lease_seconds", -1.0)
        first.claim(keys_of(range(5)))
        monkeypatch.undo()
        first.claim(keys_of(range(3)))
        assert second.claim(keys_of(range(5))).tolist() == [False] * 3 + [True] * 2


@POSIX
def test_claims_of_a_killed_process_are_free_at_once(tmp_path):
    reading, writing = os.pipe()

    def work():
        with Claims(tmp_path) as claims:
            assert claims.claim(keys_of(range(10))).all()
            os.write(writing, b".")
            signal.pause()

    child = fork(work)
    try:
        assert os.read(reading, 1) == b"."
        with Claims(tmp_path) as claims:
            assert claims.claim(keys_of(range(5, 15))).tolist() == [False] * 5 + [True] * 5
    finally:
        os.kill(child, signal.SIGKILL)
        assert not succeeded(child)
        os.close(reading)
        os.close(writing)
    assert len(raw(tmp_path, "select * from claim")) == 10
    with Claims(tmp_path) as claims:
        assert claims.unclaimed(keys_of(range(15))).all()
        assert claims.claim(keys_of(range(15))).all()


@POSIX
def test_a_forked_child_has_claims_of_its_own(tmp_path):
    with Claims(tmp_path) as claims:
        claims.claim(keys_of(range(5)))

        def work():
            with Claims(tmp_path) as own:
                assert own.claim(keys_of(range(7))).tolist() == [False] * 5 + [True] * 2

        assert succeeded(fork(work))
        with Claims(tmp_path) as other:
            assert other.claim(keys_of(range(7))).tolist() == [False] * 5 + [True] * 2


def test_another_machine_is_believed_until_its_lease_ends(tmp_path, monkeypatch):
    claimed_by(tmp_path, f"not-{socket.gethostname()} 1 x", range(5), until=1000.0)
    with Claims(tmp_path) as claims:
        monkeypatch.setattr("esm2_features._cache.claims.time.time", lambda: 999.9)
        assert not claims.claim(keys_of(range(5))).any()
        monkeypatch.setattr("esm2_features._cache.claims.time.time", lambda: 1000.0)
        assert claims.claim(keys_of(range(5))).all()


@POSIX
@pytest.mark.parametrize(("pid", "granted"), [("1", False), ("dead", True)])
def test_other_processes_of_this_machine_are_believed_while_they_live(tmp_path, pid, granted):
    pid = a_dead_process() if pid == "dead" else pid
    claimed_by(tmp_path, f"{socket.gethostname()} {pid} x", range(5))
    with Claims(tmp_path) as claims:
        assert claims.claim(keys_of(range(5))).tolist() == [granted] * 5


@POSIX
def test_a_process_of_another_user_is_alive(tmp_path, monkeypatch):
    def denied(pid, number):
        raise PermissionError

    claimed_by(tmp_path, f"{socket.gethostname()} 4711 x", range(5))
    monkeypatch.setattr("esm2_features._cache.claims.os.kill", denied)
    with Claims(tmp_path) as claims:
        assert not claims.claim(keys_of(range(5))).any()


# Failures cost work, and nothing else -------------------------------------------------------


def garbage():
    return np.random.default_rng(0).bytes(20_000)


@pytest.mark.parametrize("content", [garbage(), b"SQLite format 3\0" + bytes(5000)])
def test_a_damaged_file_grants_everything_and_is_removed(tmp_path, content):
    file = tmp_path / "claims.sqlite3"
    file.write_bytes(content)
    with Claims(tmp_path) as claims:
        assert claims.claim(keys_of(range(5))).all()
        assert claims.unclaimed(keys_of(range(5))).all()
        claims.release(keys_of(range(5)))
        assert not file.exists()
        with Claims(tmp_path) as second, Claims(tmp_path) as third:
            assert second.claim(keys_of(range(5))).all()
            assert not third.claim(keys_of(range(5))).any()
    assert raw(tmp_path, "select * from claim") == []


@pytest.mark.parametrize("content", [b"", b"x", bytes(3000)])
def test_a_file_without_content_is_begun(tmp_path, content):
    (tmp_path / "claims.sqlite3").write_bytes(content)
    for _ in range(2):  # zeros are damage, and the file is there again in the second run
        with Claims(tmp_path) as claims, Claims(tmp_path) as other:
            assert claims.claim(keys_of(range(5))).all()
            shared = not other.claim(keys_of(range(5))).any()
    assert shared


def test_a_file_that_is_damaged_in_the_middle_of_a_run(tmp_path):
    with Claims(tmp_path) as claims:
        assert claims.claim(keys_of(range(500))).all()
        (tmp_path / "claims.sqlite3").write_bytes(garbage())
        assert claims.claim(keys_of(range(400, 600))).all()
        claims.release(keys_of(range(600)))
    with Claims(tmp_path) as claims, Claims(tmp_path) as other:
        assert claims.claim(keys_of(range(5))).all()
        assert not other.claim(keys_of(range(5))).any()


@pytest.mark.parametrize("length", [0, 1, 5000])
def test_a_file_that_is_cut_in_the_middle_of_a_run(tmp_path, length):
    with Claims(tmp_path) as claims:
        assert claims.claim(keys_of(range(500))).all()
        os.truncate(tmp_path / "claims.sqlite3", length)
        assert claims.claim(keys_of(range(600))).all()
        claims.release(keys_of(range(600)))


@pytest.mark.parametrize(
    ("owner", "until"),
    [
        (f"{socket.gethostname()} {10**30} x", 2.0**40),
        (7, 2.0**40),
        (b"\xff\xfe", 2.0**40),
        ("", 2.0**40),
        (f"{socket.gethostname()} 1 x", "later"),
        (f"{socket.gethostname()} 1 x", b"\xff"),
    ],
    ids=["pid", "number", "bytes", "empty", "text", "blob"],
)
def test_a_damaged_claim_is_no_error(tmp_path, owner, until):
    claimed_by(tmp_path, owner, range(5), until)
    with Claims(tmp_path) as claims:
        assert claims.claim(keys_of(range(3, 8))).tolist()[2:] == [True] * 3


def test_a_schema_that_is_no_text_grants_everything(tmp_path):
    claimed_by(tmp_path, "somebody 1 x", range(5))
    file = tmp_path / "claims.sqlite3"
    content = file.read_bytes()
    assert content.lower().count(b"create table claim") == 1
    file.write_bytes(content.lower().replace(b"create table claim", b"create tabl\xe5 claim"))
    with Claims(tmp_path) as claims:
        assert claims.claim(keys_of(range(5))).all()


def test_another_table_of_that_name_grants_everything(tmp_path):
    raw(tmp_path, "create table claim(something integer)")
    with Claims(tmp_path) as claims:
        assert claims.claim(keys_of(range(5))).all()


def test_a_lease_that_a_wrong_clock_wrote_is_not_believed(tmp_path):
    claimed_by(tmp_path, "elsewhere 1 x", range(5), until=time.time() + 10 * 365 * 86400)
    with Claims(tmp_path) as claims:
        assert claims.claim(keys_of(range(5))).all()


def test_a_file_that_was_locked_for_a_moment_keeps_no_claims(tmp_path, monkeypatch):
    monkeypatch.setattr(Claims, "busy_seconds", 0.0)
    with Claims(tmp_path) as claims:
        assert claims.claim(keys_of(range(3))).all()
        with closing(sqlite3.connect(tmp_path / "claims.sqlite3", isolation_level=None)) as file:
            file.execute("begin exclusive")
            assert claims.claim(keys_of(range(3, 5))).all()
    with Claims(tmp_path) as others:
        assert others.claim(keys_of(range(5))).all()


def test_a_locked_file_grants_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(Claims, "busy_seconds", 0.0)
    claimed_by(tmp_path, "somebody 1 x", range(5))
    with closing(sqlite3.connect(tmp_path / "claims.sqlite3", isolation_level=None)) as file:
        file.execute("begin exclusive")
        with Claims(tmp_path) as claims:
            assert claims.claim(keys_of(range(5))).all()
    assert (tmp_path / "claims.sqlite3").exists()


def test_a_file_where_the_folder_should_be_grants_everything(tmp_path):
    (tmp_path / "file").touch()
    with Claims(tmp_path / "file") as claims:
        assert claims.claim(keys_of(range(5))).all()
        claims.release(keys_of(range(5)))
    assert (tmp_path / "file").is_file()


@POSIX
@pytest.mark.parametrize("has_file", [False, True])
def test_a_read_only_folder_grants_everything(has_file):
    with tempfile.TemporaryDirectory() as name:  # which other users can reach
        folder = Path(name)
        if has_file:
            claimed_by(folder, "somebody 1 x", range(5))
            (folder / "claims.sqlite3").chmod(0o444)
        before = sorted(folder.iterdir())
        folder.chmod(0o555)

        def work():
            as_another_user()
            with Claims(folder) as claims:
                assert claims.claim(keys_of(range(5))).all()
                assert claims.unclaimed(keys_of(range(5))).all()
                claims.release(keys_of(range(5)))

        try:
            assert succeeded(fork(work))
        finally:
            folder.chmod(0o755)
        assert sorted(folder.iterdir()) == before
