"""The cache: what was written comes back, and what was damaged never does.

The last section breaks things on purpose: damaged files, full disks, locks, forks, kills.
"""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import signal
import sqlite3
import stat
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone

from esm2_features._cache import Cache, default_folder, open_cache
from esm2_features._cache_file import transaction
from esm2_features.exceptions import CacheVersionError, CacheWarning, InputError

POSIX = pytest.mark.skipif(os.name != "posix", reason="forks, signals and limits are POSIX")
DIM = 320


def keys_of(numbers: range) -> list[bytes]:
    return [blake2b(b"%d" % number, digest_size=32).digest() for number in numbers]


def rows_of(numbers: range, dim: int = DIM) -> NDArray[np.float32]:
    """Rows that tell by every number in them which row they are."""
    ramp = np.arange(dim, dtype=np.float32) * np.float32(1e-3)
    return np.asarray(numbers, np.float32)[:, None] + 1 + ramp


def filled(folder: Path, numbers: range, dim: int = DIM) -> Cache:
    cache = Cache(folder)
    cache.put_many(keys_of(numbers), rows_of(numbers, dim))
    return cache


def check(cache: Cache, numbers: range, dim: int = DIM) -> int:
    """Read rows; what is said to be found must be right, the rest zero. How many were found."""
    rows, hit = cache.get_many(keys_of(numbers), dim)
    np.testing.assert_array_equal(rows[hit], rows_of(numbers, dim)[hit])
    assert not rows[~hit].any()
    return int(hit.sum())


@contextmanager
def raw(cache: Cache) -> Iterator[sqlite3.Connection]:
    """The file, past the cache."""
    connection = sqlite3.connect(cache.file, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def caches_warn() -> Iterator[list[str]]:
    """Collect the messages of the warnings, all of which must be of the cache."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    assert all(warning.category is CacheWarning for warning in caught)
    messages.extend(str(warning.message) for warning in caught)


def fork(work: Callable[[], object]) -> int:
    """Do some work in another process; its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks that have threads
        pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # a child that hangs shall fail, not hang the test
        try:
            work()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return pid


def succeeded(pid: int) -> bool:
    return os.waitpid(pid, 0)[1] == 0


def as_another_user() -> None:
    """Give up the rights of root, whom read-only does not bind."""
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


# What is written comes back ----------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_bit_comes_back_in_the_order_of_the_keys(data: st.DataObject) -> None:
    keys = data.draw(st.lists(st.binary(max_size=40), min_size=1, max_size=12, unique=True))
    dim = data.draw(st.integers(1, 5))
    bits = data.draw(st.binary(min_size=4 * dim * len(keys), max_size=4 * dim * len(keys)))
    rows = np.frombuffer(bits, np.float32).reshape(len(keys), dim)  # NaNs and all
    unknown = data.draw(st.lists(st.binary(max_size=40).filter(lambda k: k not in keys)))
    asked = data.draw(st.permutations(keys + keys[:3] + unknown))
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(folder)
        cache.put_many(keys, rows)
        got, hit = cache.get_many(asked, dim)
        del cache
    assert got.dtype == np.float32
    assert got.shape == (len(asked), dim)
    assert hit.tolist() == [key in keys for key in asked]
    for key, row in zip(asked, got, strict=True):
        assert row.tobytes() == (rows[keys.index(key)].tobytes() if key in keys else bytes(4 * dim))


def test_more_rows_than_one_query_takes(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(1203), dim=3)
    order = np.random.default_rng(0).permutation(1203)
    keys = keys_of(range(1203))
    rows, hit = Cache(tmp_path).get_many([keys[i] for i in order], 3)
    assert hit.all()
    np.testing.assert_array_equal(rows, rows_of(range(1203), 3)[order])
    assert cache.info().rows == 1203


def test_the_last_row_of_a_key_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put_many([b"a", b"b", b"a"], np.float32([[1], [2], [3]]))
    assert cache.get_many([b"a", b"b"], 1)[0].tolist() == [[3], [2]]
    cache.put_many([b"b"], np.float32([[4]]))
    assert cache.get_many([b"a", b"b"], 1)[0].tolist() == [[3], [4]]
    assert cache.info().rows == 2


def test_a_row_may_change_its_width(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(3), dim=8)
    assert check(cache, range(3), dim=16) == 0  # a miss, and no warning: nothing is damaged
    cache.put_many(keys_of(range(3)), rows_of(range(3), 16))
    assert check(cache, range(3), dim=16) == 3


def test_rows_need_not_be_contiguous(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put_many(keys_of(range(5)), rows_of(range(10))[::2][:, ::-1])
    rows, _ = cache.get_many(keys_of(range(5)), DIM)
    np.testing.assert_array_equal(rows, rows_of(range(10))[::2][:, ::-1])


def test_nothing_asked_nothing_given(tmp_path: Path) -> None:
    rows, hit = Cache(tmp_path).get_many([], DIM)
    assert (rows.shape, rows.dtype, hit.shape) == ((0, DIM), np.float32, (0,))
    assert filled(tmp_path, range(1)).get_many([], DIM)[0].shape == (0, DIM)


@pytest.mark.parametrize("shape", [(2, 4), (3,), (3, 4, 1)])
def test_rows_that_do_not_match_the_keys_are_refused(tmp_path: Path, shape: tuple[int]) -> None:
    with pytest.raises(ValueError, match=r"Got rows of shape .* but expected \(3, dim\)"):
        Cache(tmp_path).put_many([b"a", b"b", b"c"], np.zeros(shape, np.float32))


def test_info_and_clear(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(200))
    info = cache.info()
    assert (info.path, info.rows, info.bytes) == (tmp_path, 200, cache.file.stat().st_size)
    assert info.bytes > 200 * DIM * 4
    cache.clear()
    assert cache.info().rows == 0
    assert cache.info().bytes < info.bytes / 4
    assert check(cache, range(200)) == 0


def test_use_is_noted_by_the_week(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(3))
    keys = keys_of(range(3))
    with raw(cache) as file:
        (today,) = file.execute("select max(day) from vector").fetchone()
        for key, day in zip(keys, (today - 8, today - 6, 0), strict=True):
            file.execute("update vector set day = ? where key = ?", (day, key))
        check(cache, range(2))
        assert dict(file.execute("select key, day from vector")) == {
            keys[0]: today,
            keys[1]: today - 6,  # too recent to be worth a write
            keys[2]: 0,  # not asked for
        }


def test_use_is_noted_without_waiting(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(3))
    with raw(cache) as file:
        file.execute("update vector set day = 0")
        file.execute("begin immediate")  # keeps others from writing, not from reading
        start = time.monotonic()
        assert check(cache, range(3)) == 3
        assert time.monotonic() - start < cache.busy_seconds / 2
        file.execute("commit")
        assert check(cache, range(3)) == 3
        assert file.execute("select count(*) from vector where day = 0").fetchone() == (0,)


# What a cache is ---------------------------------------------------------------------------


def test_reading_creates_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "new")
    assert check(cache, range(3)) == 0
    assert cache.info() == (tmp_path / "new", 0, 0)
    cache.clear()
    cache.put_many([], np.zeros((0, DIM), np.float32))
    assert not cache.path.exists()


@POSIX
def test_what_is_created_is_for_the_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        cache = filled(tmp_path / "new", range(3))
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(cache.file.stat().st_mode) == 0o600


def test_the_format_of_the_file(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(1), dim=2)
    with raw(cache) as file:
        (key, dim, value) = file.execute("select key, dim, value from vector").fetchone()
        assert (key, dim) == (keys_of(range(1))[0], 2)
        np.testing.assert_array_equal(np.frombuffer(value, "<f4"), rows_of(range(1), 2)[0])
        assert file.execute("pragma application_id").fetchone() == (0x45534D32,)
        assert file.execute("pragma user_version").fetchone() == (1,)
        assert file.execute("pragma journal_mode").fetchone() == ("delete",)
    assert [entry.name for entry in tmp_path.iterdir()] == ["embeddings.sqlite3"]


class Holder(BaseEstimator):
    def __init__(self, cache: object = None) -> None:
        self.cache = cache


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        lambda cache: pickle.loads(pickle.dumps(cache)),
        lambda cache: clone(Holder(cache)).cache,
    ],
    ids=["copy", "deepcopy", "pickle", "clone"],
)
def test_copies_are_equal_and_work(tmp_path: Path, copied: Callable[[Cache], Cache]) -> None:
    cache = filled(tmp_path, range(3))
    other = copied(cache)
    assert other == cache
    assert hash(other) == hash(cache)
    assert check(other, range(3)) == 3
    other.put_many(keys_of(range(3, 5)), rows_of(range(3, 5)))
    assert check(cache, range(5)) == 5


def test_caches_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    assert Cache(tmp_path / "a") != Cache(tmp_path / "b")
    assert Cache(tmp_path) != str(tmp_path)
    assert repr(Cache(tmp_path)) == f"Cache({str(tmp_path)!r})"
    assert Cache("relative").path == Path.cwd() / "relative"


def test_what_may_be_passed_as_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESM2_FEATURES_CACHE", str(tmp_path / "chosen"))
    assert open_cache(None) is None
    assert open_cache("auto") == Cache(tmp_path / "chosen") == Cache()
    assert open_cache(str(tmp_path)) == open_cache(tmp_path) == Cache(tmp_path)
    cache = Cache(tmp_path)
    assert open_cache(cache) is cache
    for wrong in (True, 3, b"folder", [tmp_path]):
        with pytest.raises(TypeError, match='pass None, "auto", the path of a folder, or a Cache'):
            open_cache(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pass None for no cache"):
        open_cache("")


@pytest.mark.parametrize("unset", ["", None])
def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, unset: str | None) -> None:
    monkeypatch.delenv("ESM2_FEATURES_CACHE", raising=False)
    if unset is not None:
        monkeypatch.setenv("ESM2_FEATURES_CACHE", unset)
    assert default_folder() == platformdirs.user_cache_path("esm2_features") / "embeddings"


# Many at once ------------------------------------------------------------------------------


def test_threads_share_a_cache(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def work(part: int) -> int:
        numbers = range(part * 40, part * 40 + 60)  # each overlaps with the next
        cache.put_many(keys_of(numbers), rows_of(numbers))
        return check(cache, numbers)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(12))) == [60] * 12
    assert check(cache, range(11 * 40 + 60)) == 11 * 40 + 60


def write_all(cache: Cache, numbers: range, acknowledge: int | None = None) -> None:
    for start in numbers[::20]:
        batch = range(start, start + 20)
        cache.put_many(keys_of(batch), rows_of(batch))
        if acknowledge is not None:
            os.write(acknowledge, b".")


@POSIX
def test_two_processes_begin_and_write_one_file(tmp_path: Path) -> None:
    parts = range(300), range(200, 500)
    writers = [fork(lambda part=part: write_all(Cache(tmp_path), part)) for part in parts]
    assert [succeeded(writer) for writer in writers] == [True, True]
    assert check(Cache(tmp_path), range(500)) == 500


@POSIX
def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    writer = fork(lambda: write_all(Cache(tmp_path), range(10**6), writing))
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        acknowledged = len(pipe.read(1))
        while acknowledged < 20:
            acknowledged += len(pipe.read(1))
        os.kill(writer, signal.SIGKILL)
        assert not succeeded(writer)
        acknowledged += len(pipe.read())
    assert check(Cache(tmp_path), range(20 * acknowledged)) == 20 * acknowledged


@POSIX
def test_a_forked_child_opens_its_own_connection_and_leaves_its_parents(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(3))
    inherited = cache._local.connection
    assert inherited is not None

    def work() -> None:
        assert check(cache, range(3)) == 3
        assert cache._local.connection is not inherited
        assert inherited.total_changes == 3  # raises if it was closed

    assert succeeded(fork(work))
    assert check(cache, range(3)) == 3
    assert cache._local.connection is inherited


@POSIX
def test_forks_in_the_middle_of_writes(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(100))
    check(cache, range(100))
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            cache.put_many(keys_of(range(100)), rows_of(range(100)))

    def work(own: range) -> None:
        assert check(cache, range(100)) == 100
        cache.put_many(keys_of(own), rows_of(own))
        assert check(cache, own) == 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(100, 108):
            assert succeeded(fork(partial(work, range(number, number + 1))))
    finally:
        stop.set()
        thread.join()
    assert check(cache, range(108)) == 108
    with raw(cache) as file:
        assert file.execute("pragma integrity_check").fetchone() == ("ok",)


def test_an_interrupted_write_leaves_neither_half_nor_lock(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(3))

    def interrupted(connection: sqlite3.Connection) -> None:
        with transaction(connection):
            connection.execute("delete from vector")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache._run("written", interrupted)
    other = Cache(tmp_path)
    other.busy_seconds = 0.0  # type: ignore[misc]
    other.put_many(keys_of(range(3, 5)), rows_of(range(3, 5)))
    assert check(other, range(5)) == 5


def test_a_file_that_vanishes_is_begun_anew(tmp_path: Path) -> None:
    cache = filled(tmp_path / "new", range(3))
    shutil.rmtree(cache.path)
    assert check(cache, range(3)) == 0
    cache.put_many(keys_of(range(2)), rows_of(range(2)))
    assert check(cache, range(3)) == 2


# Damage ------------------------------------------------------------------------------------


def test_a_damaged_value_is_a_miss_warned_of_once_and_healed_by_writing(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(5))
    keys = keys_of(range(5))
    with raw(cache) as file:
        damage = "update vector set value = ? where key = ?"
        other = file.execute("select value from vector where key = ?", keys[:1]).fetchone()[0]
        file.execute(damage, (other, keys[1]))  # intact, but another key's
        file.execute(damage, (other[:-4], keys[2]))
        file.execute(damage, (7, keys[3]))  # no blob
        file.execute("update vector set value = cast(x'ff80' as text) where key = ?", keys[4:])
    with caches_warn() as caught:
        assert check(cache, range(5)) == 1
        assert check(cache, range(5)) == 1
    (message,) = caught
    assert f"The cache {cache.file} holds a damaged value" in message
    cache.put_many(keys, rows_of(range(5)))
    assert check(cache, range(5)) == 5


def test_a_row_moved_under_another_key_is_a_miss(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(2))
    first, second = keys_of(range(2))
    with raw(cache) as file:
        file.execute("delete from vector where key = ?", (first,))
        file.execute("update vector set key = ? where key = ?", (first, second))
    with pytest.warns(CacheWarning, match="damaged value"):
        assert check(cache, range(2)) == 0


@settings(max_examples=100, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_gives_a_wrong_vector(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    pristine = tmp_path_factory.getbasetemp() / "pristine"
    if not pristine.exists():
        filled(pristine, range(60))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        cache = Cache(folder)
        content = bytearray((pristine / cache.file.name).read_bytes())
        at = int(place * len(content))
        content[at] ^= 1 << bit
        cache.file.write_bytes(content)
        try:
            check(cache, range(60))
        except CacheVersionError:
            assert 60 <= at < 72  # the header's version and application id
            return
        cache.put_many(keys_of(range(60)), rows_of(range(60)))
        check(cache, range(60))


def garbage(content: bytes) -> bytes:
    return np.random.default_rng(0).bytes(len(content))


def zeroed_pages(content: bytes) -> bytes:
    return bytes(len(content) // 2) + content[len(content) // 2 :]


@pytest.mark.parametrize(
    "damage",
    [
        garbage,
        zeroed_pages,
        lambda content: b"\0" * 100,
        lambda content: b"xy",
        lambda content: content[:50],
        lambda content: content[:16384],
        lambda content: content[: len(content) // 2],
    ],
    ids=["garbage", "zeroed", "zeros", "xy", "cut to 50", "cut to a page", "cut to half"],
)
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    cache = filled(tmp_path, range(100))
    check(cache, range(100))  # so that a connection is open
    content = damage(cache.file.read_bytes())
    cache.file.write_bytes(content)
    journal = Path(f"{cache.file}-journal")
    journal.write_bytes(b"\0an old journal")
    with caches_warn() as caught:
        assert check(cache, range(100)) < 100
        cache.put_many(keys_of(range(100)), rows_of(range(100)))
    (message,) = caught
    assert check(cache, range(100)) == 100
    aside, its_journal = sorted(tmp_path.glob("*.corrupt-*"))
    assert aside.read_bytes() == content
    assert its_journal.name == f"{aside.name}-journal"
    assert its_journal.read_bytes() == b"\0an old journal"
    assert not journal.exists()
    assert f"set aside as {aside}, which" in message


def test_no_truncation_gives_a_wrong_vector(tmp_path: Path) -> None:
    cache = filled(tmp_path / "whole", range(60))
    content = cache.file.read_bytes()
    lengths = np.random.default_rng(0).integers(0, len(content), 12)
    for length in [len(content) - 1, 1, 0, *lengths.tolist()]:
        cut = Cache(tmp_path / f"cut to {length}")
        cut.path.mkdir()
        cut.file.write_bytes(content[:length])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CacheWarning)
            assert check(cut, range(60)) < 60
            cut.put_many(keys_of(range(60)), rows_of(range(60)))
        assert check(cut, range(60)) == 60


@pytest.mark.parametrize("length", [0, 1])
def test_a_file_that_is_emptied_while_open_is_begun_anew(tmp_path: Path, length: int) -> None:
    cache = filled(tmp_path, range(3))
    check(cache, range(3))
    os.truncate(cache.file, length)
    assert check(cache, range(3)) == 0
    cache.put_many(keys_of(range(3)), rows_of(range(3)))
    assert check(cache, range(3)) == 3


def test_an_empty_file_is_begun(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.file.touch()
    assert check(cache, range(3)) == 0
    cache.put_many(keys_of(range(3)), rows_of(range(3)))
    assert check(cache, range(3)) == 3


def test_a_file_that_another_process_set_aside_is_let_go(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(3))
    cache.file.rename(tmp_path / "aside")
    filled(tmp_path, range(10, 12))
    assert check(cache, range(12)) == 2
    cache.put_many(keys_of(range(3)), rows_of(range(3)))
    assert check(Cache(tmp_path), range(12)) == 5


# Files that are not ours to touch ----------------------------------------------------------


def a_newer_version(file: sqlite3.Connection) -> None:
    file.execute("pragma user_version = 7")


def another_program(file: sqlite3.Connection) -> None:
    file.execute("pragma application_id = 1")


def a_program_without_id(file: sqlite3.Connection) -> None:
    file.execute("pragma application_id = 0")
    file.execute("pragma user_version = 0")


@pytest.mark.parametrize(
    ("change", "message", "found"),
    [
        (a_newer_version, "has format 7; this version reads 1. Upgrade esm2-features", 7),
        (another_program, "belongs to another program. Move it away, or choose", 1),
        (a_program_without_id, "belongs to another program", 0),
    ],
)
def test_files_that_are_refused_and_left_as_they_are(
    tmp_path: Path, change: Callable[[sqlite3.Connection], None], message: str, found: int
) -> None:
    cache = filled(tmp_path, range(3))
    with raw(cache) as file:
        change(file)
    content = cache.file.read_bytes()
    for use in (
        lambda: check(Cache(tmp_path), range(3)),
        lambda: filled(tmp_path, range(3)),
        lambda: Cache(tmp_path).info(),
        lambda: Cache(tmp_path).clear(),
    ):
        with pytest.raises(CacheVersionError, match=message) as caught:
            use()
        assert (caught.value.path, caught.value.found) == (str(cache.file), found)
        assert caught.value.expected == 1
    assert cache.file.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [cache.file.name]


# Failures that cost time, and nothing else -------------------------------------------------


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("in the way")
    cache = Cache(tmp_path / "folder")
    with caches_warn() as caught:
        for _ in range(3):
            assert check(cache, range(3)) == 0
            cache.put_many(keys_of(range(3)), rows_of(range(3)))
    read, written = caught
    assert f"{cache.file} could not be read: [Errno 20]" in read
    assert f"{cache.file} could not be written: [Errno 20]" in written
    with pytest.raises(OSError, match="could not be cleared"):
        cache.clear()


def test_a_locked_file_is_waited_for_once_and_used_again_later(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(3))
    hasty = Cache(tmp_path)
    hasty.busy_seconds = 0.02  # type: ignore[misc]
    with raw(cache) as file:
        file.execute("begin exclusive")
        with caches_warn() as caught:
            for _ in range(20):
                assert check(hasty, range(3)) == 0
                hasty.put_many(keys_of(range(3)), rows_of(range(3)))
        with pytest.raises(OSError, match="could not be cleared: database is locked"):
            hasty.clear()
        file.execute("commit")
    read, written = caught
    assert "could not be read: database is locked" in read
    assert "could not be written: database is locked" in written
    assert check(hasty, range(3)) == 0  # it rests
    hasty.rest_seconds = 0.0  # type: ignore[misc]
    hasty._resting_until["read"] = 0.0
    assert check(hasty, range(3)) == 3


@POSIX
def test_a_full_disk_keeps_what_it_has_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits are POSIX")
    cache = filled(tmp_path, range(50))

    def work() -> None:
        cache.rest_seconds = 0.0  # type: ignore[misc]
        room = cache.file.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        with caches_warn() as caught:
            write_all(cache, range(50, 250))
        (message,) = caught
        assert f"{cache.file} could not be written: disk" in message
        assert check(cache, range(250)) == 50
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        write_all(cache, range(50, 90))
        assert check(cache, range(250)) == 90

    assert succeeded(fork(work))


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that other users can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "shared"


@POSIX
def test_a_shared_cache_that_is_read_only_is_read(shared_folder: Path) -> None:
    cache = filled(shared_folder, range(50))
    with raw(cache) as file:
        file.execute("update vector set day = 0")  # so that to note their use is tried
    cache.file.chmod(0o444)
    cache.path.chmod(0o555)

    def work() -> None:
        as_another_user()
        cache = Cache(shared_folder)
        assert check(cache, range(80)) == 50
        assert cache.info().rows == 50
        with caches_warn() as caught:
            write_all(cache, range(80))
        (message,) = caught
        assert f"{cache.file} could not be written: attempt to write a readonly" in message
        assert check(cache, range(80)) == 50

    try:
        assert succeeded(fork(work))
    finally:
        cache.path.chmod(0o755)


@POSIX
def test_a_reader_leaves_a_damaged_file_to_its_owner(shared_folder: Path) -> None:
    cache = filled(shared_folder, range(50))
    cache.file.write_bytes(garbage(bytes(5000)))
    cache.file.chmod(0o444)
    cache.path.chmod(0o777)

    def work() -> None:
        as_another_user()
        with caches_warn() as caught:
            assert check(Cache(shared_folder), range(50)) == 0
        (message,) = caught
        assert f"{cache.file} could not be read: file is not a database" in message

    assert succeeded(fork(work))
    assert [path.name for path in cache.path.iterdir()] == [cache.file.name]
