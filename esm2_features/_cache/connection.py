"""Connections to the file of the cache, one for each thread, and what happens when they fail.

A failure is one `CacheWarning`, and vectors are computed instead. A damaged file is renamed, never
deleted. Only a file of another program or a newer version is an error, `CacheVersionError`.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, TypeVar

from filelock import FileLock

from esm2_features._cache.file import (
    FORK_LOCK,
    PAGE_BYTES,
    DamageError,
    SqliteConnection,
    connect,
    open_file,
)
from esm2_features._cache.locks import NoLocksError, Patience, is_locked, patience_of
from esm2_features.exceptions import CacheVersionError, CacheWarning

# How SQLite says that a hot journal is in the way of a reader.
_NEEDS_WRITING = {"SQLITE_READONLY_ROLLBACK", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM"}
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_TOOBIG}

_REREADS = 2  # after a read that failed, before the file is called damaged
_LOCK_SECONDS = 2.0  # to wait for who sets the file aside, which takes no time

_T = TypeVar("_T")

# Connections that a parent opened are kept from being closed in its children, as SQLite demands.
_INHERITED: list[SqliteConnection] = []


class _PerThread(threading.local):
    """The connection of one thread, and the identity of the file that it opened."""

    connection: SqliteConnection | None = None
    identity: tuple[int, int] | None = None


class CacheConnection:
    """Connections to one file, which threads may share and forked processes inherit."""

    # How long this process waits in all while others have the lock, until it has had it again.
    busy_seconds: ClassVar[float] = 30.0
    # How long to leave the file alone after a failure: a full disk does not end caching for good.
    # A lock may be free soon, so after it the first rest is short, and the next twice as long.
    rest_seconds: ClassVar[float] = 60.0
    locked_rest_seconds: ClassVar[float] = 1.0

    def __init__(self, file: Path) -> None:
        self.file = file
        self._local = _PerThread()
        self._resting_until = {"read": 0.0, "written": 0.0}
        self._next_rest = {"read": 0.0, "written": 0.0}
        self._warned: dict[tuple[int, str], object] = {}

    def attempt(
        self, purpose: str, action: Callable[[SqliteConnection], _T], *, insist: bool = False
    ) -> _T | None:
        """Run an action; if it fails, warn, pause the use of the file, and return None."""
        if time.monotonic() < self._resting_until[purpose] and not insist:
            return None
        try:
            result = self.run(purpose, action)
        except NoLocksError as error:
            self.warn("locks", f"{error}.")
        except OSError as error:
            self._rest(purpose, is_short=is_locked(error.__cause__))
            message = f"{error}. The results are right all the same, only slower than they could "
            message += "be. Mend the cause, or choose another folder with cache=, or cache=None."
            self.warn(purpose, message)
        else:
            self._next_rest[purpose] = 0.0
            return result
        return None

    def _rest(self, purpose: str, *, is_short: bool) -> None:
        """Leave the file alone for a while."""
        seconds = self.rest_seconds
        if is_short:
            seconds = min(max(self.locked_rest_seconds, self._next_rest[purpose]), seconds)
            self._next_rest[purpose] = 2 * seconds
        self._resting_until[purpose] = time.monotonic() + seconds

    def run(
        self, purpose: str, action: Callable[[SqliteConnection], _T], *, mend: bool = True
    ) -> _T | None:
        """Run an action on this thread's connection; again after a damaged file was set aside.

        All of the action is repeated while the file is locked, so it is one transaction, or goes on
        where it stopped.
        """

        def on_connection(commit_seconds: float) -> _T | None:
            connection = self._connection(create=purpose == "written")
            if connection is None:
                return None
            connection.commit_seconds = commit_seconds
            return action(connection)

        rereads, is_mended = _REREADS, False
        while True:
            try:
                return self._patience(purpose).run(on_connection, self.busy_seconds)
            except (sqlite3.Error, OSError, UnicodeDecodeError, CacheVersionError) as error:
                self._drop()
                if rereads and _may_be_misread(error):
                    rereads -= 1
                elif isinstance(error, CacheVersionError):
                    raise
                elif mend and not is_mended and self._make_way(error):
                    is_mended = True
                else:
                    message = (
                        f"The cache {self.file} could not be {purpose}: {_cause(error, self.file)}"
                    )
                    if not mend and is_damage(error):
                        message += (
                            ". Unless the disk is at fault, it is set aside when it is next used"
                        )
                    kind = NoLocksError if isinstance(error, NoLocksError) else OSError
                    raise kind(message) from error

    def _patience(self, purpose: str) -> Patience:
        return patience_of(self.file, "read" if purpose == "read" else "write")

    def _identity(self) -> tuple[int, int] | None:
        """Device and inode of the file, to notice that it was replaced."""
        try:
            status = self.file.stat()
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def warn(self, cause: str, message: str) -> None:
        """Warn once for each cause in each process; setdefault is atomic between threads."""
        token = object()
        if self._warned.setdefault((os.getpid(), cause), token) is token:
            warnings.warn(message, CacheWarning, stacklevel=5)

    def _is_misread(self, error: Exception) -> bool:
        """Whether the disk may be wrong, and not the file: what is wrong differs, or it fails."""
        digests = [self._digest() for _ in range(_REREADS)]
        is_misread = None in digests or len(set(digests)) > 1
        # What SQLite calls corrupt may have been read wrong, in one of many reads, three times.
        is_by_sqlite = not isinstance(error, DamageError)
        if not is_misread and is_by_sqlite and _has_code(error, {sqlite3.SQLITE_CORRUPT}):
            faults = self._faults()
            for _ in range(_REREADS):
                faults = faults and faults & self._faults()
            is_misread = not faults
        if is_misread:
            self.warn(
                "misread",
                f"The cache {self.file} was read wrong, and may be sound: it is left as it is. "
                "Check the disk.",
            )
        return is_misread

    def _digest(self) -> bytes | None:
        """Return a digest of the file; None if a read fails."""
        digest, at = hashlib.sha256(), 0
        try:
            file = self.file.open("rb", buffering=0)
        except OSError:
            return None
        try:
            # In the way and in the pieces in which SQLite reads, where there is this way.
            pread = getattr(os, "pread", lambda _, size, _at: file.read(size))
            while data := pread(file.fileno(), PAGE_BYTES, at):
                digest.update(data)
                at += len(data)
        except OSError:
            return None
        finally:
            with FORK_LOCK:  # to close it drops SQLite's locks, which nobody here has now
                file.close()
        return digest.digest()

    def _faults(self) -> set[str]:
        def check(_: float) -> set[str]:
            with closing(connect(self.file)) as connection:
                lines = connection.execute("pragma integrity_check").fetchall()
                text = b"\n".join(line for (line,) in lines).decode(errors="replace")
                return set(text.splitlines()) - {"ok", "*** in database main ***"}

        try:
            return self._patience("read").run(check, self.busy_seconds)
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
            return {str(error)} if is_damage(error) else set()

    def _make_way(self, error: Exception) -> bool:
        """Rename a damaged file, and return whether to try again."""
        try:
            if self._identity() != self._local.identity:
                return True  # another process has set it aside or replaced it
            if not is_damage(error):
                # No table: the file was emptied while it was open.
                return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR
            if not os.access(self.file, os.W_OK):
                return False  # a reader of a shared cache leaves that to its owner
            if self._is_misread(error):
                return False
            aside = f"{self.file}.corrupt-{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{os.getpid()}"
            lock = Path(f"{self.file}.lock")
            make_private(lock)
            with FileLock(lock, timeout=_LOCK_SECONDS):
                # Now that nobody else does this: it may have been done.
                if self._identity() != self._local.identity:
                    return True
                # The journal first: left behind, it would be played into the file that comes next.
                with suppress(FileNotFoundError):
                    Path(f"{self.file}-journal").rename(f"{aside}-journal")
                self.file.rename(aside)
        except OSError:
            return False
        message = f"The cache {self.file} is damaged: {_cause(error, self.file)}. It was set aside "
        message += f"as {aside}, and a new one is begun. Its intact vectors are brought back by "
        self.warn(aside, f"{message}`esm2-features cache recover`.")
        return True

    def _connection(self, *, create: bool) -> SqliteConnection | None:
        """Return this thread's connection to the file that has the name now; None without one."""
        identity = self._identity()
        if identity is None and create:
            make_private(self.file)
            identity = self._identity()
        held = self._local.connection
        if held and held.pid == os.getpid() and self._local.identity == identity:
            return held
        self._drop()
        self._local.identity = identity
        if identity is None:
            return None
        self._local.connection = connection = open_file(self.file)
        connection.identity = identity
        return connection

    def _drop(self) -> None:
        """Forget this thread's connection; close it, or keep it open if a parent opened it."""
        held, self._local.connection = self._local.connection, None
        if held and held.pid == os.getpid():
            held.close()
        elif held:
            _INHERITED.append(held)


def is_damage(error: BaseException | None) -> bool:
    """Whether SQLite reports a file that is damaged, or not an SQLite file."""
    # SQLite quotes a damaged schema in its messages, which then are no text.
    return isinstance(error, UnicodeDecodeError) or (_has_code(error, _DAMAGE))


def _may_be_misread(error: Exception) -> bool:
    """Whether the file may be sound, and the disk have been wrong this time."""
    is_failed_read = _has_code(error, {sqlite3.SQLITE_IOERR})
    return is_damage(error) or is_failed_read or isinstance(error, CacheVersionError)


def _has_code(error: BaseException | None, codes: set[int]) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in codes


def make_private(file: Path) -> None:
    """Make an empty file and its folder, for their owner only, unless they exist.

    In an existing folder to which its group may write, the group may write the file as well.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Only SQLite may open a file that exists: to close it otherwise drops SQLite's locks.
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        if mode_in(file.parent) != 0o600:
            with suppress(OSError):  # not every file system has permissions
                file.chmod(mode_in(file.parent))


def mode_in(folder: Path) -> int:
    """Return the permissions of files in a folder: also for its group, if it may write there."""
    try:
        allowed = folder.stat().st_mode
    except OSError:
        return 0o600
    # In a sticky folder, such as /tmp, each file is its owner's.
    return 0o660 if allowed & stat.S_IWGRP and not allowed & stat.S_ISVTX else 0o600


def _cause(error: Exception, file: Path) -> str:
    name = getattr(error, "sqlite_errorname", "")
    text = f"{error} ({name})" if name else str(error)
    if is_locked(error):
        text += ": another process uses it, or was stopped while it did"
    journal = Path(f"{file}-journal")
    if name in _NEEDS_WRITING and journal.exists() and not os.access(file, os.W_OK):
        text = (
            f"a process that wrote was killed, and left {journal.name}, which only who may write "
            f"can play back ({name}). The next process that may write to {file.parent} repairs it, "
            "such as `esm2-features cache verify` of its owner"
        )
    return text
