"""The SQLite file of the cache: its schema, and how to open it.

    <folder>/embeddings.sqlite3
    ├─ header    application_id 0x45534D32 ("ESM2"), user_version 2
    ├─ space     id      integer   one `Spec`: all that identifies a vector but the residues
    │            digest  blob      BLAKE2b-256 of the next five; unique
    │            checkpoint, layer, pooling, precision, dtype; and model, for people
    ├─ block     id      integer   rising; what is in a block never changes
    │            space   integer   whose vectors these are
    │            day     integer   last used, in days since 1970
    │            keys    blob      n x 32 bytes: BLAKE2b-256 of space and sequence
    │            checks  blob      n x CRC-32 over space, key and value, little-endian
    │            crc     integer   CRC-32 over space, keys and values, for reading them at once
    ├─ value     block   integer   the block's id
    │            vectors blob      n x dim x little-endian float32 or float16
    └─ file      id      blob      16 random bytes: whether this is the file that it was

Vectors that are written together lie together, in blocks of up to 256 kB: a block costs little more
to read than a vector. A checksum covers space and key, too, so that no value can pass for another.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path

import platformdirs

from esm2_features.exceptions import CacheVersionError

PAGE_BYTES = 65536  # large pages: a block is a few of them
_PROGRAM, _FORMAT = 0x45534D32, 2
_HEADER = """
select (select application_id from pragma_application_id),
       (select user_version from pragma_user_version), (select count(*) from sqlite_master)
"""
_SCHEMA = (
    "CREATE TABLE file(id blob not null)",
    """CREATE TABLE space(
        id integer primary key, digest blob not null unique, checkpoint text not null,
        layer integer not null, pooling text not null, precision text not null,
        dtype text not null, model text not null)""",
    # Numbers are never used again, so an index in another process can be old, but not wrong.
    """CREATE TABLE block(
        id integer primary key autoincrement, space integer not null, day integer not null,
        keys blob not null, checks blob not null, crc integer not null)""",
    "CREATE INDEX block_of_space on block(space)",
    "CREATE INDEX block_of_day on block(day)",
    "CREATE TABLE value(block integer primary key, vectors blob not null)",
)

_COLUMNS = """
select tables.name, columns.name, columns.type, "notnull", pk
from sqlite_master as tables, pragma_table_info(tables.name) as columns
where tables.type = 'table' and tables.name in ('file', 'space', 'block', 'value')
"""

# A fork waits for this lock, and so never copies a transaction that is half done, which the child
# would roll back under its parent's hands, nor a lock inside SQLite, on which it would hang.
FORK_LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=FORK_LOCK.acquire,
        after_in_parent=FORK_LOCK.release,
        after_in_child=FORK_LOCK.release,
    )

# Collected while another thread forked; closed when the next one is opened.
_LEFT_OPEN: list[SqliteConnection] = []


class SqliteConnection(sqlite3.Connection):
    """A connection that knows its process and its file, and is closed when it is collected."""

    pid = -1
    identity: tuple[int, int] | None = None  # device and inode
    commit_seconds = 0.0  # how long a commit waits for readers; nothing else waits inside SQLite

    def close(self) -> None:
        """Close the connection, but not while another thread forks."""
        with FORK_LOCK:
            super().close()

    def __del__(self) -> None:
        # It may be collected in the middle of anything, so it must not wait for the lock.
        if self.pid != os.getpid():
            return
        if FORK_LOCK.acquire(blocking=False):
            self.close()
            FORK_LOCK.release()
        else:
            _LEFT_OPEN.append(self)


def default_folder() -> Path:
    """Return ``$ESM2_FEATURES_CACHE``, or else a folder in the user's cache folder."""
    chosen = os.environ.get("ESM2_FEATURES_CACHE")
    return Path(chosen or platformdirs.user_cache_path("esm2_features") / "embeddings")


def open_file(file: Path, busy_seconds: float = 0.0, *, mode: str = "rw") -> SqliteConnection:
    """Connect; write the schema into an empty file; raise CacheVersionError on a foreign one."""
    connection = connect(file, busy_seconds, mode=mode)
    try:
        if connection.execute(_HEADER).fetchone() == (0, 0, 0):
            set_layout(connection)
            with transaction(connection):
                if connection.execute(_HEADER).fetchone() == (0, 0, 0):  # no one was faster
                    write_schema(connection)
        program, version, _ = connection.execute(_HEADER).fetchone()
        if (program, version) == (_PROGRAM, _FORMAT):
            # A damaged schema that can be read: SQLite would miss its columns much later. What
            # others have added, such as an index or a view, does not matter.
            found = connection.execute(_COLUMNS).fetchall()
            lacking = _columns() - {tuple(map(_text, row)) for row in found}
            if lacking:
                table, column, *_ = min(lacking)
                raise damage(f"its table {table!r} has no column {column!r} as it should be")
            return connection
        reason = "belongs to another program. Move it away"
        if program == _PROGRAM:
            change = "Upgrade esm2-features" if version > _FORMAT else "Move it away"
            reason = f"has format {version}; this version reads {_FORMAT}. {change}"
        raise CacheVersionError(
            f"{file} {reason}, or choose another folder with cache=. It is left as it is.",
            path=str(file),
            found=version,
            expected=_FORMAT,
        )
    except BaseException:
        connection.close()
        raise


def set_layout(connection: sqlite3.Connection) -> None:
    """Set what can only be set while a database is empty."""
    connection.execute(f"pragma page_size={PAGE_BYTES}")
    connection.execute("pragma auto_vacuum=INCREMENTAL")  # the file can shrink in steps


def write_schema(connection: sqlite3.Connection) -> None:
    """Make the tables of an empty database; call it in a transaction."""
    for table in _SCHEMA:
        connection.execute(table)
    connection.execute("insert into file(id) values(randomblob(16))")
    connection.execute(f"pragma application_id={_PROGRAM}")
    connection.execute(f"pragma user_version={_FORMAT}")


@cache
def _columns() -> frozenset[tuple[str, str, str, int, int]]:
    """Return table, name and kind of all columns."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in _SCHEMA:
            connection.execute(statement)
        return frozenset(connection.execute(_COLUMNS).fetchall())


def _text(value: object) -> object:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


class DamageError(sqlite3.DatabaseError):
    """Damage that SQLite itself does not notice."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    sqlite_errorname = "SQLITE_CORRUPT"


def damage(what: str) -> DamageError:
    return DamageError(what)


@contextmanager
def waiting(connection: SqliteConnection, seconds: float | None = None) -> Iterator[None]:
    """Let SQLite wait for readers, as long as this connection may by default."""
    # The lock that keeps new readers out stays between the tries of one commit only.
    seconds = connection.commit_seconds if seconds is None else seconds
    if seconds:
        connection.execute(f"pragma busy_timeout={round(1000 * seconds)}")
    try:
        yield
    finally:
        if seconds:
            connection.execute("pragma busy_timeout=0")


@contextmanager
def snapshot(connection: SqliteConnection) -> Iterator[None]:
    """Read one state of the file, whatever others write meanwhile."""
    try:
        connection.execute("begin")
        yield
    finally:
        with suppress(sqlite3.Error):
            connection.execute("commit")


def connect(file: Path, busy_seconds: float = 0.0, *, mode: str = "rw") -> SqliteConnection:
    """Connect to an SQLite file with the settings that all files of the cache share."""
    while _LEFT_OPEN:
        left = _LEFT_OPEN.pop()
        if left.pid == os.getpid():
            left.close()
    connection = sqlite3.connect(
        f"{file.as_uri()}?mode={mode}",  # where writing is not allowed, SQLite opens to read
        uri=True,
        timeout=busy_seconds,
        isolation_level=None,
        check_same_thread=False,  # what a thread leaves behind is closed by another
        factory=SqliteConnection,
    )
    connection.pid = os.getpid()
    connection.text_factory = bytes  # a damaged row may claim to be text, and must not raise
    try:
        # The journal stays SQLite's default, a rollback journal: a write-ahead log needs a local
        # disk. Memory is not mapped: a mapped file that is truncated kills the process.
        # Vectors are no secret, and to overwrite deleted ones would need room on a full disk.
        settings = ("mmap_size=0", "synchronous=NORMAL", "cell_size_check=ON", "secure_delete=OFF")
        for setting in settings:
            connection.execute(f"pragma {setting}")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(
    connection: SqliteConnection, commit_seconds: float | None = None
) -> Iterator[SqliteConnection]:
    try:
        # Inside, because Ctrl-C while it waits for the lock is raised when it has the lock.
        connection.execute("begin immediate")
        yield connection
        with waiting(connection, commit_seconds):
            connection.execute("commit")
    except BaseException:
        with suppress(sqlite3.Error):  # SQLite may have rolled back by itself
            connection.execute("rollback")
        raise
