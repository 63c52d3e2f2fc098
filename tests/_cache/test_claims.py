"""Claims: work is shared while it can be, and never refused when claims fail."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from cache_helpers import POSIX, as_another_user, fork, succeeded

from esm2_features._cache.claims import Claims
from esm2_features._cache.keys import computation_keys
from esm2_features._cache.run_lock import RunLock


def keys_of(numbers):
    return computation_keys("sha256:46f0", "float32", map(str, numbers))


def raw(folder, query, *values):
    with closing(sqlite3.connect(folder / "claims.sqlite3", isolation_level=None)) as file:
        return file.execute(query, values).fetchall()


def claimed_by(folder, run, numbers):
    """Let somebody else claim."""
    with Claims(folder) as claims:
        claims.claim(keys_of([999]))
    for key in keys_of(numbers):
        raw(folder, "insert into claimed values(?, ?)", key.tobytes(), run)


def lock_files(folder):
    return sorted(folder.glob("*.lock"))


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
    assert raw(tmp_path, "select * from claimed") == []


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
    assert len(raw(tmp_path, "select * from claimed")) == 10
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


def test_a_run_that_is_stopped_is_waited_for_until_it_is_silent(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("esm2_features._cache.run_lock.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(RunLock, "touch_seconds", 1e6)
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert first.claim(keys_of(range(5))).all()
        [file] = lock_files(tmp_path)
        clock[0] = 1000.0
        assert not second.unclaimed(keys_of(range(5))).any()
        clock[0] = 1059.0
        os.utime(file, ns=(0, 7))  # in 1970: what the clock says is nothing, that it changed is all
        assert not second.unclaimed(keys_of(range(5))).any()
        clock[0] = 1118.0
        assert not second.claim(keys_of(range(5))).any()
        clock[0] = 1120.0
        assert second.claim(keys_of(range(5))).all()
        # It goes on, and shares as before.
        first.release(keys_of(range(5)))
        assert first.claim(keys_of(range(10))).tolist() == [False] * 5 + [True] * 5


def test_a_run_touches_its_file_while_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(RunLock, "touch_seconds", 0.001)
    with Claims(tmp_path) as claims:
        claims.claim(keys_of([0]))
        [file] = lock_files(tmp_path)

        def is_touched():
            os.utime(file, ns=(0, 0))
            for _ in range(200):
                if file.stat().st_mtime_ns:
                    return True
                threading.Event().wait(0.001)
            return False

        assert is_touched()
        monkeypatch.setattr(RunLock, "idle_seconds", -1.0)
        threading.Event().wait(0.01)  # for a touch that was on its way
        os.utime(file, ns=(0, 0))
        threading.Event().wait(0.02)
        assert not file.stat().st_mtime_ns
    assert not lock_files(tmp_path)


@POSIX
def test_the_claims_of_a_killed_process_that_nobody_waits_for_are_free(tmp_path):
    """As under a main process of a container that does not wait for its children."""
    reading, writing = os.pipe()

    def work():
        claims = Claims(tmp_path)
        claims.claim(keys_of(range(5)))
        os.write(writing, b".")
        signal.pause()

    child = fork(work)
    try:
        assert os.read(reading, 1) == b"."
        os.kill(child, signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # ended, and still there
        with Claims(tmp_path) as claims:
            assert claims.claim(keys_of(range(5))).all()
    finally:
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)
    assert not lock_files(tmp_path)


@POSIX
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_containers_of_one_host_name_share_the_work(tmp_path):
    """Two processes with the same number, each in a space of process numbers of its own."""
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[2]); import test_claims as t;"
        "c = t.Claims(pathlib.Path(sys.argv[1])); print(c.claim(t.keys_of(range(4))).sum());"
        "sys.stdout.flush(); sys.stdin.read()"
    )
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c"]
    command += [code, str(tmp_path), str(Path(__file__).parent)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def started():
        process = subprocess.Popen(command, text=True, env=environment, **pipes)
        line = process.stdout.readline()
        if not line and "unshare" in process.stderr.read():
            pytest.skip("name spaces are not allowed here")
        return process, line.strip()

    first, n = started()
    assert n == "4"
    second, n = started()
    assert n == "0"
    first.kill()
    first.communicate()
    second.communicate("")
    third, n = started()
    assert n == "4"
    third.communicate("")


def test_locks_left_behind_are_removed(tmp_path):
    for name in ("claims-0.lock", f"claims-{'a' * 32}.lock"):
        (tmp_path / name).touch()
    with Claims(tmp_path) as claims:
        claims.claim(keys_of([0]))
        assert len(lock_files(tmp_path)) == 1
    assert lock_files(tmp_path) == []


@POSIX
def test_a_child_that_is_forked_leaves_the_lock_to_its_parent(tmp_path):
    with Claims(tmp_path) as claims:
        claims.claim(keys_of(range(5)))
        run = claims._run

        def work():
            run.close()

        assert succeeded(fork(work))
        with Claims(tmp_path) as other:
            assert not other.claim(keys_of(range(5))).any()


def test_a_lock_that_may_not_be_opened_is_of_somebody_who_lives(tmp_path, monkeypatch):
    claimed_by(tmp_path, "b" * 32, range(5))

    def denied(self, *_args, **_options):
        raise PermissionError

    with Claims(tmp_path) as claims:
        claims.claim(keys_of([7]))
        (tmp_path / f"claims-{'b' * 32}.lock").touch()
        monkeypatch.setattr("filelock.FileLock.acquire", denied)
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
    assert raw(tmp_path, "select * from claimed") == []


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
    "run", [7, b"\xff\xfe", "", "x" * 32, "../" * 10 + "ab", "a" * 32, b"a" * 32, 2**62, 1.5]
)
def test_a_damaged_claim_is_no_error(tmp_path, run):
    claimed_by(tmp_path, run, range(5))
    with Claims(tmp_path) as claims:
        assert claims.claim(keys_of(range(3, 8))).all()
        assert claims.unclaimed(keys_of(range(8))).all()


def test_a_schema_that_is_no_text_grants_everything(tmp_path):
    claimed_by(tmp_path, "somebody 1 x", range(5))
    file = tmp_path / "claims.sqlite3"
    content = file.read_bytes()
    assert content.lower().count(b"create table claimed") == 1
    file.write_bytes(content.lower().replace(b"create table claimed", b"create tabl\xe5 claimed"))
    with Claims(tmp_path) as claims:
        assert claims.claim(keys_of(range(5))).all()


def test_another_table_of_that_name_grants_everything(tmp_path):
    raw(tmp_path, "create table claimed(something integer)")
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
