"""The way to the file: what breaks costs time, one warning, and nothing else.

Things are broken on purpose here: damaged files, full disks, locks, forks.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import tempfile
import threading
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from cache_helpers import (
    CLS,
    NOBODY,
    POSIX,
    as_another_user,
    caches_warn,
    filled,
    fork,
    found,
    keys_by_block,
    part_of,
    raw,
    succeeded,
)
from faulty_io import output_under
from hypothesis import example, given, settings
from hypothesis import strategies as st

from esm2_features._cache import Cache
from esm2_features._cache import blocks as _cache_blocks
from esm2_features._cache.blocks import VectorBlock
from esm2_features._cache.connection import CacheConnection
from esm2_features._cache.file import transaction
from esm2_features._cache.store import VectorStore
from esm2_features.exceptions import CacheVersionError, CacheWarning


def write_all(cache, numbers):
    for start in numbers[::20]:
        cache._put_many([part_of(range(start, start + 20))])


# Whose file it is --------------------------------------------------------------------------


@POSIX
def test_what_is_created_is_for_the_owner_only(tmp_path):
    before = os.umask(0)
    try:
        cache = filled(tmp_path / "new", range(3))
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(cache.file.stat().st_mode) == 0o600


@POSIX
def test_a_folder_that_exists_keeps_its_permissions(tmp_path):
    (tmp_path / "mine").mkdir(mode=0o755)
    (tmp_path / "mine").chmod(0o755)
    assert stat.S_IMODE(filled(tmp_path / "mine", range(3)).path.stat().st_mode) == 0o755


@POSIX
@pytest.mark.parametrize(
    ("folder", "file"), [(0o2770, 0o660), (0o775, 0o660), (0o755, 0o600), (0o1777, 0o600)]
)
def test_a_group_that_may_make_files_in_the_folder_may_write_the_cache(tmp_path, folder, file):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours").chmod(folder)
    cache = filled(tmp_path / "ours", range(3))
    assert stat.S_IMODE(cache.file.stat().st_mode) == file


@POSIX
def test_a_forked_child_opens_its_own_connection_and_leaves_its_parents(tmp_path):
    cache = filled(tmp_path, range(3))
    inherited = cache._link._local.connection
    changes = inherited.total_changes

    def work():
        assert found(cache, range(3)) == 3
        assert cache._link._local.connection is not inherited
        assert inherited.total_changes == changes  # raises if it was closed

    assert succeeded(fork(work))
    assert found(cache, range(3)) == 3
    assert cache._link._local.connection is inherited


@POSIX
def test_forks_in_the_middle_of_writes(tmp_path):
    cache = filled(tmp_path, range(100))
    found(cache, range(100))
    stop = threading.Event()

    def write():
        while not stop.is_set():
            cache._put_many([part_of(range(100))])

    def work(own):
        assert found(cache, range(100)) == 100
        cache._put_many([part_of(own)])
        assert found(cache, own) == 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(100, 104):
            assert succeeded(fork(partial(work, range(number, number + 1))))
    finally:
        stop.set()
        thread.join()
    assert found(cache, range(104)) == 104
    with raw(cache) as file:
        assert file.execute("pragma integrity_check").fetchone() == ("ok",)


def test_vectors_that_are_written_again_while_they_are_looked_for_are_found(tmp_path, monkeypatch):
    cache, other = filled(tmp_path, range(100)), Cache(tmp_path)
    other._link.busy_seconds = 0.0
    found(cache, range(100))
    read_blocks = _cache_blocks.read_blocks

    def after_another_process(*args):
        monkeypatch.setattr(_cache_blocks, "read_blocks", read_blocks)
        with caches_warn():  # that it is locked, maybe
            other._put_many([part_of(range(100))])
        return read_blocks(*args)

    monkeypatch.setattr(_cache_blocks, "read_blocks", after_another_process)
    assert found(cache, range(100)) == 100


def test_an_interrupted_write_leaves_neither_half_nor_lock(tmp_path):
    cache = filled(tmp_path, range(3))

    def interrupted(connection):
        with transaction(connection):
            connection.execute("delete from block")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache._link.run("written", interrupted)
    other = Cache(tmp_path)
    other._link.busy_seconds = 0.0
    other._put_many([part_of(range(3, 5))])
    assert found(other, range(5)) == 5


def test_a_file_that_vanishes_is_begun_anew(tmp_path):
    cache = filled(tmp_path / "new", range(3))
    assert found(cache, range(3)) == 3
    shutil.rmtree(cache.path)
    assert found(cache, range(3)) == 0
    cache._put_many([part_of(range(2))])
    assert found(cache, range(3)) == 2


# Damage ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """The bytes of a file of three blocks."""
    cache = filled(tmp_path_factory.mktemp("pristine"), range(0))
    write_all(cache, range(60))
    return cache.file.read_bytes()


def with_content(folder, content):
    cache = Cache(folder)
    cache.file.write_bytes(content)
    return cache


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@example(place=64836 / 458752, bit=4)
def test_no_flipped_bit_gives_a_wrong_vector(pristine, place, bit):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        content = bytearray(pristine)
        at = int(place * len(content))
        content[at] ^= 1 << bit
        cache = with_content(Path(folder), content)
        try:
            found(cache, range(60))
        except CacheVersionError:
            assert 60 <= at < 72  # the header's version and application id
            return
        cache._put_many([part_of(range(60))])
        found(cache, range(60))


@POSIX
@pytest.mark.parametrize("page", range(1, 8))
def test_no_byte_of_the_structure_makes_a_run_fail_or_hang(pristine, page, tmp_path):
    begin = (page - 1) * 65536
    written = [at for at in range(begin, begin + 65536) if pristine[at]]
    # Records grow from the end of a page, so what tells about them is at both ends.
    places = written[:20] + written[-20:]
    if page == 1:
        places = [at for at in written if at >= 100][::12]  # the schema

    def work():
        warnings.simplefilter("ignore", CacheWarning)
        for number, at in enumerate(places):
            folder = tmp_path / str(number)
            folder.mkdir()
            content = bytearray(pristine)
            content[at] ^= 1 << (number % 7 + 1)
            cache = with_content(folder, content)
            found(cache, range(60))
            cache._put_many([part_of(range(60))])
            found(cache, range(60))

    assert succeeded(fork(work, seconds=15))


def test_a_schema_that_is_no_text_is_damage(tmp_path):
    """SQLite quotes the schema in its messages, which Python then cannot decode."""
    cache = filled(tmp_path, range(3))
    content = cache.file.read_bytes()
    assert content.count(b"CREATE TABLE space") == 1
    cache.file.write_bytes(content.replace(b"CREATE TABLE space", b"CREATE TABL\xe5 space"))
    with caches_warn() as caught:
        assert found(Cache(tmp_path), range(3)) == 0
        filled(tmp_path, range(3))
    assert caught
    assert found(Cache(tmp_path), range(3)) == 3


def test_a_schema_that_is_another_one_is_damage(tmp_path):
    cache = filled(tmp_path, range(3))
    content = cache.file.read_bytes()
    assert content.count(b"crc integer not null") == 1
    cache.file.write_bytes(content.replace(b"crc integer not null", b"brc integer not null"))
    with caches_warn() as caught:
        cache = Cache(tmp_path)
        assert found(cache, range(3)) == 0
        cache._put_many([part_of(range(3))])
    assert caught
    assert found(Cache(tmp_path), range(3)) == 3


def garbage(content):
    return np.random.default_rng(0).bytes(len(content))


def zeroed_pages(content):
    return bytes(len(content) // 2) + content[len(content) // 2 :]


@pytest.mark.parametrize(
    "damage",
    [
        garbage,
        zeroed_pages,
        lambda content: b"\0" * 100,
        lambda content: b"xy",
        lambda content: content[:50],
        lambda content: content[:65536],
        lambda content: content[: len(content) // 2],
    ],
    ids=["garbage", "zeroed", "zeros", "xy", "cut to 50", "cut to a page", "cut to half"],
)
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(tmp_path, damage):
    cache = filled(tmp_path, range(300))
    found(cache, range(300))  # so that a connection is open
    content = damage(cache.file.read_bytes())
    cache.file.write_bytes(content)
    journal = Path(f"{cache.file}-journal")
    journal.write_bytes(b"\0an old journal")
    with caches_warn() as caught:
        assert found(cache, range(300)) < 300
        cache._put_many([part_of(range(300))])
    (message,) = caught
    assert found(cache, range(300)) == 300
    aside, its_journal = sorted(tmp_path.glob("*.corrupt-*"))
    assert aside.read_bytes() == content
    assert its_journal.name == f"{aside.name}-journal"
    assert its_journal.read_bytes() == b"\0an old journal"
    assert not journal.exists()
    assert f"set aside as {aside}, and a new one is begun" in message


def test_no_truncation_gives_a_wrong_vector(tmp_path, pristine):
    lengths = np.random.default_rng(0).integers(0, len(pristine), 12)
    for length in [len(pristine) - 1, 1, 0, *lengths.tolist()]:
        (tmp_path / f"cut to {length}").mkdir()
        cut = with_content(tmp_path / f"cut to {length}", pristine[:length])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CacheWarning)
            assert found(cut, range(60)) < 60
            cut._put_many([part_of(range(60))])
        assert found(cut, range(60)) == 60


@pytest.mark.parametrize("length", [0, 1])
def test_a_file_that_is_emptied_while_open_is_begun_anew(tmp_path, length):
    cache = filled(tmp_path, range(3))
    found(cache, range(3))
    os.truncate(cache.file, length)
    assert found(cache, range(3)) == 0
    cache._put_many([part_of(range(3))])
    assert found(cache, range(3)) == 3


def test_an_empty_file_is_begun(tmp_path):
    cache = Cache(tmp_path)
    cache.file.touch()
    assert found(cache, range(3)) == 0
    cache._put_many([part_of(range(3))])
    assert found(cache, range(3)) == 3


def test_a_file_that_another_process_set_aside_is_let_go(tmp_path):
    cache = filled(tmp_path, range(3))
    found(cache, range(3))
    cache.file.rename(tmp_path / "aside")
    filled(tmp_path, range(10, 12))
    assert found(cache, range(12)) == 2
    cache._put_many([part_of(range(3))])
    assert found(Cache(tmp_path), range(12)) == 5


def test_a_warning_points_to_the_file_and_is_given_once_by_all_threads(tmp_path):
    link = CacheConnection(tmp_path / "x")
    with caches_warn() as caught:
        threads = [threading.Thread(target=link.warn, args=("value", "broken")) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        link.warn("other", "also broken")
    assert sorted(caught) == ["also broken", "broken"]


# Failures that cost time, and nothing else -------------------------------------------------


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "folder").write_text("in the way")
    cache = Cache(tmp_path / "folder")
    with caches_warn() as caught:
        for _ in range(3):
            assert found(cache, range(3)) == 0
            cache._put_many([part_of(range(3))])
    read, written = caught
    assert f"{cache.file} could not be read: [Errno 20]" in read
    assert f"{cache.file} could not be written: [Errno 20]" in written
    with pytest.raises(OSError, match="could not be cleared"):
        cache.clear()


def test_a_locked_file_is_waited_for_once_and_used_again_later(tmp_path, monkeypatch):
    cache = filled(tmp_path, range(3))
    hasty = Cache(tmp_path)
    hasty._link.busy_seconds = 0.02
    hasty._link.locked_rest_seconds = 60.0
    with raw(cache) as file:
        file.execute("begin exclusive")
        with caches_warn() as caught:
            for _ in range(20):
                assert found(hasty, range(3)) == 0
                hasty._put_many([part_of(range(3))])
        monkeypatch.setattr(
            CacheConnection, "busy_seconds", 0.02
        )  # of what reads the folder anew, too
        for use, what in (
            (hasty.clear, "cleared"),
            (hasty.prune, "written"),
            (hasty.verify, "read"),
            (lambda: hasty.export(tmp_path / "x.parquet"), "read"),
            (lambda: Cache(tmp_path / "new").import_(cache.path), "read"),
        ):
            with pytest.raises(OSError, match=f"not be {what}: database is locked"):
                use()
        file.execute("commit")
    read, written = caught
    assert "could not be read: database is locked" in read
    assert "could not be written: database is locked" in written
    assert found(hasty, range(3)) == 0  # it rests
    hasty._link._resting_until["read"] = 0.0
    assert found(hasty, range(3)) == 3


def test_a_failing_file_is_tried_again_after_its_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(CacheConnection, "rest_seconds", 60.0)
    clock = [1000.0]
    monkeypatch.setattr("esm2_features._cache.connection.time.monotonic", lambda: clock[0])
    link, tries = CacheConnection(tmp_path / "x.sqlite3"), []

    def failing(connection):
        tries.append(clock[0])
        raise sqlite3.OperationalError("disk I/O error")

    with caches_warn() as caught:
        for clock[0] in (1000.0, 1001.0, 1059.9, 1060.1, 1061.0):
            assert link.attempt("written", failing) is None
    assert tries == [1000.0, 1060.1]
    assert len(caught) == 1


@POSIX
def test_a_full_disk_keeps_what_it_has_and_goes_on_when_there_is_room(tmp_path):
    resource = pytest.importorskip("resource", reason="limits are POSIX")
    cache = filled(tmp_path, range(50))

    def work():
        cache._link.rest_seconds = 0.0
        room = cache.file.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        with caches_warn() as caught:
            write_all(cache, range(60, 1060))
        (message,) = caught
        assert f"{cache.file} could not be written: disk" in message
        had = found(cache, range(1060))
        assert 50 <= had < 500
        assert found(cache, range(50)) == 50
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        write_all(cache, range(2000, 2040))
        assert found(cache, range(2000, 2040)) == 40
        assert found(cache, range(1060)) == had

    assert succeeded(fork(work))


@POSIX
def test_a_shared_cache_that_is_read_only_is_read(shared_folder):
    cache = filled(shared_folder, range(50))
    with raw(cache) as file:
        file.execute("update block set day = 0")  # so that to note their use is tried
    cache.file.chmod(0o444)
    cache.path.chmod(0o555)

    def work():
        as_another_user()
        cache = Cache(shared_folder)
        assert found(cache, range(80)) == 50
        assert cache.info().rows == 50
        assert cache.verify() == (50, ())
        with caches_warn() as caught:
            write_all(cache, range(80))
        (message,) = caught
        assert f"{cache.file} could not be written: attempt to write a readonly" in message
        assert found(cache, range(80)) == 50
        for use in (cache.clear, cache.prune):
            with pytest.raises(OSError, match="attempt to write a readonly"):
                use()

    try:
        assert succeeded(fork(work))
    finally:
        cache.path.chmod(0o755)


@POSIX
def test_damaged_vectors_of_a_read_only_cache_are_misses_and_the_others_are_found(shared_folder):
    cache = filled(shared_folder, range(50))
    with raw(cache) as file:
        (value,) = file.execute("select vectors from value").fetchone()
        file.execute("update value set vectors = ?", (b"\1" + value[1:],))
    cache.file.chmod(0o444)
    cache.path.chmod(0o555)

    def work():
        as_another_user()
        cache = Cache(shared_folder)
        with pytest.warns(CacheWarning, match="holds damaged vectors"):
            assert found(cache, range(50)) == 49
        assert found(cache, range(50)) == 49

    try:
        assert succeeded(fork(work))
    finally:
        cache.path.chmod(0o755)


@POSIX
def test_a_reader_leaves_a_damaged_file_to_its_owner(shared_folder):
    cache = filled(shared_folder, range(50))
    cache.file.write_bytes(garbage(bytes(5000)))
    cache.file.chmod(0o444)
    cache.path.chmod(0o777)

    def work():
        as_another_user()
        with caches_warn() as caught:
            assert found(Cache(shared_folder), range(50)) == 0
        (message,) = caught
        assert f"{cache.file} could not be read: file is not a database" in message

    assert succeeded(fork(work))
    assert [path.name for path in cache.path.iterdir()] == [cache.file.name]


# Sound files stay -------------------------------------------------------------------------------

READ_WRONG_ONCE = """
import os, sys, warnings
from pathlib import Path
from cache_helpers import Cache, found, part_of
warnings.simplefilter("error")
for number in range(1, 20):
    os.environ["FAULT_AT"] = str(number)
    assert found(Cache(sys.argv[1]), range(300)) == 300, number
for number in range(1, 20):
    os.environ["FAULT_AT"] = str(number)
    assert Cache(sys.argv[1])._put_many([part_of([300 + number])]), number
os.environ["FAULT_AT"] = "1000000"
assert found(Cache(sys.argv[1]), range(340)) == 320
print(*sorted(path.name for path in Path(sys.argv[1]).iterdir()))
"""


@pytest.mark.parametrize("fault", ["eio", "garbage"])
def test_a_file_that_is_read_wrong_once_stays_and_nothing_is_missed(tmp_path, fault):
    cache = filled(tmp_path, range(301))
    printed, _ = output_under(fault, READ_WRONG_ONCE, tmp_path, name=cache.file, at=1_000_000)
    assert printed.split() == [cache.file.name]


def misread(monkeypatch, times, error):
    """Let SQLite report an error so many times."""
    left = [error] * times
    read = VectorStore.read

    def once_wrong(*args, **kwargs):
        if left:
            raise left.pop()
        return read(*args, **kwargs)

    monkeypatch.setattr(VectorStore, "read", once_wrong)


def malformed():
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_CORRUPT, "SQLITE_CORRUPT"
    return error


def test_a_sound_file_that_is_read_wrong_again_and_again_stays(tmp_path, monkeypatch):
    cache = filled(tmp_path, range(3))
    misread(monkeypatch, 3, malformed())
    with caches_warn() as messages:
        assert found(cache, range(3)) == 0
    assert "was read wrong, and may be sound: it is left as it is. Check the disk" in messages[0]
    assert "could not be read: database disk image is malformed" in messages[1]
    assert [path.name for path in tmp_path.iterdir()] == [cache.file.name]
    assert found(Cache(tmp_path), range(3)) == 3


OFTEN_WRONG = """
import sys
from cache_helpers import Cache, found
from esm2_features._cache.connection import CacheConnection
cache = Cache(sys.argv[1])
CacheConnection.rest_seconds = 0.0
for _ in range(20):
    found(cache, range(2000))
"""


@pytest.mark.parametrize(("fault", "rate"), [("eio", 100_000), ("garbage", 200_000)])
def test_a_sound_file_on_a_disk_that_often_fails_stays(tmp_path, fault, rate):
    cache = filled(tmp_path, range(2000))
    output_under(fault, OFTEN_WRONG, tmp_path, name=cache.file, rate=rate, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == [cache.file.name]
    assert found(Cache(tmp_path), range(2000)) == 2000


def test_a_block_that_is_read_wrong_once_is_not_rewritten(tmp_path, monkeypatch):
    cache = filled(tmp_path, range(300))
    intact = VectorBlock.intact
    wrong = [True]

    def wrong_once(block, spec):
        return intact(block, spec) & ~np.array(wrong.pop() if wrong else False)

    monkeypatch.setattr(VectorBlock, "intact", wrong_once)
    before = keys_by_block(cache)
    for use in (
        lambda: found(cache, range(300)) == 300,
        lambda: cache.verify() == (300, ()),
        lambda: cache.prune().rows == 0,
        lambda: Cache(tmp_path / "b").import_(cache.path).added == 300,
    ):
        wrong[:] = [True]
        assert use()
        assert not wrong
    assert keys_by_block(cache) == before


@pytest.mark.parametrize(
    "change",
    [
        "create index mine on block(crc)",
        "create view mine as select count(*) as n from block",
        "create view mine as select * from gone",
        "create table mine(a, b)",
        "create virtual table mine using fts5(a)",
        "create trigger mine after insert on block begin select 1; end",
        "alter table block add column mine text default 'x'",
        "alter table value add column mine",
        "alter table file add column mine integer not null default 1",
        "alter table space add column mine blob",
        "drop index block_of_day",
        "analyze",
        'create index "a b\'c" on space(model)',
    ],
)
def test_a_sound_file_to_which_others_have_added_is_not_damaged(tmp_path, change):
    cache = filled(tmp_path, range(50))
    with raw(cache) as file:
        file.execute(change)
    for use in (cache, Cache(tmp_path)):
        assert found(use, range(50)) == 50
        use._put_many([part_of(range(50)), part_of(range(50, 60)), part_of(range(3), CLS)])
    assert cache.verify() == (63, ())
    assert cache.prune().rows == 0
    assert found(Cache(tmp_path), range(60)) == 60
    assert cache.clear() == 63


@pytest.mark.parametrize(
    "change",
    [
        "drop table value",
        "alter table block drop column checks",
        "alter table space rename column pooling to pool",
        "alter table file rename to files",
    ],
)
def test_a_file_that_lacks_a_table_or_column_is_damaged(tmp_path, change):
    cache = filled(tmp_path, range(50))
    with raw(cache) as file:
        file.execute(change)
    with caches_warn() as messages:
        assert found(Cache(tmp_path), range(50)) == 0
        filled(tmp_path, range(50))
    assert "is damaged: its table" in messages[0]
    assert "brought back by `esm2-features cache recover`" in messages[0]
    assert found(Cache(tmp_path), range(50)) == 50


# Files that others left ---------------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize(
    ("folder", "lock"), [(0o2770, 0o660), (0o775, 0o660), (0o755, 0o600), (0o1777, 0o600)]
)
def test_a_group_that_may_make_files_in_the_folder_may_set_damaged_files_aside(
    tmp_path, folder, lock
):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours").chmod(folder)
    cache = filled(tmp_path / "ours", range(3))
    cache.file.write_bytes(garbage(bytes(5000)))
    with caches_warn():
        cache._put_many([part_of(range(3))])
    assert stat.S_IMODE(Path(f"{cache.file}.lock").stat().st_mode) == lock


@POSIX
def test_whoever_of_the_group_meets_damage_next_sets_it_aside(shared_folder):
    shared_folder.mkdir()
    if os.getuid() == 0:
        os.chown(shared_folder, 0, NOBODY)
    shared_folder.chmod(0o2770)
    cache = Cache(shared_folder)
    for number in range(2):
        filled(shared_folder, range(3))
        cache.file.write_bytes(garbage(bytes(5000)))

        def work():
            with caches_warn() as messages:
                filled(shared_folder, range(3))
            assert "set aside" in messages[0]

        if number:
            shared_folder.parent.chmod(0o755)
            assert succeeded(fork(lambda: (as_another_user(), work())))
        else:
            work()
    assert len(list(shared_folder.glob("*.corrupt-*"))) == 2


def killed_while_writing(cache):
    """Leave a hot journal, as a writer does that is killed."""

    def work():
        with raw(cache) as file:
            file.execute("pragma cache_size=1")
            file.execute("begin immediate")
            file.execute("update block set day = 1")
            file.execute("insert into value select id + 100, randomblob(1000000) from block")
            os.kill(os.getpid(), signal.SIGKILL)

    pid = fork(work)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert Path(f"{cache.file}-journal").stat().st_size


@POSIX
@pytest.mark.parametrize("journal", [0o600, 0o644])
def test_who_may_only_read_learns_that_a_writer_was_killed(shared_folder, journal):
    cache = filled(shared_folder, range(300))
    cache.path.chmod(0o755)
    cache.file.chmod(0o644)
    killed_while_writing(cache)
    Path(f"{cache.file}-journal").chmod(journal)

    def work():
        as_another_user()
        cache = Cache(shared_folder)
        with caches_warn() as messages:
            assert found(cache, range(300)) == 0
        (message,) = messages
        assert "a process that wrote was killed, and left embeddings.sqlite3-journal" in message
        assert f"The next process that may write to {shared_folder} repairs it" in message
        with pytest.raises(OSError, match="was killed, and left"):
            cache.info()

    assert succeeded(fork(work))
    assert found(Cache(shared_folder), range(300)) == 300
    assert not Path(f"{cache.file}-journal").exists()

    def read():
        as_another_user()
        assert found(Cache(shared_folder), range(300)) == 300

    assert succeeded(fork(read))
